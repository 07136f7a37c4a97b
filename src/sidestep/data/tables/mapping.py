"""Data sets whose inputs are several arrays by name: token ids with a mask, a picture's features with a table's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidestep.data.check import Array, as_array
from sidestep.data.cut import check_validation, cut_rows, cut_validation
from sidestep.data.labels import check_label_range
from sidestep.data.named import Named
from sidestep.data.objective import IGNORED
from sidestep.data.splits import DataSet, Split
from sidestep.data.tables.columns import data_set, output_names, target_tensor
from sidestep.errors import DataError

__all__ = ["mapping_set", "named_tensors"]

_KINDS = {"b": torch.bool, "u": torch.int64, "i": torch.int64, "f": torch.float32}


def named_tensors(given: Mapping[Any, Any], where: str) -> Named:
    """Return a mapping of arrays as tensors of their own: whole numbers as int64, floats as float32, bool as it is.

    Raises:
        DataError: for names that are no text, no rows, other numbers of rows, no numbers, or NaN or infinities.
    """
    if not given or not all(isinstance(name, str) and name for name in given):
        raise DataError(f"{where}: a mapping needs a name, a text, for each of its arrays, got {list(given)[:8]}")
    tensors: dict[str, Tensor] = {}
    for name, values in given.items():
        array = as_array(values, f"{where} {name!r}")
        if array.dtype.kind not in _KINDS or not len(array):
            raise DataError(f"{where} {name!r}: need rows of numbers, got {array.dtype} of shape {array.shape}")
        tensor = torch.from_numpy(np.array(array, order="C")).to(_KINDS[array.dtype.kind])
        wrong = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
        if wrong:
            raise DataError(f"{where} {name!r}: {wrong:,} numbers are NaN or infinite; fill them, or leave rows out")
        tensors[name] = tensor
    counts = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name!r} has {count:,}" for name, count in counts.items())
        raise DataError(f"{where}: each array needs one row for every example, but {said}")
    return Named(tensors)


def mapping_set(  # long: two splits, and what they mean
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any] | None,
    validation: float,
    targets: str,
    names: Sequence[str] | None,
) -> DataSet:
    """Return the data set of named inputs, which are not scaled.

    Args:
        name: of the set.
        train: a mapping of arrays, and targets.
        test: the same, if any.
        validation: share of train that is held out.
        targets: classes, labels, values, or tokens: ids (N, length), of which -100 do not count.
        names: of the classes, labels, values or tokens; numbered by default.
    """
    check_validation(validation)
    whole = _split(train, targets, f"{name}: train")
    outputs = _token_names(whole.targets, names, name) if targets == "tokens" else output_names(
        name, whole.targets, targets, names)  # fmt: skip
    kept, aside = cut_validation(whole, validation, outputs, name) if targets == "classes" else cut_rows(
        whole, validation)  # fmt: skip
    read = _split(test, targets, f"{name}: test") if test is not None else None
    if read is not None:
        _check_alike(read, kept, len(outputs), targets, name)
    return data_set(name, kept, aside, read, outputs, targets)


def _split(arrays: tuple[Any, Any], targets: str, where: str) -> Split:
    inputs = named_tensors(arrays[0], f"{where} inputs")
    wanted, called = as_array(arrays[1], f"{where} targets"), f"{where} targets"
    found = _tokens(wanted, called) if targets == "tokens" else target_tensor(wanted, len(inputs), targets, called)
    if len(found) != len(inputs):
        raise DataError(f"{called}: need one row for each of {len(inputs):,} inputs, got {len(found):,}")
    return Split(inputs, found)


def _tokens(ids: Array, where: str) -> Tensor:
    if ids.dtype.kind not in "ui" or ids.ndim != 2 or bool(((ids < 0) & (ids != IGNORED)).any()):
        raise DataError(
            f"{where}: need token ids, integers of shape (n, length) from 0 on, or {IGNORED} where none counts, got "
            f"{ids.dtype} of shape {ids.shape}"
        )
    return torch.from_numpy(ids.astype(np.int64))


def _token_names(ids: Tensor, names: Sequence[str] | None, name: str) -> tuple[str, ...]:
    most = int(ids.max()) + 1
    if names is not None and len(names) < most:
        raise DataError(f"{name}: the targets ask for a vocabulary of {most:,}, but {len(names):,} names were given")
    return tuple(map(str, names)) if names is not None else tuple(map(str, range(most)))


def _check_alike(test: Split, train: Split, outputs: int, targets: str, name: str) -> None:
    given, trained = test.images, train.images
    if given.table != trained.table:
        raise DataError(f"{name}: test inputs are {', '.join(given.table)}; those of train {', '.join(trained.table)}")
    if targets == "classes":
        check_label_range(test.targets, outputs, f"{name}: test targets")
    elif targets == "tokens":
        if int(test.targets.max()) >= outputs:
            raise DataError(f"{name}: test targets have the token {int(test.targets.max())}, of {outputs:,} in train")
    elif test.targets.shape[1:] != train.targets.shape[1:]:
        raise DataError(
            f"{name}: test targets have {test.targets.shape[1]} columns, those of train {train.targets.shape[1]}"
        )
