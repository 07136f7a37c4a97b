"""The runs of a suite, in order, and what each is made of: trials of a search on validation, then seeds at the best."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidestep.bench.suite.nets import Fitted, hidden_of
from sidestep.noise import Noise
from sidestep.presets.matched import NETS, TRAIN, Among, Between, MatchedRule
from sidestep.presets.matched_budgets import SuiteBudget

__all__ = ["SEARCH_SEED", "Cell", "Work", "best_trial", "counts_of", "drawn", "search_of", "seeds_of"]

SEARCH_SEED = 1000  # of every trial, and of no run whose test accuracy counts
_PLACES = 4  # digits of a drawn number, so that it can be typed


@dataclass(frozen=True)
class Cell:
    """A row of the suite on a net and data."""

    row: MatchedRule
    net: str
    data: str
    budget_name: str
    budget: SuiteBudget
    fit: Fitted


@dataclass(frozen=True)
class Work:
    """One run."""

    cell: Cell
    kind: str  # trial, seed, or counts: what a step takes, and no training
    number: int
    options: Mapping[str, Any]  # what the search sets; the rest is the cell's
    images: int | None
    epochs: int
    key: str = field(init=False)  # of all that the result depends on

    def __post_init__(self) -> None:
        cell = self.cell
        widths = hidden_of(NETS[cell.net], cell.data) if NETS[cell.net].kind == "conv" else ()
        net = " ".join(map(str, (cell.net, *widths)))  # a module is a function of the net, the data and the rule
        asked = [cell.row.rule, net, cell.data, dict(cell.fit.options), dict(self.options), self.kind, self.number]
        asked += [cell.row.reading] if cell.row.reading else []
        lengths = [self.images, self.epochs, cell.budget.test_images, {**TRAIN, **cell.budget.train}]
        text = json.dumps([asked, lengths], sort_keys=True, default=list)
        object.__setattr__(self, "key", hashlib.sha256(text.encode()).hexdigest()[:16])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return SEARCH_SEED if self.kind == "trial" else self.number

    def record(self) -> dict[str, Any]:
        """Return what the run is, for its record."""
        cell = self.cell
        place = {"kind": self.kind, "row": cell.row.name, "net": cell.net, "data": cell.data, "number": self.number}
        lengths = {"budget": cell.budget_name, "images": self.images, "epochs": self.epochs, "seed": self.seed}
        options: dict[str, Any] = {"searched": dict(self.options), "differs": list(cell.fit.differs)}
        options |= {"reading": cell.row.reading} if cell.row.reading else {}
        return {**place, **lengths, **options, "key": self.key}

    @property
    def words(self) -> str:
        """What to call it."""
        return f"{self.cell.row.name} on {self.cell.data}, {self.cell.net}, {self.kind} {self.number}"


def drawn(row: MatchedRule, trial: int) -> dict[str, Any]:
    """Return what a trial sets: nothing in trial 1, the row's own values; then what a seeded random search draws.

    >>> from sidestep.presets.matched import MATCHED
    >>> drawn(MATCHED[1], 1), drawn(MATCHED[1], 2) == drawn(MATCHED[1], 2)
    ({}, True)
    """
    if trial == 1:
        return {}
    found: dict[str, Any] = {}
    for name, searched in row.search.items():
        share = float(Noise(0).stream(f"suite: {row.name} {name}").at(trial).uniform(1).item())
        if isinstance(searched, Between):
            low, high = math.log(searched.low), math.log(searched.high)
            found[name] = float(f"{math.exp(low + share * (high - low)):.{_PLACES}g}")
        elif isinstance(searched, Among):
            found[name] = searched.values[min(len(searched.values) - 1, int(share * len(searched.values)))]
    return found


def search_of(cell: Cell, trials: int) -> Iterator[Work]:
    """Yield the trials of a cell's search, from 1 on."""
    for trial in range(1, trials + 1):
        yield Work(cell, "trial", trial, drawn(cell.row, trial), cell.budget.search_images, cell.budget.search_epochs)


def seeds_of(cell: Cell, options: Mapping[str, Any], seeds: int) -> Iterator[Work]:
    """Yield the runs of a cell at the options that its search has chosen."""
    for seed in range(seeds):
        yield Work(cell, "seed", seed, options, cell.budget.images, cell.budget.epochs)


def counts_of(cell: Cell) -> Work:
    """Return the work of counting what a step takes, by the cell's own values."""
    return Work(cell, "counts", 0, {}, cell.budget.images, cell.budget.epochs)


def best_trial(records: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the trial of the highest validation accuracy, the earliest of several; None where all have failed."""
    found = [record for record in records if "validation" in record]
    return max(found, key=lambda record: (record["validation"], -record["number"]), default=None)
