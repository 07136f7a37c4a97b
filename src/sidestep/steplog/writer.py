"""Writing a step log: append only, a block at a time, each on the disk before anything counts on it."""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from sidestep.checkpoint import write_bytes
from sidestep.errors import CheckpointError, InputError
from sidestep.files import open_plain
from sidestep.steplog.codecs import Logged, codec_of, is_logged
from sidestep.steplog.codecs.buffers import statistics_to_bytes
from sidestep.steplog.format import CRC, MOST_STEPS, BlockHead
from sidestep.steplog.header import Header
from sidestep.update import Update

__all__ = ["LogWriter"]

BLOCK_BYTES = 1 << 20  # about as many; then a block ends, whatever its number of steps


class LogWriter:
    """Appends steps to a log. `commit` ends a block and returns what a checkpoint may count on."""

    def __init__(self, handle: BinaryIO, path: Path, header: Header, step: int, crc: int) -> None:
        self._handle, self._path, self._header, self._crc = handle, path, header, crc
        self._first, self._numbers, self._size = step, 0, 0.0
        self._kept: list[Logged] = []
        self._statistics: dict[str, Tensor] = {}  # written since the last block

    @classmethod
    def create(cls, path: Path, header: Header) -> "LogWriter":
        """Begin a log with its header; an earlier file of that name is replaced.

        Raises CheckpointError if the file cannot be written.
        """
        data = header.to_bytes()
        write_bytes(path, data)  # whole or not at all: what is in a folder can be resumed
        return cls.reopen(path, header, len(data), CRC.unpack(data[-CRC.size :])[0], 0)

    @classmethod
    def reopen(cls, path: Path, header: Header, size: int, crc: int, step: int) -> "LogWriter":
        """Go on with a log whose first `size` bytes, with this CRC, hold the steps below `step`; the rest is cut off.

        Raises CheckpointError if the file cannot be written.
        """
        with _explained(path):
            handle = open_plain(path, os.O_RDWR, alone=True)
            handle.truncate(size)
            handle.seek(size)
        return cls(handle, path, header, step, crc)

    def append(self, update: Update) -> None:
        """Add the update of the next step.

        Raises InputError for an update that cannot be logged, CheckpointError if the file cannot be written.
        """
        step = self._first + len(self._kept)
        if not is_logged(update, self._header, step):
            raise InputError(
                "the log holds trits, flips, or float32 numbers along dense probes with their learning rate, within "
                f"limits, but the update of step {step} is none of these ({type(update).__name__})"
            )
        codec = codec_of(update)
        numbers = codec.numbers(update)
        if self._kept and (codec is not codec_of(self._kept[0]) or self._numbers + numbers > codec.most):
            self.commit()
        statistics = self._statistics | {n: value.detach().cpu().clone() for n, value in update.statistics.items()}
        statistics_to_bytes(self._header, statistics)  # too large or of another shape: found at once
        self._kept.append(codec.kept(update))
        self._numbers, self._statistics = self._numbers + numbers, statistics
        self._size += codec.about_bytes(update)
        if len(self._kept) == MOST_STEPS or self._size >= BLOCK_BYTES:
            self.commit()

    def commit(self) -> tuple[int, int]:
        """Write what was appended, as a block, wait for the disk, and return the log's size and its CRC."""
        if self._kept:
            head, body = self._block()
            data = head + body
            self._crc = zlib.crc32(data, self._crc)
            with _explained(self._path):
                self._handle.write(data + CRC.pack(self._crc))
                self._handle.flush()
                os.fsync(self._handle.fileno())
            self._first += len(self._kept)
            self._kept, self._statistics, self._numbers, self._size = [], {}, 0, 0.0
        return self._handle.tell(), self._crc

    @property
    def header(self) -> Header:
        """The header that the log begins with."""
        return self._header

    @property
    def place(self) -> tuple[Path, int, int]:
        """The file, how many of its bytes are written, and how many steps these hold."""
        return self._path, self._handle.tell(), self._first

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._handle.closed

    def close(self) -> None:
        """Close the file; what was not committed is dropped."""
        self._handle.close()

    def _block(self) -> tuple[bytes, bytes]:
        statistics = statistics_to_bytes(self._header, self._statistics)
        codec = codec_of(self._kept[0])
        payload = codec.encode(self._kept, self._header)
        head = BlockHead(codec.kind, self._first, len(self._kept), len(statistics), len(payload))
        return head.to_bytes(), statistics + payload


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the step log {path} could not be written: {error.strerror}; what the last checkpoint counts on is kept, "
            "continue with --resume"
        ) from error
