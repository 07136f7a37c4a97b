"""Finished runs of a table that lie in other folders, or on other machines: taken from the records of its pages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from sidestep.bench.paper_tables.cells import Plan, run_in_folder
from sidestep.errors import InputError
from sidestep.presets.catalogue import Preset
from sidestep.wording import counted

__all__ = ["check_nothing_lost", "recipe_of", "runs_elsewhere"]

Runs = dict[tuple[str, int], dict[str, Any]]  # (preset, seed) -> its cell


def recipe_of(preset: Preset) -> dict[str, Any]:
    """Return what a run is trained with, as JSON has it; two runs of one recipe and seed can stand for each other."""
    wanted = ("rule", "options", "train", "validation", "image_size", "reading")
    return json.loads(json.dumps({name: getattr(preset, name) for name in wanted}))


def runs_elsewhere(files: Iterable[Path], table: str, budget: str, presets: Sequence[Preset]) -> Runs:
    """Return the finished runs that records hold; of one that two hold the first counts.

    Args:
        files: records of the table, TABLE-BUDGET.json.
        table: its name.
        budget: of the runs.
        presets: the rows, with the values of that budget.

    Raises:
        InputError: if a file is no such record, or has a row that was trained otherwise than now.
    """
    found: Runs = {}
    recipes = {preset.name: recipe_of(preset) for preset in presets}
    for file in files:
        for row in _rows(file, table, budget):
            if row["preset"] not in recipes:
                raise InputError(f"{file}: {table} has no row {row['preset']!r}; leave the file out of --merge")
            _check_recipe(file, row, recipes[row["preset"]])
            for cell in row["cells"]:
                found.setdefault((row["preset"], cell["seed"]), cell)
    return found


def check_nothing_lost(page: Path, table: str, presets: Sequence[Preset], plan: Plan) -> None:
    """Raise InputError if a page holds runs that are not in the folder of the plan, nor among its runs elsewhere.

    Args:
        page: the record, TABLE-BUDGET.json, which is written anew; there may be none, or one that is no record.
        table: its name.
        presets: the rows, with the values of the plan's budget.
        plan: with the folder, and the runs of others.
    """
    try:
        rows = _rows(page, table, plan.budget)
    except InputError:
        return
    by_name = {preset.name: preset for preset in presets}
    lost = [
        (row["row"], cell["seed"])
        for row in rows
        for cell in row["cells"]
        if row["preset"] in by_name and not _is_known(by_name[row["preset"]], cell["seed"], plan)
    ]
    if lost:
        row, seed = lost[0]
        raise InputError(
            f"{page} holds {counted(len(lost), 'run')} that {plan.out} does not (first {row}, seed {seed}), and would "
            f"be written anew without; keep them with --merge {page}, or choose another --report"
        )


def _is_known(preset: Preset, seed: int, plan: Plan) -> bool:
    return (preset.name, seed) in plan.elsewhere or run_in_folder(preset, seed, plan) is not None


def _rows(file: Path, table: str, budget: str) -> list[Mapping[str, Any]]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--merge: {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--merge: {file} is no record: it is not JSON; give a {table}-{budget}.json") from error
    if not isinstance(record, dict) or (record.get("table"), record.get("budget")) != (table, budget):
        raise InputError(f"--merge: {file} is no record of {table} at --budget {budget}; give a {table}-{budget}.json")
    rows = record.get("rows")
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        raise InputError(
            f"--merge: {file} does not hold the runs of its rows; an older Sidestep wrote it, or it is damaged"
        )
    return rows


_ROW = {"preset": str, "row": str, "data": str, "recipe": dict, "cells": list}
_CELL = {"seed": int, "accuracies": list, "default_reading": dict, "seconds": (int, float), "epochs": (int, float),
         "peak_memory_bytes": int, "device": str, "precision": str}  # fmt: skip


def _is_row(row: object) -> bool:
    """Whether a row has all that the page is made of."""
    return _has(row, _ROW) and all(
        _has(cell, _CELL) and all(isinstance(share, float) for share in (*cell["accuracies"], *_readings(cell)))
        for cell in row["cells"]
    )


def _readings(cell: Mapping[str, Any]) -> Iterable[object]:
    return cell["default_reading"].values() or [None]


def _has(found: object, kinds: Mapping[str, Any]) -> TypeGuard[dict[str, Any]]:
    return isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in kinds.items())


def _check_recipe(file: Path, row: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Raise InputError naming the first thing that differs."""
    for name, now in recipe.items():
        then = row["recipe"].get(name)
        if then == now:
            continue
        if isinstance(then, dict) and isinstance(now, dict):
            name, then, now = next((k, then.get(k), now.get(k)) for k in {**then, **now} if then.get(k) != now.get(k))
        raise InputError(
            f"--merge: {file}: row {row['row']} on {row['data']} was trained with {name} {then}, now with {now}; "
            "leave the file out, or merge the rows that fit with the version that made them"
        )
