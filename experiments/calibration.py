"""Train every rule briefly on MNIST and print how good its scores are, and its probabilities: docs/calibration.md.

    python -m experiments.calibration --out runs/calibration.jsonl [--seeds 0] [--only spsa backprop] [--draw]
    python -m experiments.calibration --stability [--seeds 0 1 2 3 4]      # how far few validation images carry: digits

One JSON line per rule and seed is appended to the file, and what is there already is not measured again. Runs are kept
in --runs and taken from there: another way to fit temperatures needs no other training. Numbers are of the 10,000 test
images; a tenth of the training images, 6,000, is kept aside for validation. The last column is the ECE that perfect
probabilities would have on as many images: right answers drawn with just the confidences that are given.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from experiments.given import a_seed
from experiments.kept_rows import keep_row, kept_rows
from sidestep import Options, Run, data, load_run, train
from sidestep.cli.output import default_data_dir
from sidestep.data import DataSet, Split
from sidestep.noise import Noise
from sidestep.rules import RULES
from sidestep.training.calibration import (
    Quality,
    calibrated,
    confidence_sums,
    fit_sums,
    fit_temperature,
)

DRAWS = 200


@dataclass(frozen=True)
class Entry:
    """How a rule is trained for the table: in seconds rather than well."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 1
    images: int = 54_000  # of the training split
    options: Mapping[str, Any] = field(default_factory=dict)
    rule: str = ""  # its name, where the entry has another
    readings: tuple[str, ...] | None = None  # all, if none are named


FEW = 6_000  # for convolutions
ENTRIES = {
    "backprop": Entry({"net": "mlp", "hidden": (512, 512)}),
    "local-loss": Entry(),
    "feedback-alignment": Entry(),
    "direct-feedback-alignment": Entry(),
    "forward-forward": Entry({"label": "head", "threshold": 1.0}, 2),
    "hebbian": Entry({}, 2),
    "noise-step": Entry({}, 2),
    "forward-gradient": Entry({}, 3, options={"batch": 256}),
    "evolution": Entry({"columns": "input", "learning_rate": 3e-3}, 8, options={"batch": 1024}),
    "spsa": Entry({}, 6),
    "noprop-dt": Entry({"blocks": 3}, 2, FEW),
    "noprop-ct": Entry({"loss": "cross-entropy"}, 3, FEW),
    "noprop-ct, longer": Entry({"loss": "cross-entropy"}, 3, 15_000, rule="noprop-ct", readings=("ddim",)),
    "noprop-fm": Entry({"loss": "cross-entropy", "steps": 10}, 2, FEW),
    "noprop-fm, longer": Entry({"loss": "cross-entropy"}, 3, 15_000, rule="noprop-fm", readings=("euler",)),
    "neural-ode": Entry({"steps": 4}, 2, FEW),
}


def first_images(found: DataSet, count: int) -> DataSet:
    """Return the set with the first training images alone; validation and test as they are."""
    return replace(found, train=Split(found.train.images[:count], found.train.labels[:count]))


def perfect_error(confidences: Tensor, noise: Noise) -> float:
    """Return the mean ECE of draws in which an answer is right with its confidence, (n,) of them."""
    chances = torch.stack([confidences, 1 - confidences], dim=1)  # two classes stand for all: the answer, or not
    chances[:, 1] = chances[:, 1].minimum(chances[:, 0] * 0.999)  # so that the first is the answer
    found = []
    for draw in range(DRAWS):
        wrong = (noise.sub(draw).uniform(len(chances)) >= confidences).long()
        found.append(Quality.of(0, confidence_sums(chances, wrong, None).tolist(), None).ece)
    return mean(found)


def run_of(name: str, seed: int, mnist: DataSet, runs: Path) -> Run:
    """Return the run of an entry: the one that is kept, or a new one."""
    entry, folder = ENTRIES[name], runs / f"{name.replace(', ', '-')}-{seed}"
    if (folder / "model.safetensors").exists():
        return load_run(folder)
    return train(
        RULES[entry.rule or name](**entry.settings), first_images(mnist, entry.images),
        Options(epochs=entry.epochs, seed=seed, decay="cosine", out=folder, **entry.options),
        readings=RULES[entry.rule or name](**entry.settings).readings[:1],
    )  # fmt: skip


