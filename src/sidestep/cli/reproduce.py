"""`sidestep reproduce TABLE`: fill a table of the paper, and print it beside the paper's numbers."""

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sidestep.bench.paper_tables.accuracy import BUDGET_WORDS, accuracy_tables
from sidestep.bench.paper_tables.cells import check_precision
from sidestep.bench.paper_tables.elsewhere import runs_elsewhere
from sidestep.bench.paper_tables.memory import memory_record, memory_tables, memory_text, with_earlier
from sidestep.bench.paper_tables.reproduce import (
    Plan,
    check_no_run,
    check_plan,
    folder_for_tables,
    page_record,
    reproduce,
    write_page,
)
from sidestep.bench.paper_tables.rows import table_presets, wanted_presets
from sidestep.bench.report import Table
from sidestep.cli.bar import TrainingBar
from sidestep.cli.help import HELP, HELP_ALL
from sidestep.cli.options import DataOptions, Repeated, all_words
from sidestep.cli.output import default_data_dir, error_console, fail, show, show_json, show_line, show_table
from sidestep.cli.parse import parsed_groups
from sidestep.cli.preset_times import machine, matrix_seconds, times
from sidestep.cli.reproduce_plan import plan_record, plan_table
from sidestep.cli.training_options import takes
from sidestep.errors import InputError
from sidestep.presets.catalogue import Preset
from sidestep.training import Compute, Options, Progress, Stopped
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
    try:
        TABLES[name][1](rest, command)
    except KeyboardInterrupt as stopped:
        status = 128 + (stopped.signal_number if isinstance(stopped, Stopped) else 2)
        fail(f"{str(stopped) or 'stopped'}; to go on, run the same command again: {command}", status)


_ACCURACY_ABOUT = """\
Train every row of NoProp's table of accuracies with several seeds, and set ours beside the paper's. Finished runs are
not run again; stop it when you like, and run the same command again.
"""


@takes("reproduce noprop-table1", Options)
@dataclass(frozen=True)
class AccuracyOptions:
    """How the rows are trained, and what is kept."""

    budget: Literal["tiny", "cpu", "full"] = "full"
    """full: the paper's epochs, for days on a GPU; cpu: fewer, for hours a row on a CPU; tiny: a few steps on the first
    images, to see that everything runs."""
    seeds: int = 3
    """How many seeds, from 0 on (the paper: 3)."""
    inference_runs: int = 5
    """How often a reading that draws noise is repeated (the paper: 5)."""
    out: Path = Path("runs/reproduce")
    """Folder of the runs, OUT/BUDGET/PRESET-SEED."""
    report: Path | None = None
    """Folder of the page, TABLE-BUDGET.md and .json. Default: --out."""
    merge: Repeated = ()
    """Records of this table, TABLE-BUDGET.json, from other machines or folders: their finished runs count as done."""
    plan: bool = False
    """Run nothing: show the rows, what of them is done or under way, about how long the rest trains here, and whether
    the command would be refused."""
    json: bool = False
    """Print the record as one JSON object on the last line of standard output."""


@takes("reproduce noprop-table1", DataOptions)
@dataclass(frozen=True)
class AccuracyRows:
    """Which rows, on which data."""

    data: Repeated = ()
    """Data sets, e.g. mnist cifar10; all by default."""
    rows: Repeated = ()
    """Rows, e.g. dt-one-hot ct-learned; all by default."""


def _accuracy(arguments: Sequence[str], command: str) -> None:
    groups = {"run": (AccuracyOptions, None), "data": (AccuracyRows, None)}
    given, wanted = parsed_groups(groups, f"sidestep reproduce {_ACCURACY}", arguments, _ACCURACY_ABOUT)
    folder = given.report or given.out
    plan = _plan(given)
    if given.plan:
        presets = wanted_presets(_ACCURACY, all_words(wanted.data), all_words(wanted.rows))
        _show_plan(presets, plan, _refusal(presets, plan, folder, command), given.json)
        return
    record = reproduce(
        _ACCURACY,
        all_words(wanted.data),
        all_words(wanted.rows),
        plan,
        _watch,
        report=folder,
        command=command,
        data_dir=wanted.data_dir or default_data_dir(),
        progress=error_console.is_terminal,
    )
    page = folder / f"{_ACCURACY}-{given.budget}.md"
    _print(record, accuracy_tables(record), page, given.json, BUDGET_WORDS[given.budget].replace("**", ""))
    failed = sum(len(row["failed"]) for row in record["rows"])
    if failed:
        fail(f"{counted(failed, 'run')} failed (see the table); the same command tries again", 1)


