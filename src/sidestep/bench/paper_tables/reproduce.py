"""Fill a table of accuracies, cell by cell: what is done stays, what was stopped goes on, what fails is noted."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidestep import checkpoint
from sidestep.bench.paper_tables.accuracy import accuracy_record, accuracy_tables, accuracy_text
from sidestep.bench.paper_tables.cells import Plan, check_precision, fill_cell
from sidestep.bench.paper_tables.elsewhere import check_nothing_lost
from sidestep.bench.paper_tables.rows import BUDGETS, budget_data, table_presets, wanted_presets
from sidestep.bench.report import Table
from sidestep.bench.studies.blocks import Watch
from sidestep.errors import InputError
from sidestep.measure.environment import environment_of
from sidestep.presets.catalogue import Preset
from sidestep.training import Compute, Options
from sidestep.training.lock import only_writer

__all__ = ["Plan", "check_no_run", "check_plan", "folder_for_tables", "page_record", "reproduce", "write_page"]


def reproduce(  # long: which table and rows, and where everything lies
    table: str,
    data: Sequence[str],
    rows: Sequence[str],
    plan: Plan,
    watch: Watch,
    *,
    report: Path,
    command: str,
    data_dir: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Fill the wanted cells of a table, and return its record; the page is written anew after every cell.

    Args:
        table: its name.
        data: names of data sets; none for all.
        rows: names of rows; none for all.
        plan: budget, seeds and so on, and the folder of the runs.
        watch: called with a line about each run that is trained, gives what is told of its progress.
        report: folder of the page, TABLE-BUDGET.md and .json.
        command: what was typed, for the page.
        data_dir: folder that is looked in before anything is downloaded.
        progress: whether to show downloads.

    Raises:
        InputError: for a row, a data set, a device or a number that cannot work; if a run that is done or begun has
            another precision than is asked for; if the page holds runs that would no longer be on it.
        Stopped: after Ctrl-C or SIGTERM; everything can be taken up again.
    """
    check_plan(plan)
    Options(device=plan.device, precision=plan.precision, checkpoint_seconds=plan.checkpoint_seconds)
    environment_of(Compute.find(plan.device, plan.precision).device)  # asks for the commit before anything runs
    wanted = wanted_presets(table, data, rows)
    check_precision(wanted, plan)
    folder_for_tables(report)
    with only_writer(report):  # of the page; each run has a lock of its own
        record = page_record(table, wanted, plan, report, command)
        folder_for_tables(plan.out)
        # all sets first: one that is missing shows now, and not after days
        sets = {preset.data: budget_data(preset, plan.budget, data_dir, progress) for preset in wanted}
        _write(report, record)
        for full in wanted:
            preset = full.for_budget(plan.budget)
            source = {"name": preset.data, "validation": preset.validation, "preset": preset.name}
            optional = {"size": preset.image_size, "data_dir": data_dir}
            source |= {key: value for key, value in optional.items() if value is not None}
            for seed in range(plan.seeds):
                fill_cell(preset, seed, sets[preset.data], source, plan, watch)
                record = _write(report, accuracy_record(table, table_presets(table), wanted, plan, command))
    return record


def page_record(table: str, wanted: Sequence[Preset], plan: Plan, report: Path, command: str) -> dict[str, Any]:
    """Return the record of a table's page as it would be written now, before anything else is trained.

    Args:
        table: its name.
        wanted: the rows that are asked for, with their own values.
        plan: budget, seeds and so on, and the folder of the runs.
        report: folder of the page.
        command: what was typed.

    Raises:
        InputError: if the page that is there holds runs that would no longer be on it, or a folder has the page's
            name.
    """
    page = report / f"{table}-{plan.budget}.md"
    if page.is_dir():
        raise InputError(f"{page} is a folder, and the page would be written there; choose another --report")
    every = table_presets(table)
    record = accuracy_record(table, every, wanted, plan, command)
    here = [preset.for_budget(plan.budget) for preset in every]
    check_nothing_lost(page.with_suffix(".json"), record, here, plan)
    return record


def check_plan(plan: Plan) -> None:
    """Raise InputError for a budget, or a number, that cannot work."""
    if plan.budget not in BUDGETS:
        raise InputError(f"--budget must be one of {', '.join(BUDGETS)}, got {plan.budget!r}")
    for name, value in {"--seeds": plan.seeds, "--inference-runs": plan.inference_runs}.items():
        if not 1 <= value <= 100:
            raise InputError(
                f"{name} must lie between 1 and 100, got {value}; the paper has 3 seeds and 5 inference runs"
            )


def folder_for_tables(folder: Path) -> None:
    """Make the folder if it is not there.

    Raises:
        InputError: if it cannot be made, or is the folder of a run.
    """
    check_no_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror}; choose another") from error


def check_no_run(folder: Path) -> None:
    """Raise InputError for the folder of a run, or where a file stands in the way of a folder."""
    if (folder / "config.toml").exists():
        raise InputError(f"{folder} is the folder of a run; the tables need a folder of their own: choose another")
    there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    if there.exists() and not there.is_dir():
        raise InputError(f"the folder {folder} cannot be made: {there} is a file; choose another")


def _write(report: Path, record: dict[str, Any]) -> dict[str, Any]:
    write_page(report, f"{record['table']}-{record['budget']}", accuracy_text(record), accuracy_tables(record), record)
    return record


def write_page(folder: Path, name: str, text: str, tables: Sequence[Table], record: Mapping[str, Any]) -> None:
    """Write NAME.md, the text and the tables, and NAME.json, the record, each in one move.

    Raises:
        CheckpointError: if one of them cannot be written.
    """
    parts = [text, *(table.markdown().strip() for table in tables)]
    checkpoint.write_text(folder / f"{name}.md", "\n\n".join(parts) + "\n")
    checkpoint.write_text(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")
