"""What a suite would run: for each row its ranges, how many of its runs are done, or why it has none."""

from pathlib import Path

from sidestep.bench.report import Table
from sidestep.bench.suite.nets import NoFit
from sidestep.bench.suite.records import SuiteRecords
from sidestep.bench.suite.suite import Suite, file_of
from sidestep.bench.suite.work import best_trial, search_of, seeds_of
from sidestep.data import names
from sidestep.errors import InputError
from sidestep.presets.matched import NETS, Among, Between
from sidestep.presets.matched_budgets import suite_budget
from sidestep.wording import suggestion

__all__ = ["plan_tables"]


def plan_tables(suite: Suite) -> list[Table]:
    """Return a table for each net on each data set; no data are read.

    Raises:
        InputError: for data that are neither known by name nor there.
    """
    known = [each.name for each in names()]
    for data in suite.data:
        if data not in known and not Path(data).expanduser().exists():
            said = suggestion(data, known, f"there are {', '.join(known)}, and files and folders of yours")
            raise InputError(f"unknown data set {data!r}: {said}")
    return [_plan(suite, data, net) for data in suite.data for net in suite.nets]


def _plan(suite: Suite, data: str, net: str) -> Table:
    budget = suite_budget(suite.budget, data, NETS[net].kind)
    records = SuiteRecords(file_of(suite.out, data, net), {})
    lines = []
    for row, cell in suite.cells(data, (), net):
        if isinstance(cell, NoFit):
            lines.append([row.name, "-", "-", f"does not fit: {cell.why}"])
            continue
        if row.counted:
            lines.append([row.name, "-", "-", "counted, not trained"])
            continue
        trials = [run for work in search_of(cell, suite.trials) if (run := records.get(work.key)) is not None]
        best = best_trial(trials)
        wanted = seeds_of(cell, best["searched"], suite.seeds) if best else ()
        seeds = sum(records.get(work.key) is not None for work in wanted)
        ranges = ", ".join(f"{name} {_range(searched)}" for name, searched in row.search.items())
        lines.append([row.name, f"{len(trials)} of {suite.trials}", f"{seeds} of {suite.seeds}", ranges])
    title = (
        f"{net} on {data}, {suite.budget}: trials of {budget.search_epochs} x {_images(budget.search_images)}, "
        f"seeds of {budget.epochs} x {_images(budget.images)} images"
    )
    return Table(title, ["row", "trials done", "seeds done", "searched"], lines)


def _images(number: int | None) -> str:
    return "all" if number is None else f"{number:,}"


def _range(searched: Between | Among) -> str:
    if isinstance(searched, Between):
        return f"{searched.low:g} to {searched.high:g}"
    return " or ".join(dict.fromkeys(map(str, searched.values)))
