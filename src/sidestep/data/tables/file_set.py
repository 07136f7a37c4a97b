"""A data set of a table in a file: which columns a net gets, what is predicted, and the cut into splits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sidestep.data.cut import (
    check_validation,
    cut_rows,
    cut_validation,
    held_count,
    hold_out,
    keep_classes,
    report_kept,
)
from sidestep.data.images.pixel_scale import moments
from sidestep.data.labels import looks_like_numbers
from sidestep.data.notices import report
from sidestep.data.splits import DataSet, Split
from sidestep.data.tables.columns import data_set, feature_tensor, target_tensor
from sidestep.data.tables.encoding import Columns, Table
from sidestep.data.tables.files import are_dates, no_number, read_table
from sidestep.data.tables.form import ColumnSeen, TableForm
from sidestep.errors import DataError, InputError
from sidestep.wording import counted, meant

__all__ = ["file_set"]

_TEST = 0.2  # of the rows, as of a folder of pictures that has no test split
_CLASSES = 20  # different whole numbers of a target up to which they are classes
_CATEGORIES = 20  # different texts up to which a column holds categories, however few its rows
_COUNTED = 10  # rows from which on a column that counts them is taken for their number


@dataclass(frozen=True)
class _Target:
    """What is predicted: its kind, a number for each row (a class or a value), and the outputs' names."""

    kind: str
    numbers: NDArray[Any]
    outputs: tuple[str, ...]
    about: str


def file_set(  # long: columns and target, the cut, the encoding by train
    path: Path, target: str | None, targets: str, validation: float, form: TableForm | None
) -> DataSet:
    """Return the data set of a table: a fifth of its rows for test, and a share of the others for validation.

    Columns are numbers, scaled by mean and deviation over train, or categories, one column of 0 and 1 each, as
    `data.tables.encoding` says. Left out are columns of one value, row numbers, and texts that are nearly all
    different. Rows without a target are left out.

    Args:
        path: of the file.
        target: the column that is predicted.
        targets: classes, values, or auto: classes for texts and for up to 20 different whole numbers.
        validation: share of what is left after the cut of test.
        form: of another set, whose columns and classes are taken; None: they are found out.

    Raises:
        DataError: for a file that cannot be read, or a target from which nothing can be learnt.
        InputError: without a target, or for one that is no column.
    """
    name = path.stem
    table, refused = read_table(path, form.kinds if form else None)
    wanted = _target_name(path, target if target is not None else (form.target if form else None), table, refused)
    numbered = _row_numbers(table)
    table, gaps = _with_target(path, table, wanted)
    found = _target(path, wanted, table[wanted], form.targets if form else targets, form)
    inputs = {column: values for column, values in table.items() if column != wanted}
    answers = target_tensor(found.numbers, len(found.numbers), found.kind, f"{path}: column {wanted!r}")
    cut = _cut(name, found, answers, validation)
    form = form or _form(path, inputs, cut[0].numpy(), {**refused, **numbered}, wanted, found, gaps)
    features = feature_tensor(form.encoded(inputs, str(path)).astype(np.float32), str(path))
    train, held, test = (Split(features[part], answers[part]) for part in cut)
    made = data_set(name, train, held, test if len(test) else None, found.outputs, found.kind, moments(train.images))
    return replace(made, cut_test=True, table=form)


