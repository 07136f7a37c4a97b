"""`sidestep bench`: what do other rules gain over back-propagation, and what do they cost? One table, one command."""

import dataclasses
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn

from sidestep.bench.comparison.entries import NOT_OF_ONE, find_baseline, read_entries, with_learning_rate
from sidestep.bench.comparison.numbers import Baseline, baseline_of, score
from sidestep.bench.comparison.one_run import Budget
from sidestep.bench.comparison.page import Report, write_report
from sidestep.bench.comparison.records import ComparisonFolder
from sidestep.bench.comparison.rounds import Comparison, check_race, run_comparison, settings
from sidestep.bench.comparison.same_net import with_baselines
from sidestep.bench.paper_tables.reproduce import folder_for_tables
from sidestep.bench.process import FAILED
from sidestep.cli.bench_link import LinkRun, read_link
from sidestep.cli.options import DataOptions, Repeated, all_words
from sidestep.cli.output import (
    PlainColumn,
    bar_of,
    default_data_dir,
    fail,
    show,
    show_json,
    show_line,
    show_table,
)
from sidestep.cli.parse import parsed_groups
from sidestep.cli.suite import suite_command
from sidestep.cli.training_options import takes
from sidestep.cli.user_modules import ModuleOfFile
from sidestep.errors import InputError
from sidestep.training import Options, Stopped
from sidestep.training.lock import only_writer
from sidestep.training.stopping import stop_on_signals

__all__ = ["bench_command"]

SAME_NET = "same-net"
_SECONDS = 300.0  # of training per run, where only --to says when to stop
_OF_TRAINING = frozenset(field.name for field in dataclasses.fields(Options)) - NOT_OF_ONE  # what entries can differ in


_ABOUT = """\
Train rules side by side and set what they reach beside what they take: accuracy, seconds, memory, operations,
bytes exchanged, with ratios to back-propagation on the same net. Every run has a fresh process; seed by seed all
entries have their turn. Stop it when you like: the same command goes on, and finished runs are not run again.
"""


@takes("bench", Options, unset=True)
@dataclass(frozen=True)
class BenchOptions:
    """How often, how long and how each entry trains."""

    seeds: int = 3
    """How many seeds, and so rounds."""
    seed: int = 0
    """The first seed."""
    epochs: int | None = None
    """Passes over the training split, at most."""
    steps: int | None = None
    """Training steps per run, at most."""
    seconds: float | None = None
    """Seconds of training per run, at most. Default with --to alone: 300."""
    forward_passes: float | None = None
    """Forward passes over the training split, or as many operations, at most."""
    to: float | None = None
    """Stop a run when its validation accuracy, measured once an epoch, reaches this share, e.g. 0.96."""
    every: int | None = None
    """Steps between two evaluations. Default: an epoch."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    out: Path = Path("runs/bench")
    """Folder of bench.jsonl, bench.md and bench.html."""
    retry: bool = False
    """Run again what failed."""
    overwrite: bool = False
    """Remove the results of another comparison in --out."""
    json: bool = False
    """Print the records as one JSON object on the last line of standard output."""
    link: str | None = None
    """Instead of training, time steps of several ranks over such a link: bits a second, and the round trip, e.g.
    1Mbit,50ms. Needs Linux and root."""
    ranks: Repeated = ()
    """With --link: how many ranks, with commas between several numbers. Default: 2."""


@takes("bench", DataOptions)
@dataclass(frozen=True)
class BenchData:
    """Which images to train on."""

    data: Repeated = ()
    """Data sets (names, .npz files, tables with --target, image folders), with spaces or commas between them. Default:
    digits."""


@dataclass(frozen=True)
class BenchRules:
    """What is compared."""

    rules: Repeated = ()
    """Entries RULE or RULE:option=value,option=value, with commas or spaces between them; all (the default) for every
    rule with its defaults; a preset's name for its options. Options are the rule's, or batch, decay, ..."""
    baseline: str = SAME_NET
    """What ratios are taken to: same-net, for every entry back-propagation on the net that it builds, by the same
    options; or one entry for all, which --rules names too."""
    learning_rate: float | None = None
    """Of all entries that give none of their own, e.g. spsa:learning_rate=0.01. Default: each rule's."""
    module: str | None = None
    """FILE.py:NAME, a class or function that makes the image path or stages of all entries."""


def bench_command(arguments: list[str]) -> None:
    """Parse the options, run what is not done yet, and print the table."""
    if any(word.partition("=")[0] == "--suite" for word in arguments):
        suite_command(arguments)
        return
    groups = {"run": (BenchOptions, None), "data": (BenchData, None), "rule": (BenchRules, None)}
    run, images, rules = parsed_groups(groups, "sidestep bench", arguments, _ABOUT)
    _asked(run, images, rules)(shlex.join(["sidestep", "bench", *arguments]))


