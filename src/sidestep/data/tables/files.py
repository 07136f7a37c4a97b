"""Tables in files, CSV and parquet, as columns: numbers with NaN for gaps, or texts with None for gaps."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidestep.data.tables.encoding import Table, number_of
from sidestep.data.tables.frames import table_of_frame
from sidestep.errors import DataError, InputError

__all__ = ["GAPS", "are_dates", "is_table_file", "no_number", "read_table"]

GAPS = frozenset({"", "?", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null"})  # cells without a value
_TEXTS, _PARQUET = (".csv", ".tsv"), (".parquet", ".pq")
_DELIMITERS = (",", ";", "\t", "|")
_LONGEST = 1 << 20  # signs of a cell
_DATE = re.compile(
    r"([12]\d{3}([-/.])\d\d?\2\d\d?|\d\d?([-/.])\d\d?\3[12]\d{3}|\d\d?/\d\d?/\d\d)([T ]\d\d?:\d\d.*)?", re.ASCII
)  # the year first or last; 1.2.26 is a version as well


def is_table_file(path: Path) -> bool:
    """Whether a file is a table of columns with names, by its suffix."""
    return path.suffix.lower() in (*_TEXTS, *_PARQUET)


def read_table(path: Path, kinds: Mapping[str, str] | None = None) -> tuple[Table, dict[str, str]]:
    """Return the columns of a file by name, and those that cannot be read, with the reason.

    A column of a CSV file whose cells are all numbers or gaps holds numbers, another one texts. Cells are separated by
    whichever of comma, semicolon, tab and bar the first line has most of; where it is the semicolon, numbers may have
    decimal commas.

    Args:
        path: of a `.csv`, `.tsv`, `.parquet` or `.pq` file; the first line of a text file names the columns.
        kinds: number or category, of columns that are known; a known category stays one if all its texts are numbers.

    Raises:
        DataError: for a file that is missing, damaged, empty or without names, and where pandas is needed and missing.
    """
    known = kinds or {}
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if path.suffix.lower() in _PARQUET:
        return _parquet(path, known)
    names, columns, delimiter = _cells(path)
    decimal = delimiter == ";"
    return {name: _typed(cells, known.get(name), decimal) for name, cells in zip(names, columns, strict=True)}, {}


def _cells(path: Path) -> tuple[list[str], list[tuple[str, ...]], str]:
    """Return the names, the texts of each column, and what separates them."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(_DELIMITERS, key=first.count) if path.suffix.lower() != ".tsv" else "\t"
            file.seek(0)
            csv.field_size_limit(_LONGEST)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            names = [name.strip() for name in next(reader, [])]
            rows = []
            for row in reader:
                if not row:
                    continue  # an empty line
                if len(row) != len(names):
                    raise DataError(
                        f"{path}: line {reader.line_num} has {len(row)} cells, but the first line names {len(names)} "
                        "columns; mend that line (a text that holds the separator takes quotes)"
                    )
                rows.append(row)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    _check_names(path, names, len(rows))
    return names, list(zip(*rows, strict=True)), delimiter


def _check_names(path: Path, names: list[str], rows: int) -> None:
    if not names or not rows:
        raise DataError(f"{path} has no rows; it takes a first line with the names of the columns, and rows below it")
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are called {twice!r}; rename one of them")
    if all(name in GAPS or number_of(name) is not None for name in names):
        raise DataError(
            f"{path}: the first line, {', '.join(names[:4])}, must hold the names of the columns; add such a line"
        )
    for place, name in enumerate(names):  # what pandas writes beside a frame, say
        names[place] = name or f"column {place + 1}"


def _typed(cells: tuple[str, ...], kind: str | None, decimal: bool) -> NDArray[Any]:
    """Return numbers where all cells are numbers or gaps, texts otherwise."""
    texts = [cell.strip() for cell in cells]
    if kind != "category":
        numbers = np.array([np.nan if text in GAPS else number_of(text, decimal) for text in texts], dtype=object)
        if not any(number is None for number in numbers):
            return numbers.astype(np.float64)
    found = np.empty(len(texts), dtype=object)
    found[:] = [None if text in GAPS else text for text in texts]
    return found


def no_number(texts: list[str]) -> str | None:
    """Return the first text that is no number, of a column where nine in ten are numbers; None of other columns."""
    others = [text for text in texts if number_of(text) is None and number_of(text, decimal=True) is None]
    return others[0] if others and 10 * len(others) <= len(texts) else None


def are_dates(texts: list[str]) -> bool:
    """Whether all texts are dates with a year, a month and a day, or times of such days.

    >>> are_dates(["2026-11-29", "2026-11-30 08:15"]), are_dates(["29.11.2026", "1/9/26"]), are_dates(["1.2.26"])
    (True, True, False)
    """
    return bool(texts) and all(map(_DATE.fullmatch, texts))


def _parquet(path: Path, known: Mapping[str, str]) -> tuple[Table, dict[str, str]]:
    try:
        import pandas
    except ImportError as error:
        raise DataError(
            f"{path}: parquet files take pandas and pyarrow: pip install 'sidestep[tables]' (or write a .csv file)"
        ) from error
    try:
        frame = pandas.read_parquet(path)
    except Exception as error:  # whatever the reader raises for a damaged file
        said = str(error).strip().partition("\n")[0]
        raise DataError(f"{path} cannot be read as parquet ({type(error).__name__}: {said})") from error
    if not len(frame) or not len(frame.columns):
        raise DataError(f"{path} has no rows")
    table: dict[str, NDArray[Any]] = {}
    refused: dict[str, str] = {}
    for name in frame.columns:
        try:
            values = table_of_frame(frame[[name]])[str(name)]
        except InputError as error:
            refused[str(name)] = str(error)
            continue
        if known.get(str(name)) == "category" and values.dtype != object:
            values = np.array([None if value != value else f"{value:g}" for value in values], dtype=object)
        table[str(name)] = values
    return table, refused
