"""Finished runs of an experiment, one JSON object a line, so that none is made twice."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Row", "keep_row", "kept_rows", "mean_and_deviation", "row_key"]

Row = dict[str, Any]


def kept_rows(path: Path) -> list[Row]:
    """Return the rows of a file, none where there is no file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep_row(path: Path, row: Row) -> None:
    """Add a finished run to the file, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def row_key(row: Row, names: tuple[str, ...]) -> str:
    """Return what tells a run from others: its values of these names."""
    return json.dumps([row[name] for name in names], sort_keys=True)


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Return the mean and, in brackets, the standard deviation; a single value as it is.

    >>> mean_and_deviation([1.0, 2.0, 3.0], 1), mean_and_deviation([1.0], 2)
    ('2.0 (1.0)', '1.00')
    """
    spread = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"