def _form(  # long: what stands in the file, and what is left out of it
    path: Path,
    inputs: Table,
    train: NDArray[np.int64],
    refused: dict[str, str],
    wanted: str,
    target: _Target,
    gaps: int,
) -> TableForm:
    """Return the columns as they are over the train rows, and what people are told of all of them."""
    rows = {column: values[train] for column, values in inputs.items()}
    odd = _odd_texts(inputs)
    left = {**_left_out(rows, odd), **{column: why for column, why in refused.items() if column != wanted}}
    used = {column: values for column, values in rows.items() if column not in left}
    if not used:
        raise DataError(f"{path}: no column is left to predict {wanted!r} from; left out: " + "; ".join(
            f"{column!r}, {why}" for column, why in list(left.items())[:4]))  # fmt: skip
    for column, why in left.items():
        report(f"{path}: column {column!r} is left out: {why}")
    for column in odd.keys() - left.keys():
        report(f"{path}: column {column!r} is taken as categories: {odd[column]}")
    columns = Columns.of(used)
    kinds = {column.name: column for column in columns.columns}
    seen = [ColumnSeen(wanted, "target", gaps, target.about)]
    for column in {**inputs, **left}:
        missing = _gaps(inputs[column]) if column in inputs else 0
        about = left.get(column, "")
        if column in kinds:
            names, each = kinds[column].categories, kinds[column]
            more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
            about = ", ".join(names[:8]) + more if names else f"mean {each.mean:.4g}, deviation {each.std:.4g}"
        seen.append(ColumnSeen(column, kinds[column].kind if column in kinds else "left out", missing, about))
    return TableForm(wanted, target.kind, columns, target.outputs, tuple(seen))


def _gaps(values: NDArray[Any]) -> int:
    return sum(value is None for value in values) if values.dtype == object else int(np.isnan(values).sum())


def _target_name(path: Path, target: str | None, table: Table, refused: dict[str, str]) -> str:
    """Return the target, or raise InputError with what there is."""
    known = ", ".join(map(repr, list(table)[:12])) + (f" and {len(table) - 12:,} more" if len(table) > 12 else "")
    if target is None:
        raise InputError(f"{path}: name the column to be predicted, --target NAME (target=...); there are {known}")
    if target in refused:
        raise InputError(f"{path}: {refused[target]}")
    if target not in table:
        raise InputError(f"{path} has no column {target!r}; {meant(target, table)}there are {known}")
    return target


def _with_target(path: Path, table: Table, target: str) -> tuple[Table, int]:
    """Return the rows that have a target, and how many have none."""
    values = table[target]
    gaps = np.array([value is None for value in values]) if values.dtype == object else np.isnan(values)
    missing = int(gaps.sum())
    if missing == len(values):
        raise DataError(f"{path}: column {target!r} has no value in any row, so that there is nothing to be learnt")
    if missing:
        report(f"{path}: {counted(missing, 'row')} without {target!r} left out")
    return {name: column[~gaps] for name, column in table.items()}, missing


def _target(path: Path, name: str, values: NDArray[Any], kind: str, form: TableForm | None) -> _Target:
    """Return classes as their numbers, or values; raises DataError for one value alone."""
    texts = values.dtype == object
    if kind == "labels":
        raise InputError(f"{path}: targets = labels is for arrays of 0 and 1; a table has one column as its target")
    whole = not texts and bool((values == np.round(values)).all())
    distinct = sorted(set(values.tolist()))
    if len(distinct) < 2 and form is None:
        raise DataError(
            f"{path}: column {name!r} is {distinct[0]!r} in every row, so that there is nothing to be learnt; choose "
            "another --target"
        )
    few = whole and len(distinct) <= _CLASSES and 2 * len(distinct) <= len(values)
    if texts:
        _check_texts(path, name, values.tolist(), kind)
    kind = ("classes" if texts or few else "values") if kind == "auto" else kind
    if kind == "values":
        return _Target("values", values, (name,), f"values from {values.min():g} to {values.max():g}")
    names = [value if texts else f"{value:.15g}" for value in distinct]
    outputs = form.outputs if form else tuple(names)
    if form and set(names) - set(outputs):
        new = next(each for each in names if each not in outputs)
        raise InputError(f"{path}: column {name!r} has the class {new!r}, but there were {', '.join(outputs[:12])}")
    if looks_like_numbers(len(outputs), len(values)):
        report(
            f"{path}: {len(outputs):,} classes of {name!r} in {len(values):,} rows: is it no class? --targets values"
        )
    place = {value: outputs.index(called) for value, called in zip(distinct, names, strict=True)}
    numbers = np.array([place[value] for value in values.tolist()], dtype=np.int64)
    numbered = np.bincount(numbers, minlength=len(outputs))
    counts = [f"{called} {count:,}" for called, count in zip(outputs, numbered.tolist(), strict=True)]
    listed = ", ".join(counts[:12]) + (f" and {len(counts) - 12:,} more" if len(counts) > 12 else "")
    return _Target("classes", numbers, outputs, f"{len(outputs)} classes: {listed}")


