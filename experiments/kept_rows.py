"""Finished runs of an experiment, one JSON object a line, so that none is made twice."""

import json
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from sidestep.errors import InputError
from sidestep.measure import environment_of
from sidestep.training import Compute

__all__ = ["Row", "keep_row", "kept_as", "kept_rows", "mean_and_deviation", "row_key"]

Row = dict[str, Any]
T = TypeVar("T")

_SOURCES = (Path(__file__).parent,)
environment_of(sources=_SOURCES)  # asks for the commit before anything runs


def kept_rows(path: Path) -> list[Row]:
    """Return the rows of a file, none where there is no file yet; a last line that was cut off is no row.

    Raises:
        InputError: for another line that is no row.
    """
    lines = _whole(path.read_bytes()).split(b"\n")[:-1] if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None:
            raise InputError(
                f"{path}, line {number}, is no JSON object: mend it or take it out, or choose another file"
            )
        rows.append(row)
    return rows


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _whole(text: bytes) -> bytes:
    """Return a file's lines without empty ones at its end, or zeros, and without a row that was cut off there."""
    content = text.rstrip(b"\x00\r\n ")
    last = content[content.rfind(b"\n") + 1 :]
    if b"\n" not in text[len(content) :] and last.startswith(b"{") and _row(last) is None:
        return content[: len(content) - len(last)]
    return content + b"\n" if content else b""


def _end_line(path: Path) -> None:
    """See that a file ends with a whole line, and write nothing else anew."""
    text = path.read_bytes() if path.exists() else b""
    whole = _whole(text)
    if whole != text:  # they are alike up to the end of the last line
        os.truncate(path, max(0, len(whole) - 1))
        with path.open("ab") as file:
            file.write(whole[-1:])


def kept_as(kind: type[T], path: Path) -> list[T]:
    """Return the rows of a file as objects of a dataclass; what it has no field for is left out."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return [kind(**{name: row[name] for name in names & row.keys()}) for row in kept_rows(path)]


def keep_row(path: Path, row: Row, device: str = "cpu") -> None:
    """Add a finished run to the file, with the command and the environment that it was made by, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    where = Compute.find(device, "float32").device
    kept = {**row, "command": _command(), "environment": environment_of(where, _SOURCES)}
    _end_line(path)
    with path.open("a") as file:
        file.write(json.dumps(kept) + "\n")
    print(json.dumps(row), flush=True)


def _command() -> str:
    """What was typed: of a module that was run with -m its name, which is not among the arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    given = ["-m", spec.name] if spec else sys.argv[:1]
    return shlex.join(["python", *given, *sys.argv[1:]])


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
