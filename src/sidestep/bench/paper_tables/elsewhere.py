"""Finished runs of a table that lie in other folders, or on other machines: taken from the records of its pages."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from sidestep.bench.paper_tables.cells import Plan, run_in_folder
from sidestep.bench.paper_tables.rows import recipe_of
from sidestep.errors import InputError
from sidestep.presets.catalogue import Preset
from sidestep.rules import RULES
from sidestep.wording import counted

__all__ = ["check_nothing_lost", "runs_elsewhere"]

Runs = dict[tuple[str, int], dict[str, Any]]  # (preset, seed) -> its cell


def runs_elsewhere(files: Iterable[Path], table: str, budget: str, presets: Sequence[Preset]) -> Runs:
    """Return the finished runs that records hold; of one that two hold that which was read more often, or the first.

    Args:
        files: records of the table, TABLE-BUDGET.json.
        table: its name.
        budget: of the runs.
        presets: the rows, with the values of that budget.

    Raises:
        InputError: if a file is no such record, or has a run that was trained otherwise than now.
    """
    found: Runs = {}
    by_name = {preset.name: preset for preset in presets}
    for file in files:
        for name, cell in _cells(file, table, budget):
            if name not in by_name:
                raise InputError(f"--merge: {file}: {table} has no row {name!r} any more; leave the file out")
            _check(file, by_name[name], cell)
            known = found.get((name, cell["seed"]))
            if known is None or len(cell["accuracies"]) > len(known["accuracies"]):
                found[name, cell["seed"]] = cell
    return found


def check_nothing_lost(page: Path, record: Mapping[str, Any], presets: Sequence[Preset], plan: Plan) -> None:
    """Raise InputError if a page holds runs that would no longer be on it, and that the folder does not have either.

    Args:
        page: the record, TABLE-BUDGET.json, which is to be written anew; there may be none.
        record: what is to be written.
        presets: the rows, with the values of the plan's budget.
        plan: with the folder.
    """
    try:
        before = json.loads(page.read_text(encoding="utf-8"))
        rows = before["rows"] if (before["table"], before["budget"]) == (record["table"], record["budget"]) else None
        held = [] if rows is None else [(row, cell) for row in rows for cell in _held(row)]
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        rows = None
    if rows is None:
        raise InputError(f"{page} is there, and is no record of this table; move it away, or choose another --report")
    by_name, shown = {preset.name: preset for preset in presets}, _by_run(record["rows"])
    lost = [
        (row["row"], cell)
        for row, cell in held
        if not _continues(shown.get((row["preset"], cell["seed"])), cell)
        and not (
            row["preset"] in by_name and _continues(run_in_folder(by_name[row["preset"]], cell["seed"], plan), cell)
        )
    ]
    if lost:
        (row, first), seeds = lost[0], 1 + max(cell["seed"] for _, cell in lost)
        merge = f"add --merge {page}" + (f" and --seeds {seeds}" if seeds > plan.seeds else "")
        raise InputError(
            f"{page} holds {counted(len(lost), 'run')} that would no longer be on it and that {plan.out} does not have "
            f"(first {row}, seed {first['seed']}): {merge}, choose another --report, or move the page away"
        )


def _held(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the runs of a row, also of a record from before these were in it."""
    if "cells" in row:
        return [{"seed": cell["seed"], "accuracies": cell["accuracies"]} for cell in row["cells"]]
    each = len(row["values"]) // max(1, row["seeds"])
    shares = [value / 100 for value in row["values"]]
    return [{"seed": seed, "accuracies": shares[seed * each :][:each]} for seed in range(row["seeds"])]


def _by_run(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], Mapping[str, Any]]:
    return {(row["preset"], cell["seed"]): cell for row in rows for cell in row["cells"]}


def _continues(cell: Mapping[str, Any] | None, earlier: Mapping[str, Any]) -> bool:
    """Whether a run is the earlier one, perhaps read more often since."""
    if cell is None or len(cell["accuracies"]) < len(earlier["accuracies"]):
        return False
    return all(map(math.isclose, cell["accuracies"], earlier["accuracies"]))


def _cells(file: Path, table: str, budget: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the runs of a record with the names of their presets."""
    wanted = f"give a {table}-{budget}.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--merge: {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--merge: {file} is no record: it is not JSON; {wanted}") from error
    if not _has(record, {"rows": list}) or (record.get("table"), record.get("budget")) != (table, budget):
        raise InputError(f"--merge: {file} is no record of {table} at --budget {budget}; {wanted}")
    for row in record["rows"]:
        whole = _has(row, {"preset": str, "cells": list}) and all(map(_is_run, row["cells"]))
        if not whole or len({cell["seed"] for cell in row["cells"]}) < len(row["cells"]):
            raise InputError(
                f"--merge: {file} does not hold whole runs: an older Sidestep wrote it, or it is damaged; leave it out"
            )
        yield from ((row["preset"], cell) for cell in row["cells"])


_CELL = {"seed": int, "accuracies": list, "default_reading": dict, "seconds": (int, float), "epochs": (int, float),
         "peak_memory_bytes": int, "device": str, "precision": str, "recipe": dict}  # fmt: skip
_ENVIRONMENT = {"sidestep": str, "torch": str, "threads": int, "processor": str}


def _is_run(cell: object) -> TypeGuard[dict[str, Any]]:
    """Whether a record's run has all that a page is made of."""
    if not _has(cell, _CELL) or not cell["accuracies"] or cell["seed"] < 0 or "failed" in cell:
        return False
    shares = (*cell["accuracies"], *cell["default_reading"].values())
    environment, images = cell.get("environment"), cell.get("test_images")
    return (
        all(isinstance(share, float) and 0 <= share <= 1 for share in shares)
        and all(math.isfinite(cell[name]) and cell[name] >= 0 for name in ("seconds", "epochs", "peak_memory_bytes"))
        and (environment is None or _has(environment, _ENVIRONMENT))
        and (images is None or (type(images) is int and images > 0))
    )


def _has(found: object, kinds: Mapping[str, Any]) -> TypeGuard[dict[str, Any]]:
    """Whether this is a mapping with such values; True and False are no numbers."""
    return isinstance(found, dict) and all(
        isinstance(found.get(key), kind) and not isinstance(found[key], bool) for key, kind in kinds.items()
    )


_NOTHING = object()


def _check(file: Path, preset: Preset, cell: Mapping[str, Any]) -> None:
    """Raise InputError naming the first thing in which a run's recipe is not that of its row now."""
    default = RULES[preset.rule].readings[0]
    then: Mapping[str, Any] = {**cell["recipe"], "default reading": "".join(cell["default_reading"])}
    now: Mapping[str, Any] = {**recipe_of(preset), "default reading": default}
    for name in {**now, **then}:
        one, other = then.get(name, _NOTHING), now.get(name, _NOTHING)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            name = next(key for key in {**one, **other} if one.get(key, _NOTHING) != other.get(key, _NOTHING))
            one, other = one.get(name, _NOTHING), other.get(name, _NOTHING)
        said = ["nothing" if value is _NOTHING else value for value in (one, other)]
        raise InputError(
            f"--merge: {file}: {preset.row} on {preset.data}, seed {cell['seed']}, was trained with {name} {said[0]}, "
            f"and the row has {said[1]} now; leave the file out"
        )
