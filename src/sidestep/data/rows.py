"""Inputs and targets that stay in a file: rows of a read-only memory map, made into tensors when they are asked for."""

import mmap
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidestep.errors import InputError

__all__ = ["Convert", "Rows", "Stored", "blocks", "in_memory", "is_mapped", "stored"]

Convert = Callable[[NDArray[Any], str], Tensor]  # rows as they lie in the array, and what they are called in errors

_PAGE = 1 << 21  # bytes, of the largest pages that systems map files by
_PAGES = 16  # of them that are in memory together
_BLOCK = 1 << 20  # numbers that are looked at together


class Rows:
    """What a tensor of all rows would be, of which only the rows that are asked for are in memory.

    The array must not change while it is used. What was read is let go of at once, so that memory does not grow with
    what has been seen; it stays in the system's cache of the file as long as there is room.

    >>> rows = Rows(np.arange(6.0).reshape(3, 2), lambda part, where: torch.from_numpy(part.copy()), "numbers")
    >>> rows.shape, rows[torch.tensor([2, 0])].tolist(), rows.part(slice(1, 3))[:1].tolist()
    (torch.Size([3, 2]), [[4.0, 5.0], [0.0, 1.0]], [[2.0, 3.0]])
    """

    def __init__(
        self,
        array: NDArray[Any],
        convert: Convert,
        where: str,
        index: NDArray[Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """Args:
        array: the rows, along the first axis.
        convert: some rows of it -> their tensor, a function of each row alone.
        where: what they are called in errors.
        index: which rows, and in which order; None: all.
        device: of the tensors that are handed out.
        """
        self._array, self._convert, self._where, self._index = np.asarray(array), convert, where, index
        self.device = torch.device(device)
        like = convert(self._array[:1], where)
        self.dtype, self.shape = like.dtype, torch.Size([len(self), *like.shape[1:]])
        self.ndim = like.ndim

    def __len__(self) -> int:
        return len(self._array if self._index is None else self._index)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The tensor of some rows, given by their numbers (n,) or as a slice, on the device."""
        chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
        if self._index is not None:
            chosen = self._index[chosen]
        part = self._array[chosen] if isinstance(chosen, slice) else _gathered(self._array, chosen)
        return self._read(part, self._where).to(self.device)

    def part(self, rows: Tensor | slice) -> "Rows":
        """Some rows, which stay in the file."""
        chosen = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows.cpu().numpy()
        index = chosen if self._index is None else self._index[chosen]
        return Rows(self._array, self._convert, self._where, index.astype(_index_kind(len(self._array))), self.device)

    def to(self, device: str | torch.device) -> "Rows":
        """The same rows, whose tensors will be on `device`; they stay in the file."""
        return Rows(self._array, self._convert, self._where, self._index, device)

    def is_floating_point(self) -> bool:
        """Whether the tensors are of floats."""
        return self.dtype.is_floating_point

    def check(self) -> None:
        """Convert all rows once, a block at a time, for the errors that this raises, and let go of them."""
        step = _rows_at_once(self.shape)
        for start in range(0, len(self._array), step):
            part = self._array[start : start + step]
            self._read(part, f"{self._where}, rows {start:,} to {start + len(part) - 1:,}")

    def _read(self, part: NDArray[Any], where: str) -> Tensor:
        if not len(part):
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        try:
            return self._convert(part, where)
        finally:
            _release(self._array)


Stored = Tensor | Rows  # in memory or in a file


def stored(array: NDArray[Any], convert: Convert, where: str) -> Stored:
    """The tensor of an array; of a read-only memory map its checked rows, which stay in the file."""
    if not is_mapped(array) or not array.size:
        return convert(array, where)
    found = Rows(array, convert, where)
    found.check()
    return found


def is_mapped(array: Any) -> bool:
    """Whether an array is a memory map that nobody can write to through it, so that it need not be copied."""
    return isinstance(array, np.memmap) and getattr(array, "mode", None) == "r" and not array.flags.writeable


def blocks(of: Any) -> Iterator[Any]:
    """All rows in their order, some at a time: of a tensor or of rows in a file as many as make a million numbers,
    of tensors by name all.
    """
    step = _rows_at_once(of.shape) if hasattr(of, "shape") else len(of)
    for start in range(0, len(of), step):
        yield of[start : start + step]


def in_memory(of: Stored, what: str) -> Tensor:
    """The tensor, or InputError for rows that stay in a file, because what needs them looks at all at once."""
    if isinstance(of, Rows):
        raise InputError(
            f"{what} looks at all training inputs at once, but these stay in a memory-mapped file; give them as arrays "
            "in memory, if there is room for them"
        )
    return of


def _rows_at_once(shape: torch.Size) -> int:
    return max(1, _BLOCK // max(1, shape[1:].numel()))


def _index_kind(count: int) -> type[np.signedinteger[Any]]:
    return np.int32 if count < 1 << 31 else np.int64


def _gathered(array: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """The rows as a copy, a few pages of the file at a time: a system may map two megabytes around each number read."""
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    page = rows.astype(np.int64) * abs(array.strides[0]) // _PAGE
    turns = np.concatenate([[0], np.cumsum(page[1:] != page[:-1])]) // _PAGES
    starts = np.flatnonzero(np.concatenate([[True], turns[1:] != turns[:-1]]))
    for start, end in pairwise([*starts.tolist(), len(rows)]):
        found[start:end] = array[rows[start:end]]
        _release(array)
    return found


def _release(array: NDArray[Any]) -> None:
    """Let the system take the pages of the file back that the process has read."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
