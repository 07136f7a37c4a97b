"""`sidestep bench`: what do other rules gain over back-propagation, and what do they cost? One table, one command."""

import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from sidestep.bench.comparison.entries import find_baseline, read_entries, with_learning_rate
from sidestep.bench.comparison.numbers import Baseline, baseline_of, score
from sidestep.bench.comparison.one_run import Budget
from sidestep.bench.comparison.page import Report, write_report
from sidestep.bench.comparison.records import ComparisonFolder
from sidestep.bench.comparison.rounds import Comparison, check_race, run_comparison, settings
from sidestep.bench.comparison.same_net import with_baselines
from sidestep.bench.paper_tables.reproduce import folder_for_tables
from sidestep.bench.process import FAILED
from sidestep.cli.options import Repeated, all_words
from sidestep.cli.output import (
    PlainColumn,
    default_data_dir,
    error_console,
    fail,
    show,
    show_json,
    show_line,
    show_table,
)
from sidestep.cli.parse import parsed
from sidestep.cli.user_modules import ModuleOfFile
from sidestep.errors import InputError
from sidestep.training import Stopped
from sidestep.training.lock import only_writer
from sidestep.training.stopping import stop_on_signals

__all__ = ["bench_command"]

SAME_NET = "same-net"
_SECONDS = 300.0  # of training per run, where only --to says when to stop


def bench_command(arguments: list[str]) -> None:
    """Parse the options, run what is not done yet, and print the table."""
    begin = parsed(_bench, "sidestep bench", arguments)
    begin(shlex.join(["sidestep", "bench", *arguments]))


def _bench(  # long: the options of the command
    *,
    rules: Repeated = (),
    data: Repeated = (),
    seeds: int = 3,
    seed: int = 0,
    epochs: int | None = None,
    seconds: float | None = None,
    forward_passes: float | None = None,
    to: float | None = None,
    every: int | None = None,
    baseline: str = SAME_NET,
    module: str | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    augment: Literal["none", "flip", "flip-crop", "shift"] | None = None,
    decay: Literal["none", "cosine", "linear"] | None = None,
    warmup: float | None = None,
    average: float | None = None,
    precision: Literal["auto", "float32", "bfloat16"] | None = None,
    validation: float = 0.1,
    image_size: int | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    out: Path = Path("runs/bench"),
    retry: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> "_Begin":
    """Train rules side by side and set what they reach beside what they take: accuracy, seconds, memory, operations,
    bytes exchanged, with ratios to back-propagation on the same net. Every run has a fresh process; seed by seed all
    entries have their turn. Stop it when you like: the same command goes on, and finished runs are not run again.

    Args:
        rules: Entries RULE or RULE:option=value,option=value, with commas or spaces between them; all (the default) for
            every rule with its defaults; a preset's name for its options. Options are the rule's, or batch, decay, ...
        data: Data sets (names, .npz files, image folders), with spaces or commas between them. Default: digits.
        seeds: How many seeds, and so rounds.
        seed: The first seed.
        epochs: Passes over the training split, at most.
        seconds: Seconds of training per run, at most. Default with --to alone: 300.
        forward_passes: Forward passes over the training split, or as many operations, at most.
        to: Stop a run when its validation accuracy, measured once an epoch, reaches this share, e.g. 0.96.
        every: Steps between two evaluations. Default: an epoch.
        baseline: What ratios are taken to: same-net, for every entry back-propagation on the net that it builds, by the
            same options; or one entry for all, which --rules names too.
        module: FILE.py:NAME, a class or function that makes the image path or stages of all entries.
        batch: Images per step.
        learning_rate: Of all entries that give none of their own, e.g. spsa:learning_rate=0.01. Default: each rule's.
        augment: Augmentation of the training images.
        decay: How the learning rate falls over the run.
        warmup: Share of the steps over which the learning rate rises.
        average: Decay of a moving average of the weights.
        precision: Precision of matrix products and convolutions.
        validation: Share of the training split kept aside for validation.
        image_size: Height and width of the images, where a data set has several.
        data_dir: Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        out: Folder of bench.jsonl, bench.md and bench.html.
        retry: Run again what failed.
        overwrite: Remove the results of another comparison in --out.
        json: Print the records as one JSON object on the last line of standard output.
    """
    given = {"batch": batch, "augment": augment, "decay": decay, "warmup": warmup, "average": average,
             "precision": precision}  # fmt: skip
    common = {name: value for name, value in given.items() if value is not None}
    if to is not None and epochs is None and seconds is None and forward_passes is None:
        seconds = _SECONDS
    entries = read_entries(all_words(rules) or ("all",), common)
    if learning_rate is not None:
        entries = with_learning_rate(entries, learning_rate)
    race = Comparison(
        tuple(entries), _names(all_words(data) or ("digits",)), Budget(epochs, seconds, forward_passes, to),
        seeds, seed, common, every, device, data_dir or default_data_dir(), validation, image_size,
        ModuleOfFile(module) if module else None,
    )  # fmt: skip
    chosen = None if baseline == SAME_NET else find_baseline(entries, baseline).label
    return _Begin(race, chosen, out, retry, overwrite, json)


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
        with only_writer(self.out):
            self._run(command)

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
                f"Go on with: {command.replace(' --overwrite', '')}",
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


class _RaceBar(AbstractContextManager["_RaceBar"]):
    """Draws two bars on standard error, all runs and the one under way; prints nothing where that is no terminal."""

    def __init__(self) -> None:
        self._bar = Progress(
            PlainColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            PlainColumn("{task.fields[news]}"), console=error_console, disable=not error_console.is_terminal,
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
