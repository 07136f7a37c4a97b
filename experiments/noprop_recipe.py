"""Take NoProp's recipe apart, one part at a time, and print the table of docs/experiments/2026-11.md.

    python -m experiments.noprop_recipe --runs runs/recipe --data mnist --seeds 0 1 2 [--only ct ct-paper-loss] [--draw]

Trains on the first images of the training split only, and measures on the 5,000 training images that follow: the test
split is not looked at, so that choices can be made by the table. Runs are processes of their own, one after another, on
one core; finished ones are not repeated. Every variant differs from the recipe of its group, the line above it, by what
its title says.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy

from experiments.given import a_count, a_seed
from sidestep import data

HELD_OUT = 5_000
STOPPED = {"--decay": "none", "--warmup": "0"}
RECIPE = {"--decay": "cosine", "--warmup": "0.1", "--average": "0.99", "--learning-rate": "2e-3"}
PAPER = {"--decay": "none", "--warmup": "0", "--average": "0", "--learning-rate": "1e-3"}
TIMED = {"--draws-per-image": "4", "--steps": "10"}
PAPER_TIMES = {"--loss": "paper", "--times": "uniform", "--draws-per-image": "1", "--optimizer-kind": "adam"}
BLOCKS = {"--blocks": "4", "--levels": "readable", "--loss": "cross-entropy"}


@dataclass(frozen=True)
class Variant:
    """One line of the table: a rule, the options that make the difference, and whether its walks mean anything."""

    title: str
    rule: str
    changes: Mapping[str, str]
    walks: bool = True


@dataclass(frozen=True)
class Group:
    """The options that the variants of a rule start from, and its readings: of the walk, sampled, and of one look."""

    options: Mapping[str, str]
    readings: tuple[str, ...]


GROUPS = {
    "noprop-ct": Group({**RECIPE, **TIMED}, ("ddim", "ancestral", "first step")),
    "noprop-fm": Group({**RECIPE, **TIMED}, ("euler", "euler from noise", "first step")),
    "noprop-dt": Group({**RECIPE, **BLOCKS}, ("ddim", "ancestral", "block 1 alone")),
    "backprop": Group({**RECIPE, "--blocks": "4"}, ("forward",)),
}
VARIANTS = {
    "ct": Variant("**CT, the recipe**", "noprop-ct", {}),
    "ct-unweighted": Variant("squared error, unweighted", "noprop-ct", {"--loss": "unweighted"}),
    "ct-clipped": Variant("squared error, weight clipped at 5", "noprop-ct", {"--loss": "clipped"}),
    "ct-paper-loss": Variant("squared error, the paper's weight", "noprop-ct", {"--loss": "paper"}),
    "ct-learned": Variant(
        "the same, with the paper's learned schedule", "noprop-ct", {"--loss": "paper", "--schedule": "learned"}
    ),
    "ct-cosine": Variant("cosine schedule of noise", "noprop-ct", {"--schedule": "cosine"}),
    "ct-uniform": Variant("independent times", "noprop-ct", {"--times": "uniform"}),
    "ct-one-draw": Variant("one (t, z) per image", "noprop-ct", {"--draws-per-image": "1"}),
    "ct-constant": Variant("constant learning rate, no warm-up", "noprop-ct", STOPPED),
    "ct-no-average": Variant("no average of weights", "noprop-ct", {"--average": "0"}),
    "ct-slower": Variant("learning rate 1e-3", "noprop-ct", {"--learning-rate": "1e-3"}),
    "ct-adam": Variant("Adam, its decay in the gradient", "noprop-ct", {"--optimizer-kind": "adam"}),
    "ct-smoothing": Variant("label smoothing 0.1", "noprop-ct", {"--label-smoothing": "0.1"}),
    "ct-blind": Variant(
        "z is noise at all times: a plain classifier", "noprop-ct",
        {"--smallest-alpha-bar": "1e-6", "--largest-alpha-bar": "2e-6"}, walks=False,
    ),
    "ct-paper": Variant("all of it the paper's", "noprop-ct", {**PAPER, **PAPER_TIMES, "--schedule": "learned"}),
    "fm": Variant("**FM, the recipe**", "noprop-fm", {}),
    "fm-velocity": Variant(
        "velocity and its squared error", "noprop-fm", {"--prediction": "velocity", "--loss": "paper"}
    ),
    "fm-paper": Variant("all of it the paper's", "noprop-fm", {**PAPER, **PAPER_TIMES, "--prediction": "velocity"}),
    "dt": Variant("**DT, the recipe, 4 blocks**", "noprop-dt", {}),
    "dt-cosine": Variant("cosine levels", "noprop-dt", {"--levels": "cosine"}),
    "dt-paper-loss": Variant("squared error, the paper's weight", "noprop-dt", {"--loss": "paper"}),
    "dt-paper": Variant(
        "all of it the paper's, still 4 blocks", "noprop-dt", {**PAPER, "--levels": "cosine", "--loss": "paper"}
    ),
    "backprop": Variant("**backprop, the recipe, 4 blocks**", "backprop", {}),
    "backprop-paper": Variant("all of it the paper's, still 4 blocks", "backprop", PAPER),
}  # fmt: skip


def write_part(path: Path, name: str, images: int) -> None:
    """Write the first images of a training split, and as its test images the next ones."""
    if path.exists():
        return
    whole = data.load(name, data_dir=os.environ.get("SIDESTEP_DATA"), validation=0.0).train
    if len(whole) < images + HELD_OUT:
        raise SystemExit(f"{name} has {len(whole)} training images; --images + {HELD_OUT} must not be more")
    pixels, labels = whole.images.numpy(), whole.labels.numpy()
    end = images + HELD_OUT
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    numpy.savez(
        partial, x_train=pixels[:images], y_train=labels[:images], x_test=pixels[images:end], y_test=labels[images:end]
    )
    partial.rename(path)


def command(name: str, part: Path, epochs: int, seed: int, folder: Path) -> list[str]:
    """Return the command that trains a variant, or goes on with it."""
    variant = VARIANTS[name]
    options = {**GROUPS[variant.rule].options, **variant.changes}
    common = {"--data": part, "--epochs": epochs, "--validation": 0, "--seed": seed, "--out": folder}
    flat = [str(word) for pair in {**options, **common, "--reading": "all"}.items() for word in pair]
    again = ["--resume"] if (folder / "config.toml").exists() else []
    return [sys.executable, "-m", "sidestep", "train", variant.rule, *flat, *again]


def row(variant: Variant, folders: Sequence[Path]) -> str | None:
    """Return a line of the table, mean and standard error in %, or None without any finished run."""
    found = [json.loads(path.read_text()) for folder in folders if (path := folder / "result.json").exists()]
    if not found:
        return None
    cells = []
    for place, reading in enumerate(GROUPS[variant.rule].readings):
        if place < 2 and not variant.walks:
            cells.append("-")
            continue
        values = [100 * result["readings"][reading] for result in found]
        error = f" ({stdev(values) / len(values) ** 0.5:.2f})" if len(values) > 1 else ""
        cells.append(f"{mean(values):.2f}{error}")
    return f"| {variant.title} | {len(found)} | " + " | ".join([*cells, "-", "-"][:3]) + " |"


def main() -> None:
    """Parse the options, train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--images", type=a_count, default=6016, help="training images, the first of the split")
    parser.add_argument("--epochs", type=a_count, default=4)
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--draw", action="store_true", help="train nothing; the table of what is there")
    given = parser.parse_args()
    setting = given.runs / f"{given.data}-{given.images}-{given.epochs}"
    if not given.draw:
        part = setting.with_suffix(".npz")
        write_part(part, given.data, given.images)
        for seed in given.seeds:
            for name in given.only:
                folder = setting / f"{name}-{seed}"
                if not (folder / "result.json").exists():
                    print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
                    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                    asked = command(name, part, given.epochs, seed, folder)
                    subprocess.run(asked, check=True, env=environment, stdout=subprocess.DEVNULL)
    print("| variant | seeds | walk from zero | sampled walk | one look |")
    print("|---|---|---|---|---|")
    for name in given.only:
        line = row(VARIANTS[name], [setting / f"{name}-{seed}" for seed in given.seeds])
        if line:
            print(line)


if __name__ == "__main__":
    main()
