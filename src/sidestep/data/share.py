"""A part of a step that is estimated on its own: some of its examples, or some of its probes."""

from dataclasses import dataclass
from typing import Literal

from sidestep.errors import InputError

__all__ = ["WHOLE", "Division", "Share"]

Division = Literal["batch", "probes", "units"]


@dataclass(frozen=True)
class Share:
    """One of `count` equal parts of a step, which make the whole step together, whoever takes them.

    of: what is divided: the examples of the batch; the step's probes (pairs, tangents), each on the whole batch; or the
        units of the net, each trained by one alone, as equal as their number allows.
    index: which part, from 0.

    >>> Share("probes", index=1, count=4).probes(128)
    range(32, 64)
    """

    of: Division = "batch"
    index: int = 0
    count: int = 1

    @property
    def weight(self) -> float:
        """What a mean over the part's examples counts in the mean over the batch: 1 unless the batch is divided."""
        return 1 / self.count if self.of == "batch" else 1.0

    def probes(self, total: int) -> range:
        """Return the numbers of the probes that this part takes: all of them, unless the probes are divided."""
        return _part(total, self.index, self.count, "probes") if self.of == "probes" else range(total)

    def units(self, total: int) -> range:
        """Return the numbers of the units that this part trains: all of them, unless the units are divided."""
        return range(self.index, total, self.count) if self.of == "units" else range(total)

    def examples(self, total: int) -> range:
        """Return the numbers, in the whole batch, of the examples of this part: all, unless the batch is divided."""
        return _part(total, self.index, self.count, "examples") if self.of == "batch" else range(total)

    def whole(self, here: int) -> int:
        """Return how many examples the whole batch has, of which this part has `here`."""
        return here * self.count if self.of == "batch" else here


WHOLE = Share()


def _part(total: int, index: int, count: int, what: str) -> range:
    if total % count:
        raise InputError(f"{total:,} {what} cannot be divided into {count} equal parts; change one of the two")
    each = total // count
    return range(index * each, (index + 1) * each)
