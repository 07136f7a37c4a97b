"""Which times own the gradient of NoProp-CT, under each loss?

    python -m experiments.noprop_weights --data cifar100 --data-dir data --steps 300 --images 256 --bins 16

Results: docs/is-it-the-denoising.md.
"""

from pathlib import Path
from typing import Literal

import tyro

from experiments.noprop_weights.report import weights_figure, weights_tables, weights_text
from experiments.noprop_weights.study import WeightStudy, study_weights
from sidestep.bench.report import folder_for_study, write_study
from sidestep.data import load
from sidestep.rules import NoPropCT
from sidestep.training import Options
from sidestep.training.lock import only_writer

__all__ = ["weights"]


def weights(
    *,
    data: str = "cifar100",
    data_dir: Path | None = None,
    embedding: Literal["one-hot", "orthogonal", "learned", "prototype"] = "learned",
    steps: int = 300,
    batch: int = 128,
    seed: int = 0,
    bins: int = 32,
    images: int = 256,
    eta: float = 1.0,
    largest_weight: float = 5.0,
    validation: float = 0.1,
    out: Path = Path("runs/study-noprop-weights"),
    device: str = "auto",
    overwrite: bool = False,
) -> None:  # long: the options of the command
    """Why does NoProp-CT's own objective fail? Trains one net with the paper's loss and learned schedule, and one with
    cross-entropy, and measures which times own the gradient under each loss. No test image is read.

    Args:
        data: Data set, .npz file or image folder.
        data_dir: Folder that is looked in before anything is downloaded.
        embedding: Class embedding of both nets.
        steps: Training steps of each net; 0 looks at the untrained net only.
        batch: Images per step.
        seed: Seed of everything random.
        bins: Equal intervals of time; the gradient is taken at their centres.
        images: How many images the gradient is taken on.
        eta: Weight of the paper's denoising loss.
        largest_weight: The most that the weight eta/2 SNR'(t) can be with loss = clipped.
        validation: Share of the training split kept aside for validation.
        out: Folder of study.json, study.md and study.png.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        overwrite: Replace the results of a study of other options in --out.
    """
    look = WeightStudy(bins, images, eta, largest_weight, readings=("ddim", "first step"))
    rules = {
        "paper": NoPropCT(loss="paper", schedule="learned", eta=eta, embedding=embedding),
        "cross-entropy": NoPropCT(loss="cross-entropy", embedding=embedding),
    }
    options = Options(batch=batch, seed=seed, device=device)
    found = load(data, data_dir=data_dir, validation=validation)
    asked = {"study": "noprop-weights", "data": data, "embedding": embedding, "steps": steps, "batch": batch,
             "seed": seed, "bins": bins, "images": images, "eta": eta, "largest_weight": largest_weight,
             "validation": validation}  # fmt: skip
    folder_for_study(out, asked, overwrite)
    with only_writer(out):
        record = study_weights(
            rules, found, options, steps, look, lambda name, step: print(f"loss {name}: {step} steps", end="\r")
        )
    write_study(out, {"asked": asked, **record}, weights_text(record), weights_tables(record), weights_figure(record))
    print(f"written: {out / 'study.json'}, study.md, study.png")


if __name__ == "__main__":
    tyro.cli(weights)
