"""What a codec is: all that the log has to know of one kind of update."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from sidestep.steplog.header import Header
from sidestep.update import Flips, Seeded, Update

__all__ = ["Codec", "Counts", "Logged"]

Logged = Seeded | Flips
Kept = TypeVar("Kept", Seeded, Flips)


@dataclass(frozen=True)
class Counts:
    """What the updates of a log come to."""

    probes: int = 0
    non_zero: int = 0  # coefficients
    flips: int = 0
    flip_steps: int = 0
    least_bits: float = 0.0  # that any code needs for the flips

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.probes + other.probes,
            self.non_zero + other.non_zero,
            self.flips + other.flips,
            self.flip_steps + other.flip_steps,
            self.least_bits + other.least_bits,
        )


class Codec(ABC, Generic[Kept]):
    """How one kind of update is logged: whether it can be, a block of them as bytes and back, and a part of one.

    A block holds updates of one codec. `decode(encode(updates))` gives the updates that `kept` made, to the bit.
    """

    kind: ClassVar[int]  # of the blocks: docs/step-log.md
    most: ClassVar[int]  # numbers in a block

    @abstractmethod
    def holds(self, update: Update) -> bool:
        """Say whether an update is of this kind, whatever it holds."""

    @abstractmethod
    def is_logged(self, update: Kept, header: Header, step: int) -> bool:
        """Say whether an update of this kind can be logged as this step: in limits, and all of it known to replay."""

    @abstractmethod
    def numbers(self, update: Kept) -> int:
        """Return how many numbers an update has, of which a block takes `most`."""

    @abstractmethod
    def about_bytes(self, update: Kept) -> float:
        """Return about how many bytes an update will take."""

    @abstractmethod
    def kept(self, update: Kept) -> Kept:
        """Return what the log needs of an update, in memory of its own on the processor."""

    @abstractmethod
    def encode(self, updates: Sequence[Kept], header: Header) -> bytes:
        """Return the payload of consecutive steps' updates."""

    @abstractmethod
    def decode(self, payload: bytes, steps: int, first: int, header: Header) -> list[Kept]:
        """Return the updates of a block of `steps` steps that begins at step `first`.

        Raises DamagedLogError if the payload cannot be what `encode` made.
        """

    @abstractmethod
    def part(self, update: Kept, first: int, last: int) -> Kept:
        """Return an update that does to weights `first` to `last` - 1 what the given one does, and nothing else."""

    @abstractmethod
    def counts(self, update: Kept, weights: int) -> Counts:
        """Return what an update adds to the counts of a log of a net of so many weights."""

    def counts_of(self, payload: bytes, steps: int, first: int, header: Header) -> Counts:
        """Return what a whole block adds to the counts; by default that of its updates, one by one.

        Raises DamagedLogError as `decode` does.
        """
        updates = self.decode(payload, steps, first, header)
        return sum((self.counts(update, header.weights) for update in updates), Counts())
