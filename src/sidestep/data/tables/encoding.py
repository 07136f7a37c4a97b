"""A table of numbers, categories and gaps as columns of numbers for a net, and the same columns again for other rows.

number      x -> (x - mean) / std            a gap -> 0, and 1 in a column of its own if train had gaps there
category    one column of 0 and 1 for each text seen in train; a gap is one more category if train had gaps there
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sidestep.errors import CheckpointError, InputError
from sidestep.wording import meant

__all__ = ["Column", "Columns", "Table", "Unknown", "number_of"]

Table = Mapping[str, NDArray[Any]]  # name -> numbers, float64 with NaN for gaps; or texts, object with None for gaps
Unknown = Literal["error", "missing"]


def number_of(text: str, decimal: bool = False) -> float | None:
    """Return a text's number, None if it is none; `1_000`, which Python takes for one, is none."""
    if "_" in text:
        return None
    try:
        return float(text.replace(",", ".") if decimal else text)
    except ValueError:
        return None


def _first_text(values: NDArray[Any]) -> str:
    """Return the first cell that is no number, as decimal points or commas leave fewer such; the first if none is."""
    there = [str(value) for value in values if value is not None]
    odd = [[text for text in there if number_of(text, decimal) is None] for decimal in (False, True)]
    fewest = min([texts for texts in odd if texts] or [there], key=len)
    return fewest[0]


@dataclass(frozen=True)
class Column:
    """One column as it was over the train rows.

    name: in the table.
    kind: number or category.
    gaps: whether train rows lacked it, so that a gap has a column of its own.
    mean, std: of numbers, over the rows that have one.
    categories: of texts, in their order.
    """

    name: str
    kind: Literal["number", "category"]
    gaps: bool = False
    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, values: NDArray[Any]) -> "Column":
        """Return what a column of train rows is like; the order of the rows makes no difference, to the last bit."""
        if values.dtype == object:
            seen = set(values.tolist())
            return cls(name, "category", None in seen, categories=tuple(sorted(seen - {None})))
        numbers = np.sort(values[~np.isnan(values)])
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = (float(numbers.mean()), float(numbers.std())) if len(numbers) else (0.0, 1.0)
        if not np.isfinite((mean, std)).all():
            raise InputError(f"column {name!r} holds infinity, or numbers too large to square; leave these rows out")
        flat = std <= 1e-12 * abs(mean)  # rounding alone
        return cls(name, "number", len(numbers) < len(values), mean, 1.0 if flat or not std else std)

    @property
    def width(self) -> int:
        """How many columns of numbers it becomes."""
        return (1 if self.kind == "number" else len(self.categories)) + self.gaps

    def encoded(self, values: NDArray[Any], unknown: Unknown) -> NDArray[np.float64]:
        """Return rows of the column as numbers, (n, width), float64.

        Raises:
            InputError: for infinity, for texts where numbers were or the reverse, and for a category that train did not
                have, unless `unknown` takes it for a gap.
        """
        if self.kind == "number":
            return self._numbers(values)
        numeric = values.dtype != object
        gap = np.isnan(values) if numeric else np.fromiter((value is None for value in values), bool, len(values))
        found = np.zeros((len(values), self.width))
        if gap.all():
            places = np.full(len(values), -1)
        elif numeric:
            raise InputError(
                f"column {self.name!r} held categories in training, but holds numbers now; give the same columns"
            )
        else:
            where = {text: place for place, text in enumerate(self.categories)}
            places = np.fromiter((where.get(value, -1) for value in values), np.int64, len(values))
        strange = (places < 0) & ~gap
        if strange.any() and unknown == "error":
            raise InputError(self._unknown(str(values[int(strange.argmax())])))
        known = places >= 0
        found[np.flatnonzero(known), places[known]] = 1
        if self.gaps:
            found[~known, -1] = 1
        return found

    def _numbers(self, values: NDArray[Any]) -> NDArray[np.float64]:
        if values.dtype == object and any(value is not None for value in values):
            raise InputError(
                f"column {self.name!r} held numbers in training, but holds texts now, such as "
                f"{_first_text(values)!r}; leave a cell without a value empty, or give the same columns"
            )
        numbers = np.full(len(values), np.nan) if values.dtype == object else values
        if np.isinf(numbers).any():
            raise InputError(f"column {self.name!r} holds infinity; leave these rows out, or give a finite number")
        missing = np.isnan(numbers)
        scaled = np.where(missing, 0.0, (numbers - self.mean) / self.std)
        return np.stack([scaled, missing], axis=1) if self.gaps else scaled[:, None]

    def _unknown(self, value: str) -> str:
        hint = meant(value, self.categories)
        known = ", ".join(map(repr, self.categories[:8])) + (", ..." if len(self.categories) > 8 else "")
        return (
            f"column {self.name!r} has the category {value!r}, which no train row had; {hint}known are {known}; "
            "unknown='missing' takes others for gaps"
        )


@dataclass(frozen=True)
class Columns:
    """The columns of a table, in the order in which a net gets them."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, table: Table) -> "Columns":
        """Return the columns of train rows."""
        return cls(tuple(Column.of(name, values) for name, values in table.items()))

    @classmethod
    def from_record(cls, record: Sequence[Mapping[str, Any]]) -> "Columns":
        """Return the columns of a record that `record` gave; raises CheckpointError for anything else."""
        try:
            found = tuple(Column(**{**each, "categories": tuple(each.get("categories", ()))}) for each in record)
            kinds = get_args(Column.__annotations__["kind"])
            if not all(each.kind in kinds and each.std > 0 and all(map(_is_text, each.categories)) for each in found):
                raise TypeError("a column of a kind, a deviation or categories that none has")
        except (TypeError, AttributeError) as error:
            raise CheckpointError(f"the record of a table's columns is damaged: {error}") from error
        return cls(found)

    def record(self) -> list[dict[str, Any]]:
        """Return them as plain values."""
        return [{**asdict(column), "categories": list(column.categories)} for column in self.columns]

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [column.name for column in self.columns]

    @property
    def width(self) -> int:
        """How many numbers the net gets for a row."""
        return sum(column.width for column in self.columns)

    def encoded(self, table: Table, unknown: Unknown = "error") -> NDArray[np.float64]:
        """Return rows as the net gets them, (n, width), float64; columns are found by name, and others are left out.

        Raises:
            InputError: for a column that is not there, and as `Column.encoded`.
        """
        missing = [name for name in self.names if name not in table]
        if missing:
            raise InputError(
                f"the table lacks the column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing[:8]))} of "
                f"the training; it has {', '.join(map(repr, list(table)[:8]))}"
            )
        parts = [column.encoded(table[column.name], unknown) for column in self.columns]
        return np.concatenate(parts, axis=1)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