def _asked(run: Any, images: Any, rules: BenchRules) -> "_Begin | LinkRun":
    own = {field.name for field in dataclasses.fields(BenchOptions)} & _OF_TRAINING
    common = {name: getattr(run, name) for name in sorted(own) if getattr(run, name) is not None}
    seconds = run.seconds
    if run.link is None and run.ranks:
        raise InputError("--ranks says how many processes share a step over a link: give --link 1Mbit,50ms, too")
    if run.to is not None and run.epochs is None and run.steps is None and run.forward_passes is None:
        seconds = seconds or _SECONDS
    if run.link is not None and run.steps is not None and run.steps < 1:
        raise InputError(
            f"--link times 1 step or more of every entry, got --steps {run.steps}: leave it out, or give 10"
        )
    steps = run.steps or (1 if run.link else None)  # no run over a link is trained to its end
    entries = read_entries(all_words(rules.rules) or ("all",), common)
    if rules.learning_rate is not None:
        entries = with_learning_rate(entries, rules.learning_rate)
    race = Comparison(
        tuple(entries), _names(all_words(images.data) or ("digits",)),
        Budget(run.epochs, seconds, run.forward_passes, run.to, steps), run.seeds, run.seed, common, run.every,
        run.device, images.data_dir or default_data_dir(), images.validation, images.image_size,
        images.target, ModuleOfFile(rules.module) if rules.module else None,
    )  # fmt: skip
    if run.link is not None:
        if rules.baseline != SAME_NET:
            raise InputError(f"--link takes ratios to back-propagation on the same net, not to {rules.baseline}: leave "
                             "--baseline out")  # fmt: skip
        return read_link(run, race, BenchOptions())
    chosen = None if rules.baseline == SAME_NET else find_baseline(entries, rules.baseline).label
    return _Begin(race, chosen, run.out, run.retry, run.overwrite, run.json)


class _Begin:
    """A comparison that is ready to begin, once it is known what was typed."""

    def __init__(  # long: what was asked for
        self, race: Comparison, baseline: str | None, out: Path, retry: bool, overwrite: bool, json: bool
    ) -> None:
        self.race, self.baseline, self.out = race, baseline, out
        self.retry, self.overwrite, self.json = retry, overwrite, json

    def __call__(self, command: str) -> None:
        check_race(self.race)
        folder_for_tables(self.out)
        try:
            with only_writer(self.out):
                self._run(command)
        except KeyboardInterrupt:  # a second one, or not while a run is trained
            fail(f"stopped at once; finished runs are kept in {self.out}. {_go_on(command)}", 130)

    def _run(self, command: str) -> None:
        baseline: Baseline | None = self.baseline
        if baseline is None:
            self.race, baseline = with_baselines(self.race)
        asked = settings(self.race)
        folder = ComparisonFolder(self.out, asked, self.overwrite)
        stopped: Stopped | None = None
        with _RaceBar() as bar, stop_on_signals() as stop:
            try:
                run_comparison(self.race, folder, bar, stop, self.retry)
            except Stopped as error:
                stopped = error
        report = Report(self.race, folder.records, baseline, command)
        write_report(report, folder, asked)
        if stopped is not None:
            fail(
                f"stopped; finished runs are kept in {self.out} ({len(report.records)}), the one under way is lost. "
                f"{_go_on(command)}",
                128 + stopped.signal_number,
            )
        self._print(report)

    def _print(self, report: Report) -> None:
        if self.json:
            baselines = {label: baseline_of(report.baseline, label) for label in report.labels}
            found = {"command": report.command, "said": report.said, "baselines": baselines, "runs": report.records}
            show_json(found)
            return
        for data in self.race.data:
            for table in report.tables[data]:
                show_table(table.title, table.columns, table.rows)
                show("")
            for line in report.said[data]:
                show(line)
            show("")
        show(*report.variants)
        show(f"written: {self.out / 'bench.md'}, bench.html, bench.jsonl")


def _go_on(command: str) -> str:
    return f"Go on with: {command.replace(' --overwrite', '')}"


class _RaceBar(AbstractContextManager["_RaceBar"]):
    """Draws two bars on standard error, all runs and the one under way; prints nothing where that is no terminal."""

    def __init__(self) -> None:
        self._bar = bar_of(
            PlainColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            PlainColumn("{task.fields[news]}"),
        )  # fmt: skip
        self._runs = self._bar.add_task("runs", total=None, news="")
        self._run = self._bar.add_task("", total=100, news="")

    def __enter__(self) -> "_RaceBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, done: int, total: int, line: str) -> None:
        """Show which run it is."""
        self._bar.update(self._runs, completed=done, total=total)
        self._bar.reset(self._run, description=line, news="starting")

    def progress(self, share: float, news: str) -> None:
        """Move the run's bar."""
        self._bar.update(self._run, completed=round(100 * share), news=news)

    def end(self, record: Mapping[str, Any]) -> None:
        """Print a line about the run above the bars."""
        self._bar.advance(self._runs)
        found = record[FAILED]["why"] if FAILED in record else f"{score(record):.2%} in {record['seconds']:.1f} s"
        show_line(f"{record['entry']} on {record['data']}, seed {record['seed']}: {found}")


def _names(words: tuple[str, ...]) -> tuple[str, ...]:
    parts = [part.strip() for word in words for part in word.split(",")]
    found = tuple(name for part in parts for name in ([part] if Path(part).exists() else part.split()) if name)
    if not found:
        raise InputError("--data names no data set; `sidestep data` lists them")
    return found
