"""Tables of numbers, scaled by column, and targets that are no classes: several labels, real values."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sidestep.data.check import Array, image_tensor
from sidestep.data.cut import cut_rows, cut_validation
from sidestep.data.images.pixel_scale import Moments, moments
from sidestep.data.labels import check_class_names, check_label_range, label_tensor
from sidestep.data.rows import Rows, Stored, blocks, is_mapped, stored
from sidestep.data.splits import DataSet, Split
from sidestep.errors import DataError

__all__ = [
    "data_set",
    "feature_rows",
    "feature_tensor",
    "is_table",
    "output_names",
    "row_tensor",
    "table_set",
    "target_tensor",
]

_COLUMNS = 8  # named in an error
_LOST = 0.01  # of a column's standard deviation: the most that rounding to float32 may take


def is_table(inputs: Array) -> bool:
    """Whether an array is a table, one row of numbers for each example, rather than images."""
    return inputs.ndim == 2


def feature_tensor(table: Array, where: str) -> Tensor:
    """A table of numbers, (n, columns), as float32 of its own.

    Raises DataError for what is no number, for NaN or infinities, with the columns that have them, and for columns that
    float32 cannot hold.
    """
    features = row_tensor(table, where)
    _check_spread(table, features.numpy(), where)
    return features


def feature_rows(table: Array, where: str) -> Stored:
    """The same of a table that may be a read-only memory map, which then stays in its file."""
    if not is_mapped(table):
        return feature_tensor(table, where)
    found = stored(table, row_tensor, where)
    _check_spread_in_file(table, where)
    return found


def row_tensor(table: Array, where: str) -> Tensor:
    """Rows of a table as float32 of their own, each looked at alone; raises DataError as `feature_tensor` does."""
    if table.dtype.kind not in "uifb":
        raise DataError(
            f"{where}: a table must hold numbers, got {table.dtype}; turn categories into columns of 0 and 1 first "
            "(pandas.get_dummies, sklearn's OneHotEncoder)"
        )
    if 0 in table.shape:
        raise DataError(f"{where}: need at least one row and one column, got shape {table.shape}")
    with np.errstate(over="ignore"):  # what passes float32's range is infinite then, and named below
        features = np.array(table, dtype=np.float32, order="C")
    wrong = ~np.isfinite(features)
    if bool(wrong.any()):
        columns = np.flatnonzero(wrong.any(axis=0))
        named = ", ".join(map(str, columns[:_COLUMNS])) + (" and more" if len(columns) > _COLUMNS else "")
        raise DataError(
            f"{where}: {int(wrong.sum()):,} of {wrong.size:,} numbers are NaN or infinite (in float32), in column"
            f"{'' if len(columns) == 1 else 's'} {named}; fill them (sklearn's SimpleImputer) or leave these rows out"
        )
    return torch.from_numpy(features)


def _check_spread(given: Array, narrow: Array, where: str) -> None:
    """Raise DataError for columns, such as times in seconds, whose values float32 can hardly tell from each other."""
    if given.dtype.itemsize < 4 or given.dtype == np.float32:  # these lose nothing
        return
    wide = given.astype(np.float64)
    spread = wide.std(axis=0)
    _refuse_lost(wide.mean(axis=0), spread, np.sqrt(np.square(narrow - wide).mean(axis=0)), where)


def _check_spread_in_file(table: Array, where: str) -> None:
    """The same of a table that stays in its file, block by block."""
    if table.dtype.itemsize < 4 or table.dtype == np.float32:
        return
    rows = Rows(table, _wide, where)
    mean = torch.stack([block.sum(dim=0) for block in blocks(rows)]).sum(dim=0) / len(rows)
    spread, lost = torch.zeros_like(mean), torch.zeros_like(mean)
    for block in blocks(rows):
        spread += (block - mean).square().sum(dim=0)
        lost += (block.float().double() - block).square().sum(dim=0)
    _refuse_lost(mean.numpy(), (spread / len(rows)).sqrt().numpy(), (lost / len(rows)).sqrt().numpy(), where)


def _wide(rows: Array, where: str) -> Tensor:
    return torch.from_numpy(rows.astype(np.float64))


def _refuse_lost(mean: Array, spread: Array, lost: Array, where: str) -> None:
    """Raise DataError for the first column that loses too much of what it varies by."""
    columns = np.flatnonzero((lost > _LOST * spread) & (spread > 0))
    if len(columns):
        first = columns[0]
        raise DataError(
            f"{where}: column {first} lies around {mean[first]:.6g} and varies by {spread[first]:.3g} only, "
            "which float32 cannot hold; subtract a number in that range from it first, such as its mean over train, "
            "in all splits alike"
        )


def target_tensor(targets: Array, examples: int, kind: str, where: str) -> Tensor:
    """Targets of a kind: classes (n,) int64; labels (n, columns) of 0 and 1, or values (n, columns), as float32.

    Raises DataError for anything else.
    """
    if kind == "classes":
        return label_tensor(targets, examples, where)
    if len(targets) != examples:
        raise DataError(f"{where}: need one row for each of {examples:,} inputs, got {len(targets):,}")
    if targets.dtype.kind not in "uifb":
        raise DataError(f"{where}: need numbers, got {targets.dtype}; for names of classes take targets='classes'")
    columns = targets.reshape(len(targets), -1) if targets.ndim < 3 else targets
    if columns.ndim != 2 or 0 in columns.shape:
        raise DataError(f"{where}: need one row of numbers for each input, (n,) or (n, columns), got {targets.shape}")
    numbers = np.array(columns, dtype=np.float32)
    if not bool(np.isfinite(numbers).all()):
        raise DataError(f"{where}: some are NaN or infinite; leave these rows out")
    _check_spread(columns, numbers, where)
    if kind == "labels" and not bool(np.isin(numbers, (0, 1)).all()):
        odd = numbers[~np.isin(numbers, (0, 1))].flat[0]
        raise DataError(f"{where}: labels are 0 or 1 in a column for each, got {odd:g}; for numbers, targets='values'")
    return torch.from_numpy(numbers)


def table_set(  # long: the arrays, and what they are
    name: str,
    train: tuple[Array, Array],
    held: tuple[Array, Array] | None,
    test: tuple[Array, Array] | None,
    validation: float,
    targets: str,
    names: Sequence[str] | None,
) -> DataSet:
    """Return the data set of tables, or of images whose targets are no classes.

    Args:
        name: of the set.
        train: inputs and targets.
        held: validation inputs and targets; None: a fraction of train.
        test: inputs and targets, if any.
        validation: the fraction.
        targets: classes, labels or values.
        names: of the classes, labels or values; numbered by default.
    """
    whole = _split(train, targets, f"{name}: train")
    outputs = output_names(name, whole.targets, targets, names)
    if held is not None:
        kept, aside = whole, _split(held, targets, f"{name}: validation")
    elif targets == "classes":
        kept, aside = cut_validation(whole, validation, outputs, name)
    else:
        kept, aside = cut_rows(whole, validation)
    read = _split(test, targets, f"{name}: test") if test is not None else None
    for other, which in ((aside, "validation"), (read, "test")):
        if other is not None and len(other):
            _check_alike(other, which, kept, len(outputs), targets, name)
    return data_set(name, kept, aside, read, outputs, targets, moments(kept.images))


def data_set(  # long: splits, and what they mean
    name: str,
    train: Split,
    held: Split,
    test: Split | None,
    outputs: tuple[str, ...],
    targets: str,
    scale: Moments | None = None,
) -> DataSet:
    """Return the data set of splits in memory; real values get their mean and deviation over train.

    Args:
        name: of the set.
        train: the train split.
        held: the validation split.
        test: the test split, if any.
        outputs: a name for each output of a net.
        targets: classes, labels, values or tokens.
        scale: of the inputs; None: they are not scaled.
    """
    mean, std = (scale.mean, scale.std) if scale else ((), ())
    values = moments(train.labels) if targets == "values" else None
    for column, variance in enumerate(values.variance if values else ()):
        if not variance:
            raise DataError(
                f"{name}: every train value of column {column} is {float(train.targets[0, column]):g}, so that there "
                "is nothing to be learnt; leave this column out"
            )
    centre, spread = (values.mean, values.std) if values else ((), ())
    read = partial(_given, test) if test is not None else None  # no closure: a set can be pickled
    return DataSet(name, train, held, outputs, mean, std, read, targets=targets, target_mean=centre, target_std=spread)


def _given(split: Split) -> Split:
    return split


def _split(arrays: tuple[Array, Array], targets: str, where: str) -> Split:
    inputs, wanted = arrays
    if is_table(inputs):
        made = feature_rows(inputs, f"{where} table")
    else:
        made = stored(inputs, image_tensor, f"{where} images")
    called = "values" if targets == "values" else "labels"
    return Split(made, target_tensor(wanted, len(made), targets, f"{where} {called}"))


def output_names(name: str, wanted: Tensor, targets: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return a name for each output that the targets of train ask for; raises DataError where the given do not fit."""
    if targets != "classes":
        count = wanted.shape[1]
        if names is not None and len(names) != count:
            raise DataError(f"{name}: the targets have {count} columns, but {len(names)} names were given")
        return tuple(names) if names is not None else tuple(str(column) for column in range(count))
    present = torch.unique(wanted).tolist()
    if len(present) < 2:
        raise DataError(f"{name}: need at least two classes, but every train label is {present[0]}")
    if names is None and len(present) != present[-1] + 1:
        missing = next(place for place, label in enumerate(present) if place != label)
        raise DataError(
            f"{name}: train labels must be 0 to K-1 with every class present, got {present[0]} to {present[-1]} "
            f"without any {missing}; number them anew, or give class_names; real numbers are targets='values'"
        )
    found = tuple(names) if names is not None else tuple(map(str, present))
    check_class_names(found, name)
    check_label_range(wanted, len(found), f"{name}: train labels")
    return found


def _check_alike(other: Split, which: str, train: Split, outputs: int, targets: str, name: str) -> None:
    if other.image_shape != train.image_shape:
        raise DataError(f"{name}: {which} rows have shape {other.image_shape}, those of train {train.image_shape}")
    if targets == "classes":
        check_label_range(other.targets, outputs, f"{name}: {which} labels")
    elif other.labels.shape[1:] != train.labels.shape[1:]:
        raise DataError(
            f"{name}: {which} targets have {other.labels.shape[1]} columns, those of train {train.labels.shape[1]}"
        )
