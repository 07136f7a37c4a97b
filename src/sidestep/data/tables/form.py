"""What a table in a file is: its target, the columns that a net gets, those that are left out, and why."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidestep.data.notices import report
from sidestep.data.tables.encoding import Columns, Table
from sidestep.data.tables.files import is_table_file, read_table
from sidestep.data.tables.frames import is_frame, table_of_frame
from sidestep.errors import CheckpointError, InputError
from sidestep.wording import counted

__all__ = ["ColumnSeen", "TableForm"]

_NAMED = 8  # categories in one notice


@dataclass(frozen=True)
class ColumnSeen:
    """A column of the file, for people: its kind (number, category, target or left out), gaps, and more in words."""

    name: str
    kind: str
    gaps: int
    about: str


@dataclass(frozen=True)
class TableForm:
    """How rows of a table become what a net gets, as a run keeps it: other rows are encoded alike.

    target: the column that is predicted.
    targets: classes or values.
    columns: of the inputs, as they were over the train rows.
    outputs: names of the classes, or of the one value.
    seen: every column of the file that it was made of; empty where it was read back.
    """

    target: str
    targets: str
    columns: Columns
    outputs: tuple[str, ...]
    seen: tuple[ColumnSeen, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return what a run keeps of it as plain values, beside the outputs' names, which its task has."""
        return {"target": self.target, "columns": self.columns.record()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], targets: str, outputs: Sequence[str]) -> "TableForm | None":
        """Return the form of a record of data, None for data that are no table; raises CheckpointError for others."""
        if "columns" not in record:
            return None
        if not isinstance(record["columns"], list) or not isinstance(record.get("target"), str):
            raise CheckpointError("the record of a table lacks its target, or its columns are no list")
        return cls(record["target"], targets, Columns.from_record(record["columns"]), tuple(outputs))

    @property
    def kinds(self) -> dict[str, str]:
        """Name -> number or category, of every column that is read."""
        named = {column.name: column.kind for column in self.columns.columns}
        return {**named, **({self.target: "category"} if self.targets == "classes" else {})}

    def rows(self, given: Any) -> NDArray[np.float64]:
        """Return the rows of a file or a data frame as the net gets them, (n, width); other columns are left out.

        Raises:
            DataError: for a file that cannot be read; InputError: for columns that are missing or of another kind.
        """
        if isinstance(given, str | os.PathLike):
            path = Path(given)
            if not is_table_file(path):
                raise InputError(f"{path}: the net was trained on a table; give a .csv, .tsv or .parquet file")
            table, where = read_table(path, self.kinds)[0], str(path)
        elif is_frame(given):
            wanted = [name for name in given.columns if str(name) in self.kinds and str(name) != self.target]
            table, where = table_of_frame(given[wanted]), "the table"
        else:
            raise InputError(f"rows must be a file or a data frame with the columns' names, got {type(given).__name__}")
        return self.encoded(table, where)

    def encoded(self, table: Table, where: str) -> NDArray[np.float64]:
        """Return rows as the net gets them; a category that train did not have is taken for a gap, and reported."""
        for column in self.columns.columns:
            values = table.get(column.name)
            if column.kind == "category" and values is not None and values.dtype == object:
                new = [value for value in values.tolist() if value is not None and value not in column.categories]
                if new:
                    names = list(dict.fromkeys(new))
                    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
                    report(
                        f"{where}: column {column.name!r} has {', '.join(map(repr, names[:_NAMED]))}{more} in "
                        f"{counted(len(new), 'row')}, which no train row had: taken for a missing value"
                    )
        return self.columns.encoded(table, unknown="missing")
