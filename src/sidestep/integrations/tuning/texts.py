"""Texts with labels from a table, or one long text: what is read, and which of it is kept for validation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidestep.data.tables.files import is_table_file, read_table
from sidestep.errors import DataError, InputError
from sidestep.noise import Noise
from sidestep.wording import suggestion

__all__ = ["Texts", "cut", "label_numbers", "read_labelled", "read_lines", "read_text"]

_TEXT_NAMES = ("text", "sentence", "review", "content")


@dataclass(frozen=True)
class Texts:
    """Texts, and the label of each."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The labels that there are, in order."""
        return tuple(sorted(set(self.labels), key=_order))


def read_labelled(path: Path, target: str | None, text: str | None) -> Texts:
    """Return the texts and labels of a table; rows without a label are left out.

    Raises:
        DataError: for a file that cannot be read, or without such columns.
    """
    columns, _ = read_table(path, {target: "category"} if target else None)
    target, text = _columns(path, list(columns), target, text)
    rows = [
        (_words(words), _words(label))
        for words, label in zip(columns[text], columns[target], strict=True)
        if _words(label)
    ]
    if not rows:
        raise DataError(f"{path}: no row has a label in the column {target!r}")
    return Texts(*zip(*rows, strict=True))


def read_lines(path: Path, text: str | None) -> list[str]:
    """Return the texts of a table's column, or the lines of a text file that are not empty."""
    if not is_table_file(path):
        return [line for line in read_text(path).splitlines() if line.strip()]
    columns, _ = read_table(path)
    names = list(columns)
    known = [name for name in _TEXT_NAMES if name in names]
    chosen = text or (names[0] if len(names) == 1 else known[0] if known else None)
    if chosen is None or chosen not in columns:
        raise DataError(f"{path} has the columns {', '.join(names)}; say which of them holds the texts, --text NAME")
    return [_words(words) for words in columns[chosen]]


def read_text(path: Path) -> str:
    """Return a file as text; raises DataError if it cannot be read, is empty, or is no UTF-8."""
    try:
        found = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not found.strip():
        raise DataError(f"{path} is empty; it takes text")
    return found


def cut(count: int, validation: float, least: int = 1) -> tuple[Tensor, Tensor]:
    """Return the numbers of the rows to train on and to validate on, the same for every seed.

    Raises DataError where too few are left on either side.
    """
    kept = max(1, round(validation * count))
    if count - kept < least:
        raise DataError(
            f"there are {count:,} texts, of which {kept:,} are for validation: that leaves "
            f"{count - kept:,}, and {least:,} or more are needed; give more texts, or a smaller batch"
        )
    order = Noise(0).stream("texts").stream("validation").permutation(count)
    return order[kept:].sort().values, order[:kept].sort().values


def label_numbers(labels: tuple[str, ...], kinds: tuple[str, ...], path: Path) -> Tensor:
    """Return the number of every label; raises DataError for one that the model was not tuned for."""
    places = {kind: place for place, kind in enumerate(kinds)}
    other = next((label for label in labels if label not in places), None)
    if other is not None:
        raise DataError(f"{path} has the label {other!r}, and the model tells {', '.join(kinds[:8])}")
    return torch.tensor([places[label] for label in labels])


def _columns(path: Path, names: list[str], target: str | None, text: str | None) -> tuple[str, str]:
    if target is None:
        raise InputError(f"{path} has the columns {', '.join(names)}; say which holds the labels, --target NAME")
    for name in filter(None, (target, text)):
        if name not in names:
            raise DataError(f"{path} has no column {name!r}: {suggestion(name, names, 'it has ' + ', '.join(names))}")
    others = [name for name in names if name != target]
    known = [name for name in _TEXT_NAMES if name in others]
    chosen = text or (others[0] if len(others) == 1 else known[0] if known else None)
    if chosen is None:
        raise InputError(f"{path} has the columns {', '.join(others)} beside {target}; name the texts', --text NAME")
    return target, chosen


def _words(cell: Any) -> str:
    return "" if cell is None or cell != cell else cell if isinstance(cell, str) else f"{cell:g}"


def _order(label: str) -> tuple[int, float, str]:
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label
