"""The tables of a suite: a row for each rule on a net, with both errors, and its difference to back-propagation."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sidestep.bench.process import FAILED
from sidestep.bench.report import Table, share
from sidestep.bench.studies.blocks import mean_and_error
from sidestep.bench.suite.errors import Difference, difference
from sidestep.bench.suite.nets import NoFit
from sidestep.bench.suite.one_run import unpacked
from sidestep.bench.suite.records import SuiteRecords
from sidestep.bench.suite.suite import Suite
from sidestep.bench.suite.work import Cell, best_trial, counts_of, search_of, seeds_of
from sidestep.presets.matched import BASELINE, MatchedRule
from sidestep.wording import counted

__all__ = ["COLUMNS", "RowRuns", "cautions", "fit_table", "rows_of", "suite_table", "verdict"]

COLUMNS = ["row", "matched", "chosen of the search", "seeds", "test % (seeds; test set)",
           f"less {BASELINE}, points (95 %)", "p", "validation %", "forward passes a step", "processor s a run",
           "step's tensors, MiB", "parameters"]  # fmt: skip


_FAR_APART = 3.0  # points between the best and the worst seed


@dataclass(frozen=True)
class RowRuns:
    """What is there of a row on a net."""

    row: MatchedRule
    cell: Cell | None
    why: str = ""  # there is no cell
    trials: tuple[Mapping[str, Any], ...] = ()
    runs: tuple[Mapping[str, Any], ...] = ()  # of the seeds, without those that failed
    failed: tuple[Mapping[str, Any], ...] = ()

    @property
    def chosen(self) -> Mapping[str, Any]:
        """What the search has set."""
        best = best_trial(list(self.trials))
        return best["searched"] if best else {}

    def right(self) -> dict[int, Tensor]:
        """Return seed -> which test images are right."""
        return {run["number"]: unpacked(run["right"], run["test_images"]) for run in self.runs if "right" in run}


def rows_of(suite: Suite, data: str, net: str, records: SuiteRecords) -> Iterator[RowRuns]:
    """Yield what is there of every row; the seeds of a search that is not at its end are not there yet."""
    for row, cell in suite.cells(data, (), net):
        if isinstance(cell, NoFit):
            yield RowRuns(row, None, cell.why)
            continue
        if row.counted:
            counts = records.get(counts_of(cell).key)
            yield RowRuns(row, cell, runs=() if counts is None else (counts,))
            continue
        trials = [records.get(work.key) for work in search_of(cell, suite.trials)]
        best = best_trial([trial for trial in trials if trial is not None])
        whole = tuple(trial for trial in trials if trial is not None)
        if best is None or len(whole) < suite.trials:
            yield RowRuns(row, cell, trials=whole)
            continue
        found = [records.get(work.key) for work in seeds_of(cell, best["searched"], suite.seeds)]
        runs = tuple(run for run in found if run is not None and FAILED not in run)
        yield RowRuns(row, cell, "", whole, runs, tuple(run for run in found if run is not None and FAILED in run))


def differences(rows: Sequence[RowRuns]) -> dict[str, Difference]:
    """Return row -> its difference to the baseline over the seeds that both have."""
    base = next((row.right() for row in rows if row.row.name == BASELINE), {})
    found = {}
    for row in rows:
        right = row.right()
        seeds = [seed for seed in right if seed in base]
        if seeds and row.row.name != BASELINE:
            found[row.row.name] = difference([base[seed] for seed in seeds], [right[seed] for seed in seeds])
    return found


def suite_table(title: str, rows: Sequence[RowRuns]) -> Table:
    """Return the table of a net on a data set, of the rows that have a run."""
    found = differences(rows)
    return Table(title, COLUMNS, [_line(row, found.get(row.row.name)) for row in rows if row.runs])


def fit_table(title: str, rows: Sequence[RowRuns]) -> Table:
    """Return the table of the rows that have no run: which do not fit and why, which failed, which are not run yet."""
    found: dict[str, list[str]] = {}  # why -> the rows of which it is true
    for row in rows:
        if row.runs:
            continue
        failures = [*row.failed, *(trial for trial in row.trials if FAILED in trial)]
        if row.cell is None:
            why = f"does not fit: {row.why}"
        elif failures:
            why = f"failed: {failures[0][FAILED]['why']}"
        elif row.row.counted:
            why = "not counted yet"
        else:
            why = f"not run yet ({counted(len(row.trials), 'trial')} of its search)"
        found.setdefault(why, []).append(row.row.name)
    return Table(title, ["rows", "why not above"], [[", ".join(names), why] for why, names in found.items()])


def verdict(rows: Sequence[RowRuns]) -> str:
    """Return a sentence: which rows are above back-propagation on that net, level with it, and below."""
    found = differences(rows)
    above = [name for name, each in found.items() if each.low > 0]
    level = [name for name, each in found.items() if each.level]
    below = [name for name, each in found.items() if each.high < 0]
    parts = (("above it", above), ("level with it", level), ("below it", below))
    said = "; ".join(f"{words}: {', '.join(names)}" for words, names in parts if names)
    return f"Beside {BASELINE} on the same net, by the 95 % interval over seeds and images: {said}." if said else ""


def cautions(rows: Sequence[RowRuns]) -> str:
    """Return what to keep in mind: seeds of the baseline that are far apart, searches that chose an end of a range."""
    said = []
    tests = [100 * run["test"] for row in rows if row.row.name == BASELINE for run in row.runs]
    if tests and max(tests) - min(tests) > _FAR_APART:
        said.append(
            f"The seeds of {BASELINE} have from {min(tests):.1f} to {max(tests):.1f} %: a row above their mean may be "
            "level with their best."
        )
    ends = {row.row.name: _at_ends(row) for row in rows if row.runs}
    named = [f"{name} ({', '.join(found)})" for name, found in ends.items() if found]
    if named:
        said.append(f"At an end of what was searched, so that better may lie beyond: {'; '.join(named)}.")
    return " ".join(said)


def _at_ends(row: RowRuns) -> list[str]:
    return [name for name, value in row.chosen.items() if row.row.search[name].at_end(value)]


def _line(found: RowRuns, beside: Difference | None) -> list[str]:
    if found.row.counted:
        return [found.row.name, *["-"] * 3, found.row.counted, *["-"] * 3, *_counts(found.runs[0], None)]
    runs, first = found.runs, next((run for run in found.runs if run["number"] == 0), found.runs[0])
    tests = [run["test"] for run in runs]
    differs = ", ".join(found.cell.fit.differs) if found.cell else ""
    return [
        found.row.name,
        f"all but: {differs}" if differs else "all",
        ", ".join(f"{name} {_value(value)}" for name, value in found.chosen.items()) or "its own values",
        str(len(runs)) + (f" ({len(found.failed)} failed)" if found.failed else ""),
        share(*mean_and_error(tests), images=first["test_images"]),
        "" if beside is None else f"{100 * beside.mean:+.2f} ({100 * beside.low:+.2f} to {100 * beside.high:+.2f})",
        "" if beside is None else "below 0.001" if beside.p < 0.001 else f"{beside.p:.3f}",
        f"{100 * statistics.mean(run['validation'] for run in runs):.2f}",
        *_counts(first, statistics.mean(run["processor_seconds"] for run in runs)),
    ]


def _counts(run: Mapping[str, Any], seconds: float | None) -> list[str]:
    """The last columns: what a step takes, and a run."""
    return [
        f"{run['forward_equivalents']:.1f}" if run.get("forward_equivalents") else "-",
        "-" if seconds is None else f"{seconds:.0f}",
        f"{run['allocated_bytes'] / 2**20:.1f}" if "allocated_bytes" in run else "-",
        f"{run['parameters']:,}" if "parameters" in run else "-",
    ]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
