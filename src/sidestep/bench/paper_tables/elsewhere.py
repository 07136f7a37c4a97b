"""Finished runs of a table that lie in other folders, or on other machines: taken from the records of its pages."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from sidestep.bench.paper_tables.cells import Plan, continues, run_in_folder
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
    by_name = {preset.name: preset for preset in presets}
    try:
        before = json.loads(page.read_text(encoding="utf-8"))
        ours = (before["table"], before["budget"]) == (record["table"], record["budget"])
        lost = [run for row in before["rows"] for run in _lost(row, record["rows"], by_name, plan)] if ours else None
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        lost = None
    if lost is None:
        raise InputError(f"{page} is there, and is no record of this table; move it away, or choose another --report")
    if lost:
        row, seed, _ = lost[0]
        first = row if seed is None else f"{row}, seed {seed}"
        raise InputError(
            f"{page} holds {counted(len(lost), 'run')} that {plan.out} does not have (first {first}), and would be "
            f"written anew without: {_advice(page, lost, plan)}choose another --report, or move the page away"
        )


Lost = tuple[str, int | None, bool]  # row, seed where it is known, whether the page's own record can be merged


def _lost(
    row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], by_name: Mapping[str, Preset], plan: Plan
) -> list[Lost]:
    """Return the runs of a page's row that are neither among the rows to be written nor in the folder."""
    preset, name = by_name.get(row["preset"]), str(row["row"])
    kept = [cell for each in rows if each["preset"] == row["preset"] for cell in each["cells"]]
    if "cells" not in row:  # an older Sidestep's, without the runs
        if preset is not None:
            kept += [cell for seed in range(row["seeds"]) if (cell := run_in_folder(preset, seed, plan))]
        shares = {round(100 * share, 6) for cell in kept for share in cell["accuracies"]}
        return [] if all(round(value, 6) in shares for value in row["values"]) else [(name, None, False)]
    found: list[Lost] = []
    for cell in row["cells"]:
        seed = cell["seed"]
        own = run_in_folder(preset, seed, plan) if preset else None
        if not any(run is not None and run["seed"] == seed and continues(run, cell) for run in (*kept, own)):
            found.append((name, seed, preset is not None and own is None and cell.get("recipe") is not None))
    return found


def _advice(page: Path, lost: Sequence[Lost], plan: Plan) -> str:
    """Return how all of the lost runs can be kept by merging, or nothing."""
    if not all(mergeable for *_, mergeable in lost):
        return ""
    seeds = 1 + max(seed for _, seed, _ in lost if seed is not None)
    return f"add --merge {page}" + (f" and --seeds {seeds}" if seeds > plan.seeds else "") + ", "


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
         "peak_memory_bytes": int, "device": str, "precision": str}  # fmt: skip
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
        and (cell.get("recipe") is None or isinstance(cell["recipe"], dict))
        and (environment is None or (_has(environment, _ENVIRONMENT) and _is_commit(environment.get("commit"))))
        and (images is None or (type(images) is int and images > 0))
    )


def _is_commit(found: object) -> bool:
    """Whether this is a commit as `environment_of` has it, or none."""
    return found is None or (isinstance(found, str) and re.fullmatch(r"[0-9a-f]{7,40}\+?", found) is not None)


def _has(found: object, kinds: Mapping[str, Any]) -> TypeGuard[dict[str, Any]]:
    """Whether this is a mapping with such values; True and False are no numbers."""
    return isinstance(found, dict) and all(
        isinstance(found.get(key), kind) and not isinstance(found[key], bool) for key, kind in kinds.items()
    )


_NOTHING = object()


def _check(file: Path, preset: Preset, cell: Mapping[str, Any]) -> None:
    """Raise InputError naming the first thing in which a run's recipe is not that of its row now."""
    default, which = RULES[preset.rule].readings[0], f"{preset.row} on {preset.data}, seed {cell['seed']}"
    if cell.get("recipe") is None:
        raise InputError(
            f"--merge: {file}: {which}, has no recipe, as its folder was filled by an older Sidestep; run the command "
            "with this row in that folder, which adds it, or leave the file out"
        )
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
            f"--merge: {file}: {which}, was trained with {name} {said[0]}, and the row has {said[1]} now; leave the "
            "file out"
        )
