"""What rare errors with a large weight do to NoProp-CT with prototypes, under Adam and under AMSGrad.

The paper's loss weighs a squared error by SNR'(t) / 2, some 640 at t = 1 at the start, where the label can be read off
z: a trained block is right there for hundreds of steps, until it is not, and such an error outweighs all others. Adam
divides by the root of a mean of squared gradients that fades by 0.999 a step, AMSGrad by its largest value so far, so
that it moves less; all else is the preset's.

    python -m experiments.rare_errors --rows runs/rare-errors.jsonl [--seeds 0 1 2] [--optimizers adam amsgrad own]

A row of the file for each run: for each epoch the mean and the largest denoising loss of its steps, the step from which
the loss of 20 steps in turn has a median above 100 (null: there is none), and accuracies on the test images. Rows that
are there are left out. `own` is the rule's optimiser, as the preset has it. With --steps FILE a line for each step is
added to that file: its loss, how many answers were wrong, the largest weight of a wrong one, and for the layers in
which image and z are joined the root mean square of the update, over the learning rate.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from experiments.given import a_count
from experiments.kept_rows import Row, keep_row, kept_rows, row_key
from sidestep import Options, train
from sidestep.bench.paper_tables.rows import budget_data
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.noprop.time_schedules import Schedule
from sidestep.noise import Noise
from sidestep.presets.catalogue import PRESETS
from sidestep.rules import Batch, NoPropCT
from sidestep.rules.shared.timed import Noised
from sidestep.training.own_optimizer import OptimizerFactory
from sidestep.update import Update

__all__ = ["OPTIMIZERS", "broken_from"]

PRESET, KEY = "noprop-ct-mnist-prototype", ("optimizer", "seed", "epochs", "precision")
WINDOW, BROKEN = 20, 100.0
OPTIMIZERS = ("adam", "amsgrad", "own")


def broken_from(losses: Sequence[float], start: int = 0) -> int | None:
    """Return the first step from which the median of 20 losses is above 100, None if there is none.

    >>> broken_from([1.0] * 30 + [500.0] * 30), broken_from([1.0] * 30 + [500.0] * 5 + [1.0] * 30)
    (30, None)
    """
    for step in range(start, len(losses) - WINDOW + 1):
        if losses[step] > BROKEN and statistics.median(losses[step : step + WINDOW]) > BROKEN:
            return step
    return None


def factory_of(kind: str, rule: NoPropCT) -> OptimizerFactory | None:
    """Return what makes the optimiser; None for the rule's own."""
    if kind == "own":
        return None

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            groups, lr=rule.learning_rate, weight_decay=rule.weight_decay, amsgrad=kind == "amsgrad"
        )

    return make


class Recording(NoPropCT):
    """The rule, which keeps the denoising loss of each step, and in a file what else is asked for."""

    recorded: list[float]
    last: dict[str, Any]
    optimizer_name: str
    seed: int
    steps_file: Path | None

    @torch.no_grad()
    def _keep(self, net: Denoiser, noised: Noised, outputs: Tensor, loss: Tensor) -> None:
        self.recorded.append(float(loss))
        wrong = outputs.argmax(1) != noised.labels
        weights = cast("Schedule", net.schedule).snr_slope(noised.time)[wrong] / 2
        largest = max((float(weight) for weight in weights), default=0.0)
        self.last.update(
            optimizer=self.optimizer_name,
            seed=self.seed,
            step=len(self.recorded),
            loss=float(loss),
            wrong=int(wrong.sum()),
            largest_weight=largest,
        )

    def losses(self, net: Denoiser, batch: Batch, noised: Noised, outputs: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Return the losses, and keep one."""
        found = super().losses(net, batch, noised, outputs, noise)
        self._keep(net, noised, outputs, found["block: denoising"].detach())
        return found

    def apply(self, net: Denoiser, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take the step, and keep how far it went."""
        watched = {name: getattr(net.block, name) for name in ("join", "fuse")} if self.steps_file else {}
        before = {name: parameters_to_vector(each.parameters()).detach() for name, each in watched.items()}
        super().apply(net, update, optimizer)
        for name, each in watched.items():
            moved = parameters_to_vector(each.parameters()).detach() - before[name]
            self.last[name] = float(moved.square().mean().sqrt()) / self.learning_rate
        if self.steps_file:
            with self.steps_file.open("a") as file:
                file.write(json.dumps(self.last) + "\n")


def run(row: Row, data_dir: Path | None, steps_file: Path | None = None) -> Row:
    """Train by a row's optimiser and seed, and return the row with what came out."""
    preset = PRESETS[PRESET].for_budget("cpu")
    rule = Recording(**preset.options)
    kept: dict[str, Any] = {"recorded": [], "last": {}, "steps_file": steps_file,
                            "optimizer_name": row["optimizer"], "seed": row["seed"]}  # fmt: skip
    for name, value in kept.items():
        object.__setattr__(rule, name, value)
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
    parser.add_argument("--optimizers", nargs="+", default=["adam", "amsgrad"], choices=OPTIMIZERS)
    parser.add_argument("--epochs", type=a_count, default=10)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=Path, metavar="FILE", help="keep a line for each step here")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SIDESTEP_DATA"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # what the library's Adam does by itself: it keeps steps from growing slow
    for seed in given.seeds:
        for optimizer in given.optimizers:
            row = {"optimizer": optimizer, "seed": seed, "epochs": given.epochs, "precision": given.precision}
            if row_key(row, KEY) not in {row_key(kept, KEY) for kept in kept_rows(given.rows)}:
                keep_row(given.rows, run(row, given.data_dir, given.steps), "auto")


if __name__ == "__main__":
    main()
