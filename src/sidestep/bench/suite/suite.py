"""A suite from its rows, nets and data to records: what fits, what is still to be run, and the running of it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sidestep.bench.suite.nets import NoFit, fitted
from sidestep.bench.suite.one_run import run_work
from sidestep.bench.suite.records import SuiteRecords
from sidestep.bench.suite.work import Cell, Work, best_trial, counts_of, search_of, seeds_of
from sidestep.data import DataSet, load
from sidestep.errors import InputError
from sidestep.presets.matched import MATCHED, NETS, MatchedRule
from sidestep.presets.matched_budgets import suite_budget
from sidestep.training.lock import only_writer
from sidestep.training.stopping import StopRequest
from sidestep.wording import suggestion

__all__ = ["Suite", "SuiteWatch", "chosen_rows", "file_of", "run_suite"]


class SuiteWatch(Protocol):
    """What is told of a suite's course."""

    def begin(self, words: str) -> None:
        """A run begins."""

    def end(self, words: str, record: dict[str, Any]) -> None:
        """A run has ended."""


@dataclass(frozen=True)
class Suite:
    """What is asked for."""

    data: tuple[str, ...]
    nets: tuple[str, ...]
    rows: tuple[MatchedRule, ...]
    seeds: int
    trials: int
    budget: str
    out: Path
    data_dir: Path | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in self.nets:
            if name not in NETS:
                said = suggestion(name, NETS, f"there are: {', '.join(NETS)}")
                raise InputError(f"unknown net {name!r}: {said}")
        for name, value in {"--seeds": self.seeds, "--trials": self.trials}.items():
            if not 1 <= value <= 1000:
                raise InputError(f"{name} must lie between 1 and 1000, got {value}")

    def cells(
        self, data: str, shape: tuple[int, ...], net: str
    ) -> Iterator[tuple[MatchedRule, Cell] | tuple[MatchedRule, NoFit]]:
        """Yield every row with its cell, or why there is none, for a net on a data set of that name and shape."""
        budget = suite_budget(self.budget, data, NETS[net].kind)
        for row in self.rows:
            fit = fitted(row, NETS[net], data, shape)
            if isinstance(fit, NoFit):
                yield row, fit
            else:
                yield row, Cell(row, net, data, self.budget, budget, fit)

    def load(self, name: str) -> DataSet:
        """Return a data set with images or rows of numbers, and classes.

        Raises:
            InputError: for other targets, or without a validation or test split.
        """
        found = load(name, data_dir=self.data_dir, progress=False)
        if found.targets != "classes":
            raise InputError(f"the suite counts right answers, so its targets are classes; {name} has {found.targets}")
        if not len(found.validation) or not found.has_test:
            raise InputError(f"a search is made on a validation split, and test is read once; {name} lacks one of them")
        return found


def chosen_rows(names: Sequence[str]) -> tuple[MatchedRule, ...]:
    """Return the rows of the suite by their names, in the suite's order; all of them for none, or for `all`.

    Raises:
        InputError: for an unknown name.

    >>> [row.name for row in chosen_rows(["backprop", "linear"])]
    ['linear', 'backprop']
    """
    known = [row.name for row in MATCHED]
    for name in names:
        if name not in [*known, "all"]:
            said = suggestion(name, known, f"there are: all, {', '.join(known)}")
            raise InputError(f"unknown row of the suite {name!r}: {said}")
    return tuple(row for row in MATCHED if not names or "all" in names or row.name in names)


def file_of(out: Path, data: str, net: str) -> Path:
    """Return where the runs of a net on a data set are kept."""
    return out / f"{data}-{net}" / "runs.jsonl"


def run_suite(
    suite: Suite, environment: dict[str, Any], watch: SuiteWatch, stop: StopRequest, retry: bool = False
) -> None:
    """Take all runs that are not done: row by row the search, then the seeds at what it has chosen.

    Raises:
        Stopped: when a stop was requested; the run under way is lost, and all others are kept.
        BusyError: if another process is at the same net and data.
    """
    sets = [suite.load(name) for name in suite.data]  # all first: one that is missing shows now, and not after hours
    for data in sets:
        for net in suite.nets:
            file = file_of(suite.out, data.name, net)
            with _folder(file.parent):
                records = SuiteRecords(file, environment)
                for _, cell in suite.cells(data.name, data.image_shape, net):
                    if isinstance(cell, Cell):
                        _run_cell(suite, cell, data, records, watch, stop, retry)


def _run_cell(  # long: a cell, its data, and who is told
    suite: Suite, cell: Cell, data: DataSet, records: SuiteRecords, watch: SuiteWatch, stop: StopRequest, retry: bool
) -> None:
    def done(work: Work) -> dict[str, Any]:
        found = records.get(work.key, retry)
        if found is not None:
            return dict(found)
        watch.begin(work.words)
        record = records.add(run_work(work, data, suite.device, stop))
        watch.end(work.words, record)
        return record

    if cell.row.counted:
        done(counts_of(cell))
        return
    best = best_trial([done(work) for work in search_of(cell, suite.trials)])
    if best is not None:
        for work in seeds_of(cell, best["searched"], suite.seeds):
            done(work)


def _folder(path: Path) -> AbstractContextManager[Any]:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {path} cannot be made: {error.strerror}; choose another --out") from error
    return only_writer(path)
