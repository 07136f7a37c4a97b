"""What training needs of memory, beside the paper's table: a few steps of each row, each in a process of its own."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sidestep.bench.memory.step_cost import Work, in_fresh_process, started
from sidestep.bench.paper_tables.cells import commits_of
from sidestep.bench.paper_tables.rows import command_for
from sidestep.bench.report import Table, wrapped
from sidestep.data import names
from sidestep.errors import InputError
from sidestep.measure import peak_allocation
from sidestep.measure.environment import environment_of, environment_words
from sidestep.presets.catalogue import PRESETS, Preset
from sidestep.rules import RULES
from sidestep.training import Compute
from sidestep.version import __version__
from sidestep.wording import counted, spelled

__all__ = ["memory_record", "memory_tables", "memory_text", "training_peak", "with_earlier"]

_NOTE = (
    "GB of 10^9 bytes. Ours: the most that tensors took at once, as counted by torch (on a CPU: the storages of all "
    "live tensors), in {steps} training steps on {batch} random images, with weights, gradients and optimiser, without "
    "data set and evaluation; each cell in a process of its own. On a CPU it has one thread: units that could run at "
    "once run one after another, which takes less. A solver takes the steps of the budget `cpu`: by the adjoint method "
    "its memory does not grow with them. The paper's: GPU memory of a run; how it was measured is not said. So compare "
    "rows with one another rather than columns."
)


def training_peak(preset: Preset, device: str, precision: str = "auto", steps: int = 3) -> int:
    """Return the peak of memory in bytes while a preset's net is made and trained for a few steps on random images."""
    known = next(known for known in names() if known.name == preset.data)
    shape = known.image_shape(preset.image_size or known.sizes[0])
    rule, compute = RULES[preset.rule](**preset.options), Compute.find(device, precision)
    work = Work(
        rule, shape, len(known.class_names), preset.train["batch"],
        device=str(compute.device), precision=compute.precision,
    )  # fmt: skip
    with peak_allocation(compute.device) as peak:
        loop, state = started(work)
        for _ in range(steps):
            loop.take_step(state)
    return int(peak.bytes)


def memory_record(  # long: which rows, and how they are measured
    table: str,
    presets: Sequence[Preset],
    device: str,
    command: str,
    report: Callable[[str], None],
    steps: int = 3,
    precision: str = "auto",
) -> dict[str, Any]:
    """Return the record of a table of memory; a cell that fails is noted, and the others go on.

    Args:
        table: its name.
        presets: its rows, on each data set.
        device: where to train.
        command: what was typed.
        report: called with a line before each cell.
        steps: training steps of each cell.
        precision: of products and convolutions, auto for what the processor is built for.
    """
    if not 1 <= steps <= 1000:
        raise InputError(f"--steps must lie between 1 and 1000, got {steps}; 3 are enough to see the optimiser's state")
    compute = Compute.find(device, precision)
    cells = []
    for preset in presets:
        report(f"{preset.rule} on {preset.data}")
        cell = {"preset": preset.name, "row": preset.row, "data": preset.data, "paper_gb": preset.memory_gb}
        cells.append({**cell, **_apart(preset.for_budget("cpu"), device, precision, steps)})
    return {
        "table": table,
        "command": command,
        "steps": steps,
        "batch": sorted({preset.train["batch"] for preset in presets}),
        "device": str(compute.device),
        "precision": compute.precision,
        "sidestep": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cells": cells,
    }


def with_earlier(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the record with the cells of an earlier one that were not measured again, if all else was the same.

    Args:
        record: the new one.
        path: file of the earlier one, JSON; there may be none.
    """
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        same = all(earlier[key] == record[key] for key in record if key not in ("command", "cells"))
        cells = [*earlier["cells"], *record["cells"]] if same else record["cells"]
        last = {cell["preset"]: cell for cell in cells}
    except (OSError, ValueError, LookupError, TypeError):  # not there, or not ours
        return dict(record)
    order = {name: index for index, name in enumerate(PRESETS)}
    cells = sorted(last.values(), key=lambda cell: order.get(cell["preset"], len(order)))
    shown, wanted = (
        [PRESETS[cell["preset"]] for cell in some if cell["preset"] in PRESETS] for some in (cells, record["cells"])
    )
    return {**record, "command": command_for(record["command"], shown, wanted), "cells": cells}


def _apart(preset: Preset, device: str, precision: str, steps: int) -> dict[str, Any]:
    """Return the peak, measured in a fresh process, with what it ran, or why there is none."""
    measured, failed = in_fresh_process(_peak_and_environment, preset, device, precision, steps)
    peak, environment = measured or (None, None)
    return {"bytes": peak, "failed": failed, "environment": environment}


def _peak_and_environment(preset: Preset, device: str, precision: str, steps: int) -> tuple[int, dict[str, Any]]:
    environment = environment_of(Compute.find(device, precision).device)  # before anything runs
    return training_peak(preset, device, precision, steps), environment


def memory_text(record: Mapping[str, Any]) -> str:
    """Return what stands above the table."""
    parts = [
        f"# {record['table']}: memory in training",
        "\n".join(f"    {spelled(line)}" for line in record["command"].splitlines()),
        wrapped(f"{record['device']}, {record['precision']}; {'; '.join(_computed_by(record))}."),
        wrapped(_NOTE.format(steps=record["steps"], batch=", ".join(map(str, record["batch"])))),
    ]
    return "\n\n".join(parts)


def _computed_by(record: Mapping[str, Any]) -> list[str]:
    """Return by which versions the cells were measured, and where, as far as it is known."""
    plain = f"sidestep {record['sidestep']}, torch {record['torch']}, {counted(record['threads'], 'thread')}"
    places: dict[str, list[Mapping[str, Any]]] = {}
    for cell in [each for each in record["cells"] if not each["failed"]] or [{}]:
        known = cell.get("environment")
        places.setdefault(environment_words(known, []) if known else plain, []).append(cell)
    return [
        environment_words(cells[0]["environment"], commits_of(cells)) if cells[0].get("environment") else words
        for words, cells in places.items()
    ]


def memory_tables(record: Mapping[str, Any]) -> list[Table]:
    """Return the table, methods by data sets, and a second one of the cells that failed, if any did."""
    cells = record["cells"]
    rows, sets = (list(dict.fromkeys(cell[key] for cell in cells)) for key in ("row", "data"))
    columns = ["row", *(f"{data}, {whose}" for data in sets for whose in ("ours", "paper"))]
    found = {(cell["row"], cell["data"]): cell for cell in cells}
    lines = []
    for row in rows:
        words = [row]
        for data in sets:
            cell = found.get((row, data), {"bytes": None, "failed": None, "paper_gb": None})
            ours = "failed" if cell["failed"] else "-" if cell["bytes"] is None else f"{cell['bytes'] / 1e9:.2f}"
            words += [ours, "-" if cell["paper_gb"] is None else f"{cell['paper_gb']:.2f}"]
        lines.append(words)
    failed = [[cell["preset"], cell["failed"]] for cell in cells if cell["failed"]]
    return [Table("", columns, lines), *([Table("Failed:", ["preset", "why"], failed)] if failed else [])]