def _check_texts(path: Path, name: str, texts: list[str], kind: str) -> None:
    """Refuse a target with texts that is to be values, or that would be without a few of them."""
    odd = no_number(texts)
    if kind == "auto" and odd is not None and len(set(texts)) > _CLASSES:
        raise InputError(
            f"{path}: most cells of the target {name!r} are numbers, but {odd!r} is none: leave a cell without a value "
            "empty and write numbers as 1234.5, or give --targets classes if they are names"
        )
    if kind == "values":
        raise InputError(
            f"{path}: column {name!r} holds texts, such as {odd or min(texts)!r}, and values must be numbers; "
            f"{'leave --targets out' if odd is None else 'leave a cell without a value empty'}, or choose another "
            "--target"
        )


def _cut(name: str, target: _Target, answers: Tensor, validation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows of train, validation and test, by their numbers; no class is taken out of train."""
    check_validation(validation)
    kept, test = hold_out(len(answers), held_count(len(answers), _TEST), "table test")
    if target.kind == "classes":
        kept, test, lost = keep_classes(kept, test, answers)
        report_kept(name, "test", [target.outputs[label] for label in lost], len(test))
    numbers = Split(kept[:, None], answers[kept])
    cut = cut_validation(numbers, validation, target.outputs, name) if target.kind == "classes" else cut_rows(
        numbers, validation)  # fmt: skip
    train, held = (part.images[:, 0] for part in cut)
    return train, held, test


def _row_numbers(table: Table) -> dict[str, str]:
    """Return the columns that count the rows, with the reason for leaving them out, if there are others."""
    found = {}
    for name, values in table.items():
        if values.dtype != object and len(values) >= _COUNTED and bool((np.diff(values) == 1).all()):
            found[name] = f"it counts the rows, {values[0]:g} to {values[-1]:g}"
    return found if len(found) < len(table) - 1 else {}


def _odd_texts(table: Table) -> dict[str, str]:
    """Return the columns that would be numbers without a few texts, of more values than categories have, and why not.

    Args:
        table: all rows: a text makes a column one of texts wherever it stands.
    """
    found = {}
    for name, values in table.items():
        there = [value for value in values.tolist() if value is not None] if values.dtype == object else []
        if len(set(there)) > _CATEGORIES and (odd := no_number(there)) is not None:
            found[name] = (
                f"most of its cells are numbers, but {odd!r} is none: for numbers leave gaps empty, and write 1234.5"
            )
    return found


def _left_out(table: Table, odd: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of train rows that a net does not get, with the reason.

    Args:
        table: the train rows.
        odd: of `_odd_texts`.
    """
    found = {}
    for name, values in table.items():
        texts = values.dtype == object
        there = [value for value in values.tolist() if value is not None and value == value]
        distinct = len(set(there))
        if not there:
            found[name] = "it has no value in any train row"
        elif distinct == 1 and len(there) == len(values):
            found[name] = f"it is {repr(there[0]) if texts else f'{there[0]:g}'} in every train row"
        elif texts and are_dates(there):
            found[name] = f"its texts are dates, such as {there[0]!r}; make numbers of them, such as days or months"
        elif texts and distinct > _CATEGORIES and 2 * distinct > len(there):
            names = f"{distinct:,} different texts in {counted(len(there), 'train row')} are names, no categories"
            found[name] = odd.get(name, names)
    return found
