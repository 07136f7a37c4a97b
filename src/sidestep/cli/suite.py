"""`sidestep bench --suite matched`: every rule on the same nets, by the same recipe and search budget."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sidestep.bench.process import FAILED
from sidestep.bench.suite.page import suite_tables, write_pages
from sidestep.bench.suite.plan import plan_tables
from sidestep.bench.suite.suite import Suite, chosen_rows, run_suite
from sidestep.cli.options import Repeated, all_words
from sidestep.cli.output import default_data_dir, fail, show, show_line, show_table
from sidestep.cli.parse import parsed_groups
from sidestep.measure.environment import environment_of
from sidestep.training import Compute, Stopped
from sidestep.training.stopping import stop_on_signals

__all__ = ["suite_command"]

_ABOUT = """\
Train every rule of a suite on the same nets, by the same epochs, augmentation, label smoothing, norm and decay, after
the same number of trials on validation; then several seeds, whose test images are read once. Stop it when you like: the
same command goes on, and finished runs are not run again.
"""


@dataclass(frozen=True)
class SuiteOptions:
    """What is trained, and what is kept."""

    suite: Literal["matched"] = "matched"
    """Which suite."""
    rules: Repeated = ()
    """Rows of the suite, with commas or spaces between them; all by default."""
    data: Repeated = ()
    """Data sets. Default: digits."""
    nets: Repeated = ()
    """Nets that the rules share: mlp, conv, conv-wide, blocks-10, blocks-3, blocks-1. Default: mlp and conv."""
    budget: Literal["tiny", "quick", "cpu", "full"] = "cpu"
    """full: for a GPU; cpu: some epochs (of MNIST and CIFAR one to three, after a search on the first images), for an
    hour or two on a CPU; quick: as many or fewer; tiny: a few steps, to see that everything runs."""
    seeds: int = 5
    """Seeds from 0 on, at the setting that the search has chosen."""
    trials: int = 12
    """Trials of the search; the first has the row's own values."""
    out: Path = Path("runs/matched")
    """Folder of the records, OUT/DATA-NET/runs.jsonl."""
    data_dir: Path | None = None
    """Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    retry: bool = False
    """Run again what failed."""
    plan: bool = False
    """Run nothing: show what would be searched and run, and what of it is done."""
    report: Path | None = None
    """Folder of the pages, matched-DATA.md, and of the records that they are made of, matched-DATA-NET.jsonl. Without
    it the tables are printed."""
    draw: bool = False
    """Run nothing: the tables or pages of what is there, in --out or already in --report."""


def suite_command(arguments: list[str]) -> None:
    """Parse the options, and run what is not done yet."""
    (given,) = parsed_groups({"suite": (SuiteOptions, None)}, "sidestep bench --suite", arguments, _ABOUT)
    command = shlex.join(["sidestep", "bench", *arguments])
    suite = Suite(
        _words(given.data) or ("digits",), _words(given.nets) or ("mlp", "conv"), chosen_rows(_words(given.rules)),
        given.seeds, given.trials, given.budget, given.out, given.data_dir or default_data_dir(), given.device,
    )  # fmt: skip
    if given.plan:
        for table in plan_tables(suite):
            show_table(table.title, table.columns, table.rows)
            show("")
        return
    here = {"command": command, **environment_of(Compute.find(given.device, "float32").device)}
    if not given.draw:
        _run(suite, here, given.retry, command)
    if given.report:
        write_pages(suite, here, given.report, command)
    else:
        for table, said in suite_tables(suite, here):
            show_table(table.title, table.columns, table.rows)
            show(*filter(None, [said]), "")
    show(f"records: {given.out}" + (f"; pages: {given.report}" if given.report else ""))


def _run(suite: Suite, here: dict[str, Any], retry: bool, command: str) -> None:
    with stop_on_signals() as stop:
        try:
            lines = _Lines()
            run_suite(suite, here, lines, stop, retry)
            if not lines.printed:
                show("no run was taken: what fits these nets is finished, or has failed before (--retry)")
        except Stopped as error:
            fail(f"stopped; finished runs are kept in {suite.out}. Go on with: {command}", 128 + error.signal_number)
        except KeyboardInterrupt:  # a second one
            fail(f"stopped at once; finished runs are kept in {suite.out}. Go on with: {command}", 130)


class _Lines:
    """Prints a line about every run."""

    printed = 0

    def begin(self, words: str) -> None:
        """Nothing: a line is printed when it is known how the run went."""

    def end(self, words: str, record: Mapping[str, Any]) -> None:
        """Print how a run went."""
        self.printed += 1
        if FAILED in record:
            show_line(f"{words}: {record[FAILED]['why']}")
            return
        if "validation" not in record:
            show_line(f"{words}: {record['allocated_bytes'] / 2**20:.1f} MiB in a step")
            return
        test = f", test {record['test']:.2%}" if "test" in record else ""
        show_line(f"{words}: validation {record['validation']:.2%}{test} in {record['processor_seconds']:.1f} s")


def _words(given: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(part for word in all_words(given) for part in word.replace(",", " ").split())
