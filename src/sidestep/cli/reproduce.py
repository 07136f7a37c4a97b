"""`sidestep reproduce TABLE`: fill a table of the paper, and print it beside the paper's numbers."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sidestep.bench.paper_tables.accuracy import accuracy_tables
from sidestep.bench.paper_tables.memory import memory_record, memory_tables, memory_text, with_earlier
from sidestep.bench.paper_tables.reproduce import Plan, folder_for_tables, reproduce, write_page
from sidestep.bench.paper_tables.rows import wanted_presets
from sidestep.bench.report import Table
from sidestep.cli.bar import TrainingBar
from sidestep.cli.help import HELP, HELP_ALL
from sidestep.cli.options import Repeated, all_words
from sidestep.cli.output import default_data_dir, error_console, fail, show, show_json, show_line, show_table
from sidestep.cli.parse import parsed
from sidestep.errors import InputError
from sidestep.training import Progress, Stopped
from sidestep.training.lock import only_writer
from sidestep.wording import counted, suggestion

__all__ = ["reproduce_command"]

_ACCURACY, _MEMORY = "noprop-table1", "noprop-table2"


def reproduce_command(arguments: list[str]) -> None:
    """Parse the options, fill the table, write and print it."""
    if not arguments or arguments[0] in (*HELP, HELP_ALL):
        lines = [f"  {name:16}{about}" for name, (about, _) in TABLES.items()]
        show("usage: sidestep reproduce TABLE [OPTIONS]", "", "tables:", *lines, "",
             "`sidestep reproduce TABLE --help` explains the options of a table.")  # fmt: skip
        return
    name, rest = arguments[0], arguments[1:]
    if name not in TABLES:
        said = suggestion(name, TABLES, f"there are: {', '.join(TABLES)}")
        raise InputError(f"unknown table {name!r}: {said}")
    command = shlex.join(["sidestep", "reproduce", *arguments])
    begin = parsed(TABLES[name][1], f"sidestep reproduce {name}", rest)
    try:
        begin(command)
    except KeyboardInterrupt as stopped:
        status = 128 + (stopped.signal_number if isinstance(stopped, Stopped) else 2)
        fail(f"{str(stopped) or 'stopped'}; to go on, run the same command again: {command}", status)


def _accuracy(
    *,
    data: Repeated = (),
    rows: Repeated = (),
    budget: Literal["tiny", "cpu", "full"] = "full",
    seeds: int = 3,
    inference_runs: int = 5,
    out: Path = Path("runs/reproduce"),
    report: Path | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> Callable[[str], None]:
    """Train every row of NoProp's table of accuracies with several seeds, and set ours beside the paper's. Finished
    runs are not run again; stop it when you like, and run the same command again.

    Args:
        data: Data sets, e.g. mnist cifar10; all by default.
        rows: Rows, e.g. dt-one-hot ct-learned; all by default.
        budget: full: the paper's epochs, for days on a GPU; cpu: fewer, for hours a row on a CPU; tiny: a few steps on
            the first images, to see that everything runs.
        seeds: How many seeds, from 0 on (the paper: 3).
        inference_runs: How often a reading that draws noise is repeated (the paper: 5).
        out: Folder of the runs, OUT/BUDGET/PRESET-SEED.
        report: Folder of the page, TABLE-BUDGET.md and .json. Default: --out.
        data_dir: Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        json: Print the record as one JSON object on the last line of standard output.
    """
    plan, folder = Plan(out, budget, seeds, inference_runs, device), report or out

    def begin(command: str) -> None:
        record = reproduce(
            _ACCURACY,
            all_words(data),
            all_words(rows),
            plan,
            _watch,
            report=folder,
            command=command,
            data_dir=data_dir or default_data_dir(),
            progress=error_console.is_terminal,
        )
        _print(record, accuracy_tables(record), folder / f"{_ACCURACY}-{budget}.md", json)
        failed = sum(len(row["failed"]) for row in record["rows"])
        if failed:
            fail(f"{counted(failed, 'run')} failed (see the table); the same command tries again", 1)

    return begin


def _memory(
    *,
    data: Repeated = (),
    rows: Repeated = (),
    steps: int = 3,
    report: Path = Path("runs/reproduce"),
    device: str = "auto",
    json: bool = False,
) -> Callable[[str], None]:
    """Measure what a few training steps of each method need of memory, and set it beside the paper's GPU memory. The
    images are random; nothing is downloaded.

    Args:
        data: Data sets whose image shape is taken, e.g. mnist cifar10; all by default.
        rows: Rows, e.g. dt-one-hot; all that the paper gives by default.
        steps: Training steps of each cell.
        report: Folder of the page, TABLE.md and .json.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        json: Print the record as one JSON object on the last line of standard output.
    """

    def begin(command: str) -> None:
        wanted = wanted_presets(_ACCURACY, all_words(data), all_words(rows))
        found = [preset for preset in wanted if preset.memory_gb is not None]
        if not found:
            names = " ".join(all_words(rows))
            raise InputError(f"the paper gives memory for rows with one-hot labels only, got --rows {names}")
        folder_for_tables(report)
        with only_writer(report):
            measured = memory_record(_MEMORY, found, device, command, show_line, steps)
            record = with_earlier(measured, report / f"{_MEMORY}.json")
            write_page(report, _MEMORY, memory_text(record), memory_tables(record), record)
        _print(record, memory_tables(record), report / f"{_MEMORY}.md", json)

    return begin


TABLES: Mapping[str, tuple[str, Callable[..., Callable[[str], None]]]] = {
    _ACCURACY: ("test accuracy of NoProp and back-propagation on MNIST, CIFAR-10 and CIFAR-100", _accuracy),
    _MEMORY: ("memory in training, of the same methods", _memory),
}


@contextmanager
def _watch(line: str) -> Iterator[Progress]:
    show_line(line)
    with TrainingBar(line) as bar:
        yield bar


def _print(record: Mapping[str, Any], tables: list[Table], path: Path, as_json: bool) -> None:
    if as_json:
        show_json(record)
        return
    for table in tables:
        show_table(table.title, table.columns, table.rows)
        show("")
    show(f"written: {path} and {path.with_suffix('.json').name}")
