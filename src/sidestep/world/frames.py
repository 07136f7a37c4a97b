"""A message between ranks: its bytes behind a header that says what it is, so that nothing else is taken for one.

    2 bytes   the letters SW
    1         version of this format
    1         0 a message, 1 the sentence of a rank that has failed
    4         generation: how often the ranks have been started
    4         turn: the messages that this rank has sent before
    4         length of the message
    8         blake2b of all before and of the message

No object is pickled: what a message holds, whoever asked for it reads.
"""

import hashlib
import struct
from dataclasses import dataclass

from sidestep.errors import RankError

__all__ = ["HEADER_BYTES", "MOST_BYTES", "Frame", "framed", "opened", "read_head"]

_MAGIC, _VERSION = b"SW", 1
_HEAD = struct.Struct("<2sBBIII")
_DIGEST = 8
HEADER_BYTES = _HEAD.size + _DIGEST
MOST_BYTES = 1 << 30
DATA, FAILED = 0, 1


@dataclass(frozen=True)
class Frame:
    """The header of a message."""

    failed: bool
    length: int
    head: bytes
    digest: bytes


def framed(message: bytes, generation: int, turn: int, failed: bool = False) -> bytes:
    """Return the header and the message; raises RankError for one that is longer than 2^30 bytes."""
    if len(message) > MOST_BYTES:
        raise RankError(f"a message between ranks has at most {MOST_BYTES:,} bytes, got {len(message):,}")
    head = _HEAD.pack(_MAGIC, _VERSION, FAILED if failed else DATA, generation, turn % (1 << 32), len(message))
    return head + _digest(head, message) + message


def read_head(data: bytes, generation: int, turn: int, rank: int) -> Frame:
    """Return the header that `data` begins with; raises RankError, naming the rank, for anything else."""
    if len(data) < HEADER_BYTES:
        raise RankError(f"rank {rank} sent {len(data)} bytes, and a message has at least {HEADER_BYTES}")
    magic, version, kind, its_generation, its_turn, length = _HEAD.unpack_from(data)
    if magic != _MAGIC or kind not in (DATA, FAILED) or length > MOST_BYTES:
        raise RankError(f"rank {rank} sent what is no message of Sidestep's: start all ranks by the same command")
    if version != _VERSION:
        raise RankError(
            f"rank {rank} sends messages of format {version}, this rank of format {_VERSION}: install the same version "
            "of sidestep on all machines"
        )
    if (its_generation, its_turn) != (generation, turn % (1 << 32)):
        raise RankError(
            f"rank {rank} is at message {its_turn} of start {its_generation}, this rank at {turn} of {generation}: the "
            "ranks do not do the same; start all of them by the same command"
        )
    return Frame(kind == FAILED, length, data[: _HEAD.size], data[_HEAD.size : HEADER_BYTES])


def opened(frame: Frame, message: bytes, rank: int) -> bytes:
    """Return the message, once its digest is the header's; raises RankError, naming the rank, if it is not."""
    if len(message) != frame.length or _digest(frame.head, message) != frame.digest:
        raise RankError(f"a message of rank {rank} was damaged on its way; start all ranks again, with --resume")
    return message


def _digest(head: bytes, message: bytes) -> bytes:
    return hashlib.blake2b(head + message, digest_size=_DIGEST).digest()
