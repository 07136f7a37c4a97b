"""A message between ranks: its bytes behind a header that says what it is, so that nothing else is taken for one.

    2 bytes   the letters SW
    1         version of this format
    1         0 a message, 1 the sentence of a rank that has failed
    4         generation: how often the ranks have been started
    4         turn: the messages that this rank has sent before
    4         length of the message
    8         blake2b of all before and of the message

Where the ranks know already what the others are about to say, and say it often, all that can be left out is:

    1 byte    the letter s
    1 to 5    length of the message: seven bits a byte, the lowest first; all but the last byte are above 127
    6         blake2b of the header above, of what is known, and of the message

No object is pickled: what a message holds, whoever asked for it reads.
"""

import hashlib
import struct
from dataclasses import dataclass

from sidestep.errors import RankError

__all__ = ["HEADER_BYTES", "MOST_BYTES", "Frame", "framed", "opened", "read_head"]

_MAGIC, _VERSION = b"SW", 1
_SHORT, _SHORT_DIGEST = b"s", 6
_HEAD = struct.Struct("<2sBBIII")
_DIGEST = 8
HEADER_BYTES = _HEAD.size + _DIGEST
MOST_BYTES = 1 << 30
DATA, FAILED = 0, 1


@dataclass(frozen=True)
class Frame:
    """The header of a message, which takes the first `size` bytes."""

    failed: bool
    length: int
    head: bytes
    digest: bytes
    size: int = HEADER_BYTES


def framed(message: bytes, generation: int, turn: int, failed: bool = False, known: bytes | None = None) -> bytes:
    """Return the header and the message, with what is `known` the short header.

    Raises RankError for a message that is longer than 2^30 bytes.
    """
    length = len(message)
    if length > MOST_BYTES:
        raise RankError(f"a message between ranks has at most {MOST_BYTES:,} bytes, got {length:,}")
    head = _head(generation, turn, length, failed)
    if known is None or failed:
        return head + _digest(head, message) + message
    return _SHORT + _varint(length) + _digest(head + known, message, _SHORT_DIGEST) + message


def read_head(data: bytes, generation: int, turn: int, rank: int) -> Frame:
    """Return the header that `data` begins with; raises RankError, naming the rank, for anything else."""
    if data.startswith(_SHORT):
        return _read_short(data, generation, turn, rank)
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


def opened(frame: Frame, message: bytes, rank: int, known: bytes | None = None) -> bytes:
    """Return the message, once its digest is the header's; raises RankError, naming the rank, if it is not."""
    short = frame.size != HEADER_BYTES
    if not frame.failed and short != (known is not None):
        raise RankError(f"rank {rank} does not do the same as this one: start all ranks by the same command")
    signed = frame.head + known if short and known else frame.head
    if len(message) == frame.length and _digest(signed, message, len(frame.digest)) == frame.digest:
        return message
    if short:
        raise RankError(
            f"rank {rank} is at another step than this one, with another net, rule or version, or its message was "
            "damaged on its way: start all ranks by the same command, with the same version of sidestep and of torch"
        )
    raise RankError(f"a message of rank {rank} was damaged on its way; start all ranks again, with --resume")


def _head(generation: int, turn: int, length: int, failed: bool = False) -> bytes:
    return _HEAD.pack(_MAGIC, _VERSION, FAILED if failed else DATA, generation, turn % (1 << 32), length)


def _read_short(data: bytes, generation: int, turn: int, rank: int) -> Frame:
    length, at = 0, 1
    for place in range(5):
        length |= (data[at] & 127) << 7 * place if at < len(data) else 0
        at += 1
        if at > len(data) or data[at - 1] < 128:
            break
    if len(data) < at + _SHORT_DIGEST or length > MOST_BYTES or data[at - 1] > 127:
        raise RankError(f"rank {rank} sent what is no message of Sidestep's: start all ranks by the same command")
    size = at + _SHORT_DIGEST
    return Frame(False, length, _head(generation, turn, length), data[at:size], size)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _digest(head: bytes, message: bytes, size: int = _DIGEST) -> bytes:
    return hashlib.blake2b(head + message, digest_size=size).digest()
