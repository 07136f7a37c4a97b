"""What `sidestep reproduce` would train: which rows, how much of the paper's length, what is done, and how long."""

from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.bench.paper_tables.accuracy import changed_words
from sidestep.bench.paper_tables.cells import Plan, cell_record
from sidestep.bench.report import Table
from sidestep.cli.preset_times import minutes_of, said_minutes
from sidestep.presets.catalogue import Preset

__all__ = ["plan_record", "plan_table"]

_COLUMNS = ["row", "data", "epochs", "changed", "runs done", "a run", "to go"]


def plan_record(
    presets: Sequence[Preset], plan: Plan, times: Mapping[str, Mapping[str, Mapping[str, float]]], here: float
) -> list[dict[str, Any]]:
    """Return for each row what a run of it is, how many are done, and how long it trains; nothing is run or written.

    Args:
        presets: the rows, with their own values.
        plan: budget, seeds, and the folder of the runs.
        times: preset -> budget -> its timed steps.
        here: seconds of this machine's matrix product.
    """
    found = []
    for full in presets:
        preset = full.for_budget(plan.budget)
        cells = [cell_record(preset, seed, plan) for seed in range(plan.seeds)]
        timed = None if plan.budget == "tiny" else times.get(preset.name, {}).get(plan.budget)  # tiny is on few images
        found.append(
            {
                "row": preset.row,
                "data": preset.data,
                "preset": preset.name,
                "epochs": preset.train["epochs"],
                "paper_epochs": full.train["epochs"],
                "changed": changed_words(preset, full),
                "seeds": plan.seeds,
                "done": sum(cell is not None and "failed" not in cell for cell in cells),
                "failed": sum(cell is not None and "failed" in cell for cell in cells),
                "minutes": None if timed is None else minutes_of(timed, here),
            }
        )
    return found


def plan_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of `plan_record`; where a step was timed, its last line has the sum of what is to go."""
    lines, total = [], 0.0
    for row in rows:
        done = f"{row['done']} of {row['seeds']}" + (f", {row['failed']} failed" if row["failed"] else "")
        left = row["seeds"] - row["done"]
        each = row["minutes"]
        total += left * (each or 0.0)
        times = ["-", "-"] if each is None else [said_minutes(each), said_minutes(left * each) if left else "-"]
        epochs = f"{row['epochs']} of {row['paper_epochs']}"
        lines.append([row["row"], row["data"], epochs, row["changed"] or "-", done, *times])
    if total:
        lines.append(["all", *[""] * 5, said_minutes(total)])
    return Table(title, _COLUMNS, lines)