def measured(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train one entry, if no run of it is kept, and return its line."""
    entry, mnist = ENTRIES[name], data.load("mnist", data_dir=default_data_dir())
    trained = run_of(name, seed, mnist, runs)
    started = time.process_time()
    run = trained.recalibrated(mnist.validation, entry.readings)
    fitted = time.process_time()
    qualities = run.assess(mnist.test, entry.readings)
    counted = time.process_time()
    raw = run.predict(mnist.test.images, raw=True)
    found, calibration = calibrated(raw, run.temperature() or 1.0), run.calibration
    return {
        "rule": name, "seed": seed, "reading": run.rule.readings[0],
        "qualities": {reading: asdict(quality) for reading, quality in qualities.items()},
        "same_answers": torch.equal(raw.argmax(dim=1), found.argmax(dim=1)),
        "perfect_ece": perfect_error(found.amax(dim=1), Noise(0)),
        "training_images": entry.images, "epochs": entry.epochs, "settings": str(run.rule),
        "calibrating": [round(fitted - started, 2), round(counted - fitted, 2)],  # processor seconds: 3,000 and 10,000
        "calibration_images": calibration.images if calibration else 0, "precision": run.compute.precision,
    }  # fmt: skip


def stability(seed: int) -> dict[str, Any]:
    """Fit the temperatures of digits on 200 samples of its 144 validation images, drawn with replacement."""
    digits = data.load("digits")
    rule = RULES["noprop-dt"](blocks=3)
    run = train(rule, "digits", Options(seed=seed, epochs=10), readings=rule.readings)
    labels, tests = digits.validation.labels, digits.test.labels
    found = {}
    for name in run.rule.readings:
        scores, of_test = (run.predict(part.images, name, raw=True) for part in (digits.validation, digits.test))
        temperatures, errors = [], []
        for draw in range(DRAWS):
            rows = Noise(seed).stream("bootstrap").sub(draw).integers(len(labels), len(labels))
            temperatures.append(fit_temperature(fit_sums(scores[rows], labels[rows]).tolist()))
            errors.append(Quality.of(0, confidence_sums(of_test, tests, temperatures[-1]).tolist(), None).ece)
        quality = run.result["qualities"][name]
        spread = [sorted(temperatures)[round(share * (DRAWS - 1))] for share in (0.025, 0.975)]
        perfect = perfect_error(calibrated(of_test, quality["temperature"]).amax(dim=1), Noise(0))
        found[name] = {**quality, "from_to": spread, "drawn_ece": mean(errors), "perfect_ece": perfect}
    return {"seed": seed, "readings": found}


def rows_of(lines: list[dict[str, Any]]) -> list[str]:
    """Return the table: a row for each rule, and reading if there are several."""
    rows = ["| rule | sampler | seeds | accuracy % | NLL of scores | NLL | ECE of scores | ECE | T | perfect |",
            "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in ENTRIES:
        of_rule = [line for line in lines if line["rule"] == name]
        for reading in of_rule[0]["qualities"] if of_rule else ():
            found = [Quality(**line["qualities"][reading]) for line in of_rule]

            def middle(key: str, found: list[Quality] = found) -> float:
                return mean(asdict(quality)[key] for quality in found)

            spread = f" ({stdev(q.ece for q in found) / len(found) ** 0.5:.4f})" if len(found) > 1 else ""
            default = reading == of_rule[0]["reading"]
            perfect = f"{mean(line['perfect_ece'] for line in of_rule):.4f}" if default else ""
            rows.append(
                f"| {name if default else ''} | {reading} | {len(found)} | {100 * middle('accuracy'):.2f} "
                f"| {middle('raw_nll'):.3f} | {middle('nll'):.3f} | {middle('raw_ece'):.4f} "
                f"| {middle('ece'):.4f}{spread} | {middle('temperature'):.3g} | {perfect} |"
            )
    return rows


def main() -> None:
    """Parse the options, train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/calibration"), help="folder of the trained runs")
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--draw", action="store_true", help="train nothing; the table of what is there")
    parser.add_argument("--stability", action="store_true", help="of the digits' temperatures, one JSON line per seed")
    given = parser.parse_args()
    if given.stability:
        for seed in given.seeds:
            print(json.dumps(stability(seed)), flush=True)
        return
    if given.out is None:
        parser.error("give --out FILE.jsonl")
    lines = kept_rows(given.out)
    done = {(line["rule"], line["seed"]) for line in lines}
    for seed in given.seeds if not given.draw else ():
        for name in given.only:
            if (name, seed) not in done:
                lines.append(measured(name, seed, given.runs))
                keep_row(given.out, lines[-1], "auto")
    print("\n".join(rows_of(lines)))


if __name__ == "__main__":
    main()
