"""Count the units that get no gradient any more at the end of finished runs, by the first moments of their AdamW.

A first moment without a gradient shrinks by 0.9 at each step, and is below float32's smallest normal number, 1.2e-38,
after some 750 steps. So a row of a layer's weights whose first moments are all that small belongs to a unit that has
had no gradient from any image of the last 750 steps: behind a ReLU, one that is never above zero. With L2 decay in the
gradient (`adam`) its weights have to fade first, in some 2,000 steps more, so such runs have more dead units than this.

    python -m experiments.dead_units runs/ct-cifar100-0 runs/norm-ct-cifar100-0

Runs of NoProp's rules or of back-propagation on their own nets, of 1,000 steps or more. Layers in which no unit is dead
are left out; a row of an embedding is a class.
"""

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sidestep import load_run
from sidestep.bench.report import Table
from sidestep.errors import InputError

_FEWEST = 1_000  # steps; a moment without a gradient takes some 750 of them
COLUMNS = ["run", "layer", "units", "dead", "share"]


def dead_rows(moments: Tensor) -> int:
    """Return how many rows have no first moment of a normal float32's size.

    >>> dead_rows(torch.tensor([[0.0, 1e-39], [0.0, 1e-3], [0.0, 0.0]]))
    2
    """
    return int((moments.abs() < torch.finfo(torch.float32).smallest_normal).flatten(1).all(1).sum())


def rows_of(folder: Path) -> list[list[str]]:
    """Return a row for each layer of a run in which a unit is dead, and one for all of its layers."""
    run = load_run(folder)
    if run.step < _FEWEST:
        raise InputError(f"{folder} has {run.step:,} steps; a first moment says nothing before {_FEWEST:,}")
    names = {parameter: name for name, parameter in run.net.named_parameters()}
    stepped = [each for group in run.rule.optimizer(run.net).param_groups for each in group["params"]]
    found, units, dead = [], 0, 0
    with safe_open(folder / "state.safetensors", "pt") as state:
        for index, parameter in enumerate(stepped):
            key = f"optimizer/{index}.exp_avg"
            if parameter.ndim < 2 or key not in state.keys():  # noqa: SIM118  # it is no mapping
                continue
            count = dead_rows(state.get_tensor(key))
            units, dead = units + len(parameter), dead + count
            if count:
                found.append(_row(folder, names[parameter].removesuffix(".weight"), len(parameter), count))
    return [*found, _row(folder, "all", units, dead)]


def _row(folder: Path, layer: str, units: int, dead: int) -> list[str]:
    return [folder.name, layer, f"{units:,}", f"{dead:,}", f"{dead / max(1, units):.1%}"]


def main() -> None:
    """Print a table of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    rows = [row for folder in parser.parse_args().runs for row in rows_of(folder)]
    print(Table("units without a gradient", COLUMNS, rows).markdown())


if __name__ == "__main__":
    main()
