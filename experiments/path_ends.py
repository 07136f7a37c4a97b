"""What the end of the image path costs NoProp-CT and FM on photographs: ReLU, a leaky ReLU, nothing, or batch norm.

    python -m experiments.path_ends --rows runs/path-ends.jsonl --data bloodmnist --epochs 3 [--rules noprop-ct]
    python -m experiments.path_ends --rows runs/path-ends.jsonl --table

The recipes `noprop-best-DATA-ct` and `-fm` (BloodMNIST) or what they take on a CPU (CIFAR), with the same first weights
up to that end, and one learning rate: nothing is chosen. ReLU is the paper's end. A dense layer follows, so that
without an end, and behind batch norm, the path's last layer is linear.

A row of the file for each run: test accuracy by each reading, and what is `still` of the path's 256 features: the share
that has one and the same value (to a millionth) for every one of 2,000 test images, as a unit behind a ReLU that is
never above zero; and, of the values before that end, the share that is never above zero (`below`).
Rows that are there are left out, so that a stopped command goes on.
"""

import argparse
import dataclasses
import itertools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from experiments.given import a_count, a_seed
from experiments.kept_rows import Row, keep_row, kept_rows, mean_and_deviation, row_key
from sidestep import Options, train
from sidestep.bench.paper_tables.rows import budget_data
from sidestep.bench.report import Table
from sidestep.data import DataSet
from sidestep.data.batches import standardise
from sidestep.nets.noprop.blocks import image_features
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.presets.catalogue import PRESETS
from sidestep.rules import RULES
from sidestep.rules.protocol import Rule

__all__ = ["ENDS", "shares_of", "with_end"]

ENDS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "leaky": partial(nn.LeakyReLU, 0.1), "none": nn.Identity, "batch": partial(nn.BatchNorm1d, 256),
}  # fmt: skip
READINGS = {
    "noprop-ct": ["ddim", "first step", "ancestral"], "noprop-fm": ["euler", "first step", "euler from noise"],
}  # fmt: skip
SETS, STEPS = ("bloodmnist", "cifar10", "cifar100"), 10  # steps of a sampler
SETTING = ("data", "rule", "end", "epochs", "precision")
COLUMNS = [*SETTING, "seeds", "from zero", "one look", "sampled", "still", "below"]
KEY = (*SETTING, "seed")
IMAGES, BATCH, STILL = 2_000, 500, 1e-6


def with_end(rule: Rule, end: str) -> Rule:
    """Return a rule whose nets are as they were but for the end of the image path.

    >>> with_end(NoPropCT(steps=7), "leaky").steps
    7
    """

    class Ended(type(rule)):  # type: ignore[misc]
        def build(self, *given: Any, **named: Any) -> nn.Module:
            net = super().build(*given, **named)
            net.block.image.norm = ENDS[end]()
            return cast("nn.Module", net)

    return cast("Rule", Ended(**{field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}))


@torch.no_grad()
def shares_of(path: nn.Module, images: Tensor) -> dict[str, float]:
    """Return which share of a path's features never changes, and of what goes into its end, is never above zero."""
    before: list[Tensor] = []
    end = cast("nn.Module", path.norm)
    handle = end.register_forward_hook(lambda module, given, output: before.append(given[0]))
    after = torch.cat([image_features(path, part) for part in images.split(BATCH)])
    handle.remove()
    still = (after.amax(0) - after.amin(0)) <= STILL * after.abs().amax().clamp_min(1e-30)
    return {"still": float(still.float().mean()), "below": float((torch.cat(before).amax(0) <= 0).float().mean())}


def finished(row: Row, data: DataSet) -> Row:
    """Train by the recipe with an end of the path, and return the row with what came out."""
    preset = PRESETS[f"noprop-best-{row['data']}-{row['rule'].removeprefix('noprop-')}"].for_budget("cpu")
    rule = RULES[row["rule"]](**{**preset.options, "norm": "none", "steps": STEPS})
    own = {name: row[name] for name in ("seed", "epochs", "precision")}
    options = Options(**{**preset.train, **own})
    run = train(with_end(rule, row["end"]), data, options, readings=READINGS[row["rule"]])
    images = standardise(data.test.images[:IMAGES], run.task.mean, run.task.std).to(run.compute.device)
    path = cast("Denoiser", run.net).block.image.eval()
    return row | shares_of(path, images) | {
        "readings": run.result["readings"], "steps": run.result["steps"], "seconds": run.result["seconds"],
    }  # fmt: skip


def table_of(rows: list[Row]) -> Table:
    """Return a line for each setting: means over seeds, with their standard deviations."""
    lines = []
    for key in dict.fromkeys(tuple(row[name] for name in SETTING) for row in rows):
        mine = [row for row in rows if tuple(row[name] for name in SETTING) == key]
        readings = [[100 * row["readings"][name] for row in mine] for name in READINGS[key[1]]]
        shares = [[100 * row[name] for row in mine] for name in ("still", "below")]
        numbers = [
            *(mean_and_deviation(each, 2) for each in readings),
            *(mean_and_deviation(each, 1) for each in shares),
        ]
        lines.append([*map(str, key), str(len(mine)), *numbers])
    return Table("test accuracy and shares in %, standard deviation over seeds in brackets", COLUMNS, lines)


def main() -> None:
    """Train what is not in the file yet, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, metavar="FILE")
    parser.add_argument("--data", choices=SETS, default="bloodmnist")
    parser.add_argument("--rules", nargs="+", choices=READINGS, default=list(READINGS))
    parser.add_argument("--ends", nargs="+", choices=ENDS, default=list(ENDS))
    parser.add_argument("--seeds", nargs="+", type=a_seed, default=[0, 1, 2])
    parser.add_argument("--epochs", type=a_count, default=3)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SIDESTEP_DATA"))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        print(table_of(kept_rows(given.rows)).markdown())
        return
    done = {row_key(row, KEY) for row in kept_rows(given.rows)}
    loaded = budget_data(PRESETS[f"noprop-best-{given.data}-ct"], "cpu", given.data_dir)  # and that of fm
    for seed, rule, end in itertools.product(given.seeds, given.rules, given.ends):
        row = {"data": given.data, "rule": rule, "end": end, "seed": seed, "epochs": given.epochs,
               "precision": given.precision}  # fmt: skip
        if row_key(row, KEY) not in done:
            keep_row(given.rows, finished(row, loaded), "auto")


if __name__ == "__main__":
    main()