def _plan(given: Any) -> Plan:
    names = [field.name for field in dataclasses.fields(Plan) if field.name != "elsewhere"]
    plan = Plan(**{name: getattr(given, name) for name in names})
    check_plan(plan)
    files = [Path(word) for word in all_words(given.merge)]
    presets = [preset.for_budget(plan.budget) for preset in table_presets(_ACCURACY)] if files else []
    return dataclasses.replace(plan, elsewhere=runs_elsewhere(files, _ACCURACY, plan.budget, presets))


_ESTIMATE = (
    "training alone, on one core of this machine in float32, by its matrix product and steps that were timed on "
    "{machine}; evaluation comes on top, and what the last checkpoint of a run under way has is not to go"
)


def _refusal(presets: Sequence[Preset], plan: Plan, folder: Path, command: str) -> str | None:
    """Return why the command would be refused without --plan, by what can be told without writing anything."""
    try:
        Compute.find(plan.device, plan.precision)
        check_precision(presets, plan)
        for each in (folder, plan.out):
            check_no_run(each)
        page_record(_ACCURACY, presets, plan, folder, command)
    except InputError as error:
        return str(error)
    return None


def _show_plan(presets: Sequence[Preset], plan: Plan, refusal: str | None, as_json: bool) -> None:
    """Print what the command would train."""
    rows, estimate = plan_record(presets, plan, times(), matrix_seconds()), _ESTIMATE.format(machine=machine())
    if as_json:
        show_json({"table": _ACCURACY, "budget": plan.budget, "minutes": estimate, "refusal": refusal, "rows": rows})
        return
    table = plan_table(f"{_ACCURACY}, budget {plan.budget}: the plan alone", rows)
    show_table(table.title, table.columns, table.rows)
    if any(row["minutes"] is not None for row in rows):
        faster = "In bfloat16, in which they would run here, they take less; a GPU takes far less."
        here = plan.device in ("auto", "cpu")  # another device may be of another machine
        less = here and Compute.find(plan.device, plan.precision).precision == "bfloat16"
        show("", f"a run, to go: {estimate}. {faster if less else 'A GPU takes far less.'}")
    else:
        show("", f"a run, to go: not timed for the budget {plan.budget}, which trains on a few images")
    if refusal:
        show("", f"Without --plan this is refused: {refusal}")


_MEMORY_ABOUT = """\
Measure what a few training steps of each method need of memory, and set it beside the paper's GPU memory. The images
are random; nothing is downloaded.
"""


@takes("reproduce noprop-table2", Options)
@dataclass(frozen=True)
class MemoryOptions:
    """How the rows are measured, and what is kept."""

    steps: int = 3
    """Training steps of each cell."""
    report: Path = Path("runs/reproduce")
    """Folder of the page, TABLE.md and .json."""
    json: bool = False
    """Print the record as one JSON object on the last line of standard output."""


@takes("reproduce noprop-table2", DataOptions)
@dataclass(frozen=True)
class MemoryRows:
    """Which rows, for which images."""

    data: Repeated = ()
    """Data sets whose image shape is taken, e.g. mnist cifar10; all by default."""
    rows: Repeated = ()
    """Rows, e.g. dt-one-hot; all that the paper gives by default."""


def _memory(arguments: Sequence[str], command: str) -> None:
    groups = {"run": (MemoryOptions, None), "data": (MemoryRows, None)}
    given, rows = parsed_groups(groups, f"sidestep reproduce {_MEMORY}", arguments, _MEMORY_ABOUT)
    wanted = wanted_presets(_ACCURACY, all_words(rows.data), all_words(rows.rows))
    found = [preset for preset in wanted if preset.memory_gb is not None]
    if not found:
        names = " ".join(all_words(rows.rows))
        raise InputError(f"the paper gives memory for rows with one-hot labels only, got --rows {names}")
    folder_for_tables(given.report)
    with only_writer(given.report):
        measured = memory_record(_MEMORY, found, given.device, command, show_line, given.steps, given.precision)
        record = with_earlier(measured, given.report / f"{_MEMORY}.json")
        write_page(given.report, _MEMORY, memory_text(record), memory_tables(record), record)
    _print(record, memory_tables(record), given.report / f"{_MEMORY}.md", given.json)


TABLES: Mapping[str, tuple[str, Callable[[Sequence[str], str], None]]] = {
    _ACCURACY: ("test accuracy of NoProp and back-propagation on MNIST, CIFAR-10 and CIFAR-100", _accuracy),
    _MEMORY: ("memory in training, of the same methods", _memory),
}


@contextmanager
def _watch(line: str) -> Iterator[Progress]:
    show_line(line)
    with TrainingBar(line) as bar:
        yield bar


def _print(record: Mapping[str, Any], tables: list[Table], path: Path, as_json: bool, *notes: str) -> None:
    if as_json:
        show_json(record)
        return
    for table in tables:
        show_table(table.title, table.columns, table.rows)
        show("")
    show(*notes, f"written: {path} and {path.with_suffix('.json').name}")
