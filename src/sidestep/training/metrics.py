"""`metrics.jsonl`: one JSON object a line; what a checkpoint counts on is known by its size and its digest."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sidestep.errors import CheckpointError
from sidestep.files import check_plain, open_plain

__all__ = ["MetricsLog", "bytes_until", "check_metrics", "open_metrics", "read_values", "writer"]


class MetricsLog:
    """Appends one JSON object a line; what `commit` returns is what a checkpoint may count on."""

    def __init__(self, handle: BinaryIO, kept: bytes) -> None:
        self._handle, self._digest = handle, _digest(kept)

    def write(self, step: int, split: str, name: str, value: float, seconds: float) -> None:
        """Append one line."""
        line = {"step": step, "split": split, "name": name, "value": value, "seconds": round(seconds, 3)}
        data = (json.dumps(line) + "\n").encode()
        self._digest.update(data)
        self._handle.write(data)
        self._handle.flush()

    def commit(self) -> dict[str, Any]:
        """Make sure that all lines are on disk, and return their size in bytes and their digest, for the record."""
        os.fsync(self._handle.fileno())
        return {"metrics_bytes": int(self._handle.tell()), "metrics_digest": self._digest.hexdigest()}


def writer(log: MetricsLog | None, step: int, seconds: float) -> Callable[[str, str, float], None]:
    """Return what writes an observer's number into the metrics, if there are any, as one of this step."""

    def write(split: str, name: str, value: float) -> None:
        if log:
            log.write(step, split, name, value, seconds)

    return write


@contextmanager
def open_metrics(path: Path, keep: int) -> Iterator[MetricsLog]:
    """Open the metrics for appending, after cutting off whatever stands beyond the first `keep` bytes."""
    try:
        with open_plain(path, os.O_RDWR | os.O_CREAT, alone=True) as handle:
            kept = handle.read(keep)
            _check_size(path, len(kept), keep)
            handle.truncate(keep)
            handle.seek(keep)
            yield MetricsLog(handle, kept)
    except OSError as error:  # what else writes to disk in here raises CheckpointError itself
        raise CheckpointError(
            f"{path} could not be written: {error.strerror}; the last checkpoint is kept, continue with --resume"
        ) from error


def check_metrics(path: Path, record: Mapping[str, Any]) -> int:
    """Return how many bytes of the metrics a checkpoint counts on, after comparing them with its record.

    Raises:
        CheckpointError: if they were cut or changed.
    """
    keep = int(record["metrics_bytes"])
    kept = _read(path, keep)
    _check_size(path, len(kept), keep)
    if "metrics_digest" in record and record["metrics_digest"] != _digest(kept).hexdigest():
        raise CheckpointError(
            f"{path} was changed or damaged: its first {keep:,} bytes are not those that the checkpoint counts on. "
            "Bring it back as it was, or start again with --overwrite"
        )
    return keep


def bytes_until(path: Path, step: int) -> int:
    """Return how many bytes of the metrics belong to the steps up to `step`: whole lines from the beginning on."""
    kept = 0
    for line in _read(path, -1).splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, LookupError, TypeError, RecursionError):
            break
        kept += len(line)
    return kept


def _check_size(path: Path, size: int, keep: int) -> None:
    if size < keep:
        raise CheckpointError(
            f"{path} has {size} bytes, but the checkpoint counts on {keep}: it was changed or cut; start again with "
            "--overwrite"
        )


def _read(path: Path, size: int) -> bytes:
    if not check_plain(path):
        return b""
    try:
        with open_plain(path, os.O_RDONLY) as handle:
            return handle.read(size)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _digest(data: bytes) -> "hashlib.blake2b":
    return hashlib.blake2b(data, digest_size=16)


def read_values(path: Path, split: str, name: str) -> list[tuple[int, float]]:
    """Return (step, value) of every line with that split and name; raises CheckpointError for a damaged file."""
    found = []
    try:
        for line in map(json.loads, _read(path, -1).splitlines()):
            if line["split"] == split and line["name"] == name:
                found.append((int(line["step"]), float(line["value"])))
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return found
