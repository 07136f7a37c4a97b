"""What rare errors with a large weight do to NoProp-CT with prototypes, under Adam and under AMSGrad.

The paper's loss weighs a squared error by SNR'(t) / 2, 700 and more near t = 1, where the label can be read off z: a
trained block is right there for thousands of steps, and Adam's second moment, a mean over a thousand steps, fades. One
error then moves every weight by up to lr 0.1 / sqrt(0.001) = 3 lr at once. AMSGrad divides by the largest second moment
so far, which does not fade; all else is the preset's.

    python -m experiments.rare_errors --rows runs/rare-errors.jsonl [--seeds 0 1 2] [--optimizers adam amsgrad]

A row of the file for each run: for each epoch the mean and the largest denoising loss of its steps, the step from which
the loss of 20 steps in turn has a median above 100 (null: there is none), and accuracies on the test images. Rows that
are there are left out.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.given import a_count
from experiments.kept_rows import Row, keep_row, kept_rows, row_key
from sidestep import Options, train
from sidestep.bench.paper_tables.rows import budget_data
from sidestep.presets.catalogue import PRESETS
from sidestep.rules import NoPropCT
from sidestep.training.own_optimizer import OptimizerFactory

__all__ = ["OPTIMIZERS", "broken_from"]

PRESET, KEY = "noprop-ct-mnist-prototype", ("optimizer", "seed", "epochs", "precision")
WINDOW, BROKEN = 20, 100.0
OPTIMIZERS = ("adam", "amsgrad")


def broken_from(losses: Sequence[float], start: int = 0) -> int | None:
    """Return the first step from which the median of 20 losses is above 100, None if there is none.

    >>> broken_from([1.0] * 30 + [500.0] * 30), broken_from([1.0] * 30 + [500.0] * 5 + [1.0] * 30)
    (30, None)
    """
    for step in range(start, len(losses) - WINDOW + 1):
        if losses[step] > BROKEN and statistics.median(losses[step : step + WINDOW]) > BROKEN:
            return step
    return None


def factory_of(kind: str, rule: NoPropCT) -> OptimizerFactory:
    """Return what makes the optimiser."""

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            groups, lr=rule.learning_rate, weight_decay=rule.weight_decay, amsgrad=kind == "amsgrad"
        )

    return make


class Recording(NoPropCT):
    """The rule, which keeps the denoising loss of each step."""

    recorded: list[float]

    def losses(self, *given: Any, **named: Any) -> Any:
        """Return the losses, and keep one."""
        found = super().losses(*given, **named)
        self.recorded.append(float(found["block: denoising"].detach()))
        return found


def run(row: Row, data_dir: Path | None) -> Row:
    """Train by a row's optimiser and seed, and return the row with what came out."""
    preset = PRESETS[PRESET].for_budget("cpu")
    rule = Recording(**preset.options)
    object.__setattr__(rule, "recorded", [])
    options = Options(**{**preset.train, "epochs": row["epochs"]}, seed=row["seed"], precision=row["precision"])
    loaded = budget_data(preset, "cpu", data_dir)
    found = train(rule, loaded, options, optimizer=factory_of(row["optimizer"], rule),
                  readings=["ddim", "ancestral", "first step"])  # fmt: skip
    losses, each = rule.recorded, len(rule.recorded) // row["epochs"]
    epochs = [losses[index * each :][:each] for index in range(row["epochs"])]
    return row | {
        "mean": [round(statistics.mean(epoch), 3) for epoch in epochs],
        "largest": [round(max(epoch), 1) for epoch in epochs],
        "broken from": broken_from(losses, each),  # after the first epoch, in which it learns
        "test": found.result["readings"],
        "seconds": round(found.result["seconds"]),
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--epochs", type=a_count, default=10)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SIDESTEP_DATA"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # what the library's Adam does by itself: it keeps steps from growing slow
    for seed in given.seeds:
        for optimizer in given.optimizers:
            row = {"optimizer": optimizer, "seed": seed, "epochs": given.epochs, "precision": given.precision}
            if row_key(row, KEY) not in {row_key(kept, KEY) for kept in kept_rows(given.rows)}:
                keep_row(given.rows, run(row, given.data_dir))


if __name__ == "__main__":
    main()
