"""How far an evaluation has come, in a file, so that one that is stopped goes on from there."""

import itertools
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidestep import checkpoint
from sidestep.data import Split
from sidestep.data.named import tensors_of
from sidestep.data.rows import blocks
from sidestep.errors import CheckpointError
from sidestep.training.stopping import Stopped, StopRequest

__all__ = ["Count", "EvaluationProgress", "checksum"]


@dataclass
class Count:
    """Right answers among the first `images` of a split, by reading."""

    right: dict[str, float]  # whole numbers for classes; sums of scores for other targets
    images: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)  # of whatever else is added up, by reading
    after_batch: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    def add(self, right: Mapping[str, float], images: int, more: Mapping[str, Tensor] | None = None) -> None:
        """Count a batch; `more` is added up by reading, as it is."""
        for name, number in right.items():
            self.right[name] += number
        for name, values in (more or {}).items():
            before = torch.tensor(self.sums[name], dtype=torch.float64) if name in self.sums else 0
            self.sums[name] = (values + before).tolist()
        self.images += images
        self.after_batch()


class EvaluationProgress:
    """Counts of several splits, written to a file every so many seconds, and when a stop is requested.

    A file is taken up if its key, which says of what net and how it is evaluated, is the same.
    """

    def __init__(self, file: Path | None, key: Mapping[str, Any], seconds: float, stop: StopRequest) -> None:
        self._file, self._key, self._seconds, self._stop = file, dict(key), seconds, stop
        self._saved = time.perf_counter()
        self._counts: dict[str, Count] = {}
        self._data: dict[str, int] = {}
        self._earlier = _read(file, self._key)

    def of(
        self, name: str, split: Split, names: Sequence[str], report: Callable[[int], None] = lambda images: None,
        numbers: int = 0,
    ) -> Count:  # fmt: skip
        """Return the count of a split by the named readings: an earlier one of the same images, or a new one.

        Args:
            name: of the split.
            split: its images and labels.
            names: of the readings.
            tell: called with the number of images after every batch.
            numbers: how many `sums` a reading has, if any.
        """
        earlier = self._earlier.get(name, {})
        inputs = (block for tensor in tensors_of(split.images) for block in blocks(tensor))
        rows = itertools.chain(inputs, blocks(split.labels))
        data = checksum(rows) if self._file else 0  # without a file nothing is continued
        same = _is_count(earlier, names, len(split), numbers) and earlier.get("data") == data
        count = Count(dict.fromkeys(names, 0))
        if same:
            count = Count(dict(earlier["right"]), earlier["images"], dict(earlier.get("sums", {})))

        def after_batch() -> None:
            report(count.images)
            if self._stop.requested or time.perf_counter() - self._saved > self._seconds:
                self.save()
            if self._stop.requested:
                raise Stopped(
                    f"stopped after {count.images:,} images of the evaluation on the {name} split",
                    self._key.get("steps", 0),
                    self._stop.signal_number,
                )

        count.after_batch = after_batch
        self._counts[name], self._data[name] = count, data
        return count

    def save(self) -> None:
        """Write all counts to the file.

        Raises:
            CheckpointError: if it cannot be written.
        """
        if self._file is None:
            return
        counts = {
            name: {"images": count.images, "right": count.right, "sums": count.sums, "data": self._data[name]}
            for name, count in self._counts.items()
        }
        record = {"key": self._key, "counts": {**self._earlier, **counts}}
        checkpoint.write_json(self._file, record)
        self._saved = time.perf_counter()


def _is_sum(count: Any, images: int) -> bool:
    if type(count) is float:
        return math.isfinite(count) and count <= images
    return type(count) is int and 0 <= count <= images


def _is_count(record: Any, names: Sequence[str], most: int, numbers: int) -> bool:
    """Say whether a record is one that `save` may have written for these readings of a split of `most` images."""
    if not (isinstance(record, dict) and isinstance(record.get("right"), dict)):
        return False
    right, images, sums = record["right"], record.get("images"), record.get("sums", {})
    if list(right) != list(names) or type(images) is not int or not 0 <= images <= most:
        return False
    if not all(_is_sum(count, images) for count in right.values()):
        return False
    if not isinstance(sums, dict) or (set(sums) != set(names) if numbers and images else sums):
        return False
    return all(
        isinstance(values, list) and len(values) == numbers and all(type(value) is float for value in values)
        for values in sums.values()
    )


def checksum(tensors: Iterable[Tensor]) -> int:
    """Return a number that shows whether tensors (weights, images) are still the same bytes."""
    found = 0
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found = zlib.crc32(plain.numpy().data, found)  # no copy: images are most of the memory
    return found


def _read(file: Path | None, key: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts in a file, or nothing if there is none of this key, or none that is as it was written."""
    try:
        record = checkpoint.read_json(file) if file else {}
    except CheckpointError:  # not there, or changed or damaged: then it is counted again
        return {}
    counts = record.get("counts") if record.get("key") == key else None
    return counts if isinstance(counts, dict) else {}
