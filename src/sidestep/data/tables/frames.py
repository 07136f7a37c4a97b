"""Data frames and arrays as tables: each column numbers with NaN for gaps, or texts with None for gaps."""

from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidestep.data.tables.encoding import Table
from sidestep.errors import InputError

__all__ = ["is_frame", "table_of_array", "table_of_frame"]

_GAPS = {"NoneType", "NAType", "NaTType"}  # by name: pandas need not be there


class _CellError(InputError, TypeError):
    """A cell that is neither text nor number, which scikit-learn's contract has as a TypeError."""


def is_frame(values: Any) -> bool:
    """Whether something is a data frame (pandas, polars), whose columns have names and types of their own."""
    return hasattr(values, "columns") and hasattr(values, "__getitem__") and hasattr(values, "dtypes")


def table_of_frame(frame: Any) -> dict[str, NDArray[Any]]:
    """Return the columns of a data frame by name; texts, and whatever is of a category type, are categories.

    Raises:
        InputError: for columns of one name, of times, and for cells that are neither numbers nor texts.
    """
    names = [str(name) for name in frame.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two columns are called {twice!r}; rename one of them")
    return {str(name): _series(str(name), frame[name]) for name in frame.columns}


def table_of_array(array: NDArray[Any], names: Iterable[str] | None = None) -> Table:
    """Return the columns of an array of numbers, texts or Python objects, (n, columns), named by their numbers."""
    named = [str(column) for column in range(array.shape[1])] if names is None else list(names)
    return {name: _column(name, array[:, place]) for place, name in enumerate(named)}


def _series(name: str, series: Any) -> NDArray[Any]:
    kind = str(series.dtype).lower()
    if kind.startswith(("category", "categorical", "enum")):
        found = [None if _is_gap(value) else str(value) for value in np.asarray(series, dtype=object)]
        return _objects(found)
    return _column(name, series.to_numpy())


def _column(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "uifb":
        return values.astype(np.float64)
    if values.dtype.kind in "mM":
        raise InputError(
            f"column {name!r} holds times; give numbers in their place, such as days since a date, or the weekday"
        )
    found = [None if _is_gap(value) else value for value in values.tolist()]
    kinds = {type(value) for value in found if value is not None}
    if not kinds or all(issubclass(kind, Real | np.bool_) for kind in kinds):
        return np.array([np.nan if value is None else float(value) for value in found])
    if all(issubclass(kind, str) for kind in kinds):
        return _objects([None if value is None else str(value) for value in found])
    odd = next((kind for kind in kinds if not issubclass(kind, Real | np.bool_ | str)), None)
    if odd is not None:
        raise _CellError(f"column {name!r}: each argument must be a string or a number, got {odd.__name__}")
    text = next(value for value in found if isinstance(value, str))
    raise InputError(
        f"column {name!r} mixes numbers with texts, such as {text!r}; make all of them texts, or the texts gaps (None)"
    )


def _is_gap(value: Any) -> bool:
    return type(value).__name__ in _GAPS or (isinstance(value, float | np.floating) and value != value)


def _objects(values: list[Any]) -> NDArray[Any]:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
