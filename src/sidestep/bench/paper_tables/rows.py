"""Which rows of a table are wanted, and on which data: presets, data sets, and the cut for a quick look."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidestep.data import DataSet, Split, load
from sidestep.errors import InputError
from sidestep.presets.catalogue import PRESETS, Preset
from sidestep.wording import suggestion

__all__ = [
    "BUDGETS",
    "FIRST_TEST",
    "FIRST_TRAIN",
    "budget_data",
    "command_for",
    "first_images",
    "recipe_of",
    "table_presets",
    "wanted_presets",
]

BUDGETS: tuple[str, ...] = ("tiny", "cpu", "full")
FIRST_TRAIN, FIRST_TEST = 1280, 1000  # images that the budget `tiny` trains and tests on


def table_presets(table: str) -> list[Preset]:
    """Return the presets that are the rows of a table."""
    return [preset for preset in PRESETS.values() if preset.table == table]


def wanted_presets(table: str, data: Sequence[str] = (), rows: Sequence[str] = ()) -> list[Preset]:
    """Return the presets of some rows on some data sets; of all where none are named.

    Args:
        table: whose rows.
        data: names of data sets.
        rows: names of rows, such as `dt-one-hot`, also written `dt-onehot`.

    Raises:
        InputError: for a data set or a row that the table does not have.
    """
    every = table_presets(table)
    also = {preset.row.replace("one-hot", "onehot"): preset.row for preset in every}
    given = [also.get(row, row) for row in rows]
    _check_known(f"--data of {table}", data, list(dict.fromkeys(preset.data for preset in every)))
    _check_known(f"--rows of {table}", given, list(dict.fromkeys(preset.row for preset in every)))
    found = [p for p in every if (not data or p.data in data) and (not given or p.row in given)]
    if not found:
        raise InputError(f"{table} has no row {', '.join(given)} on {', '.join(data)}; leave out --rows or --data")
    return found


def recipe_of(preset: Preset) -> dict[str, Any]:
    """Return what a run of a preset is trained and read with, as JSON has it; where it is computed is no part of it."""
    wanted = ("rule", "options", "train", "validation", "image_size", "reading")
    found: dict[str, Any] = json.loads(json.dumps({name: getattr(preset, name) for name in wanted}))
    return found


def command_for(command: str, shown: Sequence[Preset], wanted: Sequence[Preset], without: Sequence[str] = ()) -> str:
    """Return the commands, one a line, that ask for the rows that are shown: what was typed, if it did.

    Records that were merged are left out: in a folder of their own the commands train every row.

    Args:
        command: what was typed.
        shown: the rows of the page, those of earlier commands included.
        wanted: the rows that this command asked for.
        without: options that are left out where earlier commands had others.
    """
    if {preset.name for preset in shown} == {preset.name for preset in wanted}:
        return shlex.join(_without(command, "--merge")) if "--merge" in command else command
    words = _without(command, "--data", "--rows", "--merge", *without)
    rows_of: dict[str, list[str]] = {}
    for preset in shown:
        rows_of.setdefault(preset.data, []).append(preset.row)
    sets_of: dict[tuple[str, ...], list[str]] = {}  # data sets with the same rows share a command
    for data, rows in rows_of.items():
        sets_of.setdefault(tuple(rows), []).append(data)
    return "\n".join(shlex.join([*words, "--data", *sets, "--rows", *rows]) for rows, sets in sets_of.items())


def _without(command: str, *options: str) -> list[str]:
    """Return the words of a command but for these options and their values."""
    words, dropped = [], False
    for word in shlex.split(command):
        dropped = word.partition("=")[0] in options if word.startswith("--") else dropped
        words += [] if dropped else [word]
    return words


def _check_known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for word in given:
        if word not in known:
            said = suggestion(word, known, f"there are: {', '.join(known)}")
            raise InputError(f"{what}: unknown {word!r}: {said}")


def budget_data(preset: Preset, budget: str, data_dir: Path | None, progress: bool = False) -> DataSet:
    """Return the data of a preset: whole, or for the budget `tiny` the first images of its splits."""
    found = load(
        preset.data, data_dir=data_dir, validation=preset.validation, size=preset.image_size, progress=progress
    )
    return first_images(found) if budget == "tiny" else found


def first_images(data: DataSet) -> DataSet:
    """Return the data with the first images alone, to see that everything runs."""
    train = data.train.part(slice(0, FIRST_TRAIN))

    def read_test() -> Split:
        return data.test.part(slice(0, FIRST_TEST))

    return dataclasses.replace(data, train=train, read_test=read_test if data.has_test else None)
