"""Writing a step log: append only, a block at a time, each on the disk before anything counts on it."""

import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeGuard

import torch
from torch import Tensor

from sidestep.checkpoint import write_bytes
from sidestep.errors import CheckpointError, InputError
from sidestep.files import open_plain
from sidestep.probes import DenseProbes
from sidestep.steplog.codecs.buffers import statistics_to_bytes
from sidestep.steplog.codecs.flips import encode_flips
from sidestep.steplog.codecs.reals import encode_reals
from sidestep.steplog.codecs.trits import encode_trits, work_of
from sidestep.steplog.format import CRC, FLIPS, MOST_COEFS, MOST_FLIPS, MOST_STEPS, MOST_WORK, REALS, TRITS, BlockHead
from sidestep.steplog.header import Header
from sidestep.update import Flips, Seeded, Update

__all__ = ["LogWriter", "Logged", "is_logged"]

Logged = Seeded | Flips
BLOCK_BYTES = 1 << 20  # about as many; then a block ends, whatever its number of steps


def is_logged(update: Update, header: Header, step: int) -> TypeGuard[Logged]:
    """Say whether an update can be logged: flips, or one number per probe that is drawn from the run's noise.

    The numbers are trits; along dense probes they are float32 and have a learning rate. Steps that would take more than
    2^31 operations to replay, or have more than 2^24 flips, cannot.
    """
    if isinstance(update, Flips):
        return update.positions.numel() <= MOST_FLIPS
    if not isinstance(update, Seeded) or not 1 <= update.coefs.numel() <= MOST_COEFS:
        return False
    probes, noise, coefs = update.probes, update.probes.noise, update.coefs
    placed = (noise.seed, noise.substream, noise.step, probes.weights) == (header.seed, 0, step, header.weights)
    if not placed or coefs.shape != (probes.count,) or work_of(probes) > MOST_WORK:
        return False
    if isinstance(probes, DenseProbes):
        rated = update.rate is not None and math.isfinite(update.rate) and update.rate >= 0
        return rated and coefs.dtype == torch.float32 and probes.parameters == header.shapes
    return bool(((coefs == 0) | (coefs.abs() == 1)).all())


class LogWriter:
    """Appends steps to a log. `commit` ends a block and returns what a checkpoint may count on."""

    def __init__(self, handle: BinaryIO, path: Path, header: Header, step: int, crc: int) -> None:
        self._handle, self._path, self._header, self._crc = handle, path, header, crc
        self._first, self._coefs, self._flips, self._size = step, 0, 0, 0.0
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
        coefs = update.coefs.numel() if isinstance(update, Seeded) else 0
        flips = update.positions.numel() if isinstance(update, Flips) else 0
        full = self._coefs + coefs > MOST_COEFS or self._flips + flips > MOST_FLIPS
        if self._kept and (full or _kind(update) != _kind(self._kept[-1])):
            self.commit()
        statistics = self._statistics | {n: value.detach().cpu().clone() for n, value in update.statistics.items()}
        statistics_to_bytes(self._header, statistics)  # too large or of another shape: found at once
        self._kept.append(_on_cpu(update))
        self._coefs, self._flips, self._statistics = self._coefs + coefs, self._flips + flips, statistics
        self._size += _bytes(update)
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
            self._kept, self._statistics, self._coefs, self._flips, self._size = [], {}, 0, 0, 0.0
        return self._handle.tell(), self._crc

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._handle.closed

    def close(self) -> None:
        """Close the file; what was not committed is dropped."""
        self._handle.close()

    def _block(self) -> tuple[bytes, bytes]:
        statistics = statistics_to_bytes(self._header, self._statistics)
        seeded = [update for update in self._kept if isinstance(update, Seeded)]
        flips = [update for update in self._kept if isinstance(update, Flips)]
        kind = _kind(self._kept[0])
        if kind == FLIPS:
            payload = encode_flips(flips, self._header.weights)
        else:
            payload = encode_trits(seeded) if kind == TRITS else encode_reals(seeded)
        head = BlockHead(kind, self._first, len(self._kept), len(statistics), len(payload))
        return head.to_bytes(), statistics + payload


def _kind(update: Logged) -> int:
    if isinstance(update, Flips):
        return FLIPS
    return REALS if isinstance(update.probes, DenseProbes) else TRITS


def _bytes(update: Logged) -> float:
    """About how many bytes an update will take."""
    if isinstance(update, Flips):
        return update.positions.numel() * 1.6
    return update.coefs.numel() * 0.2 if _kind(update) == TRITS else update.coefs.numel() * 4.0 + 8


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the step log {path} could not be written: {error.strerror}; what the last checkpoint counts on is kept, "
            "continue with --resume"
        ) from error


def _on_cpu(update: Logged) -> Logged:
    """What the log needs of an update, in memory of its own."""
    if isinstance(update, Seeded):
        dtype = torch.int8 if _kind(update) == TRITS else torch.float32
        return Seeded(update.coefs.detach().to("cpu", dtype, copy=True), update.probes, rate=update.rate)
    return Flips(update.positions.to("cpu", torch.int64, copy=True), update.moves.to("cpu", torch.int8, copy=True))
