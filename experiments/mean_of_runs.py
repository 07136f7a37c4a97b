"""Classify test images by the mean of several runs' probabilities, and compare it with a reading of another run.

Whether a chain of blocks is more than an ensemble is asked of nets that are trained alone: one block each, that sees no
other block's answer. Give their runs, and the chain's as --beside:

    python -m experiments.mean_of_runs runs/one-0 runs/one-1 runs/one-2 --reading "block 1 alone" \\
        --beside runs/ten --beside-readings ddim "mean of blocks" "block 1 alone"

Each row has the accuracy with the standard error of the test images, sqrt(p (1 - p) / n), and the mean negative
log-likelihood of the untempered probabilities. Differences are of the same images: McNemar's test (mid-p), and their
standard error over images.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sidestep import data, load_run
from sidestep.bench.comparison.paired import mcnemar
from sidestep.cli.output import default_data_dir
from sidestep.errors import InputError


def probabilities(run: Path, readings: Sequence[str], data_dir: Path | None) -> tuple[list[Tensor], Tensor]:
    """Return a run's untempered probabilities of its test images by each reading, (images, classes), and the labels."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    test, loaded = data.load(result["data"], data_dir=data_dir).test, load_run(run)
    return [loaded.predict(test.images, reading, raw=True) for reading in readings], test.targets


def described(name: str, found: Tensor, labels: Tensor) -> str:
    """Return a row: accuracy in percent with its standard error, and the likelihood.

    >>> described("half", torch.eye(2)[[0, 0]] * 0.98 + 0.01, torch.tensor([0, 1]))
    'half                                      50.00 (35.36)   NLL 2.308'
    """
    accuracy = float((found.argmax(1) == labels).double().mean())
    error = (accuracy * (1 - accuracy) / len(labels)) ** 0.5
    likelihood = -float(found[torch.arange(len(labels)), labels].double().clamp(min=1e-12).log().mean())
    return f"{name:40}{100 * accuracy:7.2f} ({100 * error:.2f})   NLL {likelihood:.3f}"


def compared(first: Tensor, second: Tensor) -> str:
    """Return how much more of the images the first has right, both (images,) of bool.

    >>> compared(torch.tensor([True, True, True, False]), torch.tensor([True, False, False, False]))
    '+50.00 (28.87), 2 images gained, 0 lost, p 0.250'
    """
    change = first.double() - second.double()
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    error = 100 * float(change.std()) / len(change) ** 0.5
    _, p = mcnemar(lost, gained)
    return f"{100 * float(change.mean()):+.2f} ({error:.2f}), {gained:,} images gained, {lost:,} lost, p {p:.3f}"


def main() -> None:
    """Print a row for each run, one for each mean of the first of them, and the differences to the run beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--reading", default="block 1 alone")
    parser.add_argument("--beside", type=Path, default=None, metavar="RUN")
    parser.add_argument("--beside-readings", nargs="+", default=["ddim", "mean of blocks", "block 1 alone"])
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    given = parser.parse_args()
    found, labels = [], torch.empty(0)
    for run in given.runs:
        (own,), labels = probabilities(run, [given.reading], given.data_dir)
        found.append(own)
        print(described(f"{run.name}, {given.reading}", own, labels), flush=True)
    means = {count: torch.stack(found[:count]).mean(0) for count in range(2, len(found) + 1)}
    for count, mean in means.items():
        print(described(f"mean of the first {count} runs", mean, labels))
    if given.beside is None:
        return
    others, of_others = probabilities(given.beside, given.beside_readings, given.data_dir)
    if not torch.equal(labels, of_others):
        raise InputError(f"{given.beside} has other test images than {given.runs[0]}; give runs on the same data")
    for reading, other in zip(given.beside_readings, others, strict=True):
        print(described(f"{given.beside.name}, {reading}", other, labels))
        right = other.argmax(1) == labels
        for count, mean in (means or {1: found[0]}).items():
            name = f"mean of {count} runs" if means else given.runs[0].name
            print(f"  {name} less this: {compared(mean.argmax(1) == labels, right)}")


if __name__ == "__main__":
    main()
