"""A comparison of rules: every run in a fresh process, round by round, each seed over all entries in rotating order."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sidestep.bench.comparison.entries import NOT_OF_ONE, Entry
from sidestep.bench.comparison.one_run import Budget, RunPlan, measure_counts, measure_run
from sidestep.bench.comparison.records import ComparisonFolder
from sidestep.bench.process import FAILED, run_in_process
from sidestep.data import DataSet, load
from sidestep.errors import InputError
from sidestep.measure import processor_name
from sidestep.rules.record import hyper_parameters
from sidestep.training import Compute
from sidestep.training.stopping import StopRequest
from sidestep.training.unit_modes import unsupported_reason
from sidestep.version import __version__

__all__ = ["Comparison", "ComparisonProgress", "check_race", "race_order", "run_comparison", "settings"]


@dataclass(frozen=True)
class Comparison:
    """What is compared, on what, and how long."""

    entries: tuple[Entry, ...]
    data: tuple[str, ...]
    budget: Budget
    seeds: int = 3
    seed: int = 0  # the first
    common: Mapping[str, Any] = field(default_factory=dict)  # training options of all entries
    every: int | None = None  # steps between two evaluations; None for an epoch
    device: str = "auto"
    data_dir: Path | None = None
    validation: float = 0.1
    image_size: int | None = None
    target: str | None = None  # column of a table to be predicted
    module: Callable[[], nn.Module] | None = None  # of the user's, in all entries; it must pass to other processes
    baselines: tuple[
        Entry, ...
    ] = ()  # that `sidestep.bench.comparison.same_net` has made, and that run beside the entries

    def load(self, name: str) -> DataSet:
        """Return one of the data sets, as every run has it."""
        return load(name, data_dir=self.data_dir, validation=self.validation, size=self.image_size, target=self.target)

    def plan(self, entry: Entry, data: str, seed: int, forward_equivalents: float | None = None) -> RunPlan:
        """Return what one run is made of."""
        return RunPlan(
            entry, data, seed, self.budget, self.common, self.every, self.device, self.data_dir, self.validation,
            self.image_size, forward_equivalents, self.module, self.target,
        )  # fmt: skip


class ComparisonProgress(Protocol):
    """Receives the events of a comparison; the command line draws a progress bar from them."""

    def begin(self, done: int, total: int, line: str) -> None:
        """A run begins, after `done` of `total`."""
        ...

    def progress(self, share: float, news: str) -> None:
        """The run has spent this share of its budget."""
        ...

    def end(self, record: Mapping[str, Any]) -> None:
        """The run has ended, one way or another."""
        ...


def race_order(race: Comparison) -> Iterator[tuple[int, str, Entry]]:
    """Yield (seed, data, entry) in the order of the runs: round by round, each started one entry further on.

    So what drifts in a machine (its temperature, its other work) meets all entries alike, and the runs of one seed, of
    which ratios are taken, lie close together.
    """
    for number in range(race.seeds):
        entries = (*race.entries, *race.baselines)
        at = number % len(entries)
        for data in race.data:
            for entry in (*entries[at:], *entries[:at]):
                yield race.seed + number, data, entry


def check_race(race: Comparison) -> None:
    """Raise InputError for what cannot work: numbers, devices, data that are not there or that an entry is not for."""
    if not 1 <= race.seeds <= 1000:
        raise InputError(f"--seeds must lie between 1 and 1000, got {race.seeds}; 3 give a spread")
    if race.every is not None and race.every < 1:
        raise InputError(f"--every counts steps between two evaluations, so it must be 1 or more, got {race.every}")
    if not race.data or len(set(race.data)) < len(race.data):
        raise InputError(f"--data must name data sets, each once, got {', '.join(race.data) or 'none'}")
    _check_options(race, Compute.find(race.device, "auto"))
    for name in race.data:
        for entry in race.entries:
            if entry.data not in (None, name):
                raise InputError(
                    f"{entry.label} is a preset for {entry.data}, not for {name}; give --data {entry.data}"
                )
        found = race.load(name)
        if found.targets != "classes":
            raise InputError(
                f"bench counts right answers, and the targets of {found.name} are {found.targets}: give --target a "
                "column of few texts or whole numbers, or train each rule by `sidestep train`"
            )
        if not len(found.validation):
            raise InputError(
                f"accuracy over time is read on a validation split, and {name} has none; give --validation"
            )


def _check_options(race: Comparison, compute: Compute) -> None:
    for entry in race.entries:
        options = entry.training(race.common)
        reason = unsupported_reason(entry.make(), options.units, compute.device)
        if reason:
            raise InputError(f"{entry.label}: {reason}")
        planned = options.decay != "none" or options.warmup
        if planned and {race.budget.epochs, race.budget.steps, race.budget.forward_passes} == {None}:
            raise InputError(
                f"{entry.label}: with decay or warmup the learning rate depends on the number of steps, which a budget "
                "in seconds does not tell; give --epochs, --steps or --forward-passes, too"
            )


def settings(race: Comparison) -> dict[str, Any]:
    """Return everything that a comparison's numbers depend on, but for the seeds."""
    device = Compute.find(race.device, "auto").device
    entries, budget = {}, dataclasses.asdict(race.budget)
    if race.budget.steps is None:  # as comparisons say that were begun when there was no such budget
        del budget["steps"]
    for entry in race.entries:
        options = dataclasses.asdict(entry.training(race.common))
        trained = {key: value for key, value in options.items() if key not in NOT_OF_ONE}
        entries[entry.label] = {"rule": entry.rule, **hyper_parameters(entry.make()), "training": trained}
    return {
        "rules": entries,
        "data": list(race.data),
        "budget": budget,
        "every": race.every,
        "validation": race.validation,
        "image_size": race.image_size,
        **({"target": race.target} if race.target else {}),
        **({"module": str(race.module)} if race.module else {}),
        "machine": {"device": str(device), "processor": processor_name(device), "threads": torch.get_num_threads()},
        "versions": {"sidestep": __version__, "torch": torch.__version__},
    }


