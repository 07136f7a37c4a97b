"""What ranks can do together, and the world of one process."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import Tensor

from sidestep.errors import InputError, RankError
from sidestep.wording import sentence

__all__ = ["Alone", "World"]


class World(ABC):
    """The processes that do one thing together: rank 0 to `size` - 1, all of which call the same methods in turn.

    rank: of this process.
    size: how many there are.
    generation: how often they have been started: 0, and one more for each restart.
    sent_bytes: what this rank has given to the others in messages, with their headers.
    summed_bytes: what it has given in tensors to be summed.
    """

    rank: int = 0
    size: int = 1
    generation: int = 0
    sent_bytes: int = 0
    summed_bytes: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes: rank 0."""
        return self.rank == 0

    @abstractmethod
    def gather(self, message: bytes, known: bytes | None = None) -> list[bytes]:
        """Return the messages of all ranks, in their order.

        Args:
            message: of this rank.
            known: what all ranks have to know alike, and do not send: then headers are short, and a rank that knows
                something else is found by their digest.

        Raises:
            RankError: if a rank has failed (with its own sentence), has gone, or sent something else.
        """

    @abstractmethod
    def broadcast(self, message: bytes) -> bytes:
        """Return the message of rank 0; what other ranks give is not looked at. Raises RankError as `gather` does."""

    def to_first(self, source: int, message: bytes) -> bytes:
        """Return the message of rank `source` on rank 0 and on that rank, and nothing on the others.

        What others give is not looked at. Raises RankError as `gather` does.
        """
        found = self.gather(message if self.rank == source else b"")[source]
        return found if self.rank in (0, source) else b""

    @abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks of a tensor of one shape, int64 or float64, the same on every rank.

        Of int64 it is exact. Of float64 it is rounded, in an order that depends on the number of ranks.
        Call `gather` before, so that a rank that has failed is heard of.
        """

    @abstractmethod
    def _tell(self, said: str) -> None:
        """Send a sentence in place of the next message, which the others then raise."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell the others of an error that ends the block; what they said themselves, or a Ctrl-C, is not repeated."""
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            with suppress(RankError):
                self._tell(sentence(str(error)) or type(error).__name__)
            raise


class Alone(World):
    """The world of one process.

    >>> Alone().gather(b"one")
    [b'one']
    """

    def gather(self, message: bytes, known: bytes | None = None) -> list[bytes]:
        """Return the one message."""
        return [message]

    def broadcast(self, message: bytes) -> bytes:
        """Return the message."""
        return message

    def sum(self, values: Tensor) -> Tensor:
        """Return the values."""
        check_summable(values)
        return values

    def _tell(self, said: str) -> None:
        """Nobody listens."""


def check_summable(values: Tensor) -> None:
    """Raise InputError for a tensor that is neither int64 nor float64."""
    kind = str(values.dtype).removeprefix("torch.")
    if kind not in ("int64", "float64"):
        raise InputError(f"ranks sum int64 or float64, got {kind}")
