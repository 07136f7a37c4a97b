"""What `sidestep reproduce` would train: which rows, how much of the paper's length, what is done, and how long."""

from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.bench.paper_tables.accuracy import changed_words
from sidestep.bench.paper_tables.cells import Plan, cell_record
from sidestep.bench.report import Table
from sidestep.cli.preset_times import minutes_of, said_minutes
from sidestep.errors import CheckpointError
from sidestep.presets.catalogue import Preset
from sidestep.training.folder import RunFolder

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
        finished = [cell for cell in cells if cell is not None and "failed" not in cell]
        # a merged one is not here to be read again
        done = [cell for cell in finished if "merged" in cell or len(cell["accuracies"]) >= plan.readings(preset)]
        timed = None if plan.budget == "tiny" else times.get(preset.name, {}).get(plan.budget)  # tiny is on few images
        begun = [_share_done(preset, seed, plan, timed) for seed, cell in enumerate(cells) if cell not in finished]
        found.append(
            {
                "row": preset.row,
                "data": preset.data,
                "preset": preset.name,
                "epochs": preset.train["epochs"],
                "paper_epochs": full.train["epochs"],
                "changed": changed_words(preset, full),
                "seeds": plan.seeds,
                "done": len(done),
                "to_be_read": len(finished) - len(done),
                "under_way": sum(share > 0 for share in begun),
                "failed": sum(cell is not None and "failed" in cell for cell in cells),
                "minutes": None if timed is None else minutes_of(timed, here),
                "minutes_to_go": None if timed is None else sum(1 - share for share in begun) * minutes_of(timed, here),
            }
        )
    return found


def _share_done(preset: Preset, seed: int, plan: Plan, timed: Mapping[str, float] | None) -> float:
    """Return which share of an unfinished run its last checkpoint has; of a budget that is not timed, 1 % if any."""
    try:
        state = RunFolder(plan.folder(preset, seed)).open_state()
    except CheckpointError:
        return 0.0
    step = state[1].get("step", 0) if state else 0
    return min(1.0, step / timed["steps"]) if timed else 0.01 * (step > 0)


def plan_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of `plan_record`; its last line has the sum of what is to go of the rows that were timed."""
    lines = []
    for row in rows:
        more = {"to be read": row["to_be_read"], "under way": row["under_way"], "failed": row["failed"]}
        done = ", ".join([f"{row['done']} of {row['seeds']}", *(f"{n} {words}" for words, n in more.items() if n)])
        times = [said_minutes(minutes) if minutes else "-" for minutes in (row["minutes"], row["minutes_to_go"])]
        epochs = f"{row['epochs']} of {row['paper_epochs']}"
        lines.append([row["row"], row["data"], epochs, row["changed"] or "-", done, *times])
    timed = [row["minutes_to_go"] for row in rows if row["minutes_to_go"] is not None]
    if timed:
        to_go = said_minutes(sum(timed)) if sum(timed) else "-"
        lines.append(["all" if len(timed) == len(rows) else "all timed", *[""] * 5, to_go])
    return Table(title, _COLUMNS, lines)