def run_comparison(
    race: Comparison, folder: ComparisonFolder, watch: ComparisonProgress, stop: StopRequest, retry: bool = False
) -> None:
    """Take all runs that are not done, and keep their records in the folder.

    Args:
        race: what is compared.
        folder: where it is kept; its runs are not run again.
        watch: told of the progress.
        stop: asked while a run goes on, which is then lost; all others are kept.
        retry: whether runs that failed are tried again.

    Raises:
        Stopped: when a stop was requested.
    """
    order, done = list(race_order(race)), folder.done(retry)
    counts = {
        (record["entry"], record["data"]): record["counts"]
        for record in folder.records if "counts" in record and FAILED not in record["counts"]
    }  # fmt: skip
    threads = torch.get_num_threads()
    for number, (seed, data, entry) in enumerate(order):
        if (entry.label, data, seed) in done:
            continue
        watch.begin(number, len(order), f"{entry.label} on {data}, seed {seed}")
        counted = counts.get((entry.label, data)) or _counted(race.plan(entry, data, seed), stop, threads)
        if FAILED not in counted:  # the next seed tries again
            counts[entry.label, data] = counted
        plan = race.plan(entry, data, seed, counted.get("forward_equivalents"))
        found = run_in_process(measure_run, plan, lambda news: watch.progress(*news), stop, threads)
        kind = {"rule": entry.kind, "entry": entry.label, "data": data, "seed": seed, "place": number}
        record = {**kind, **found, **({} if FAILED in found and FAILED in counted else {"counts": counted})}
        folder.add(record)
        watch.end(record)


def _counted(plan: RunPlan, stop: StopRequest, threads: int) -> dict[str, Any]:
    return run_in_process(measure_counts, plan, lambda news: None, stop, threads)
