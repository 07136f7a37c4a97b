"""What `sidestep reproduce` would train: which rows, how much of the paper's length, what is done, and how long."""

from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.bench.paper_tables.accuracy import changed_words
from sidestep.bench.paper_tables.cells import Plan, cell_record
from sidestep.bench.report import Table
from sidestep.cli.preset_times import minutes_of, said_minutes
from sidestep.errors import SidestepError
from sidestep.presets.catalogue import Preset
from sidestep.rules import RULES
from sidestep.rules.record import rule_record
from sidestep.training.config import without_none
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
        steps = [_steps_done(preset, seed, plan) for seed, cell in enumerate(cells) if cell is None]
        begun = sum(min(1.0, step / timed["steps"]) for step in steps) if timed else 0.0
        minutes = None if timed is None else minutes_of(timed, here)
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
                "under_way": sum(step > 0 for step in steps),
                "failed": sum(cell is not None and "failed" in cell for cell in cells),
                "minutes": minutes,
                "minutes_to_go": None if minutes is None else (plan.seeds - len(finished) - begun) * minutes,
            }
        )
    return found


def _steps_done(preset: Preset, seed: int, plan: Plan) -> int:
    """Return how far the last checkpoint of an unfinished run has come, 0 where the row cannot go on from it."""
    folder = RunFolder(plan.folder(preset, seed))
    rule = without_none(rule_record(RULES[preset.rule](**preset.options)))
    try:
        config = folder.config()
        trained = {key: config["train"].get(key) for key in preset.train if key != "epochs"}
        ours = config["rule"] == rule and trained == {key: preset.train[key] for key in trained}
        step = state[1].get("step") if ours and (state := folder.open_state()) else 0
    except (SidestepError, LookupError, TypeError, AttributeError):  # not there, damaged, or not ours
        return 0
    return max(0, step) if type(step) is int else 0


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
