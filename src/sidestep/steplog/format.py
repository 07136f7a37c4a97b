"""The bytes of a step log: header, block heads, limits. docs/step-log.md describes them for other programs.

    file  = magic, version, header length, header (JSON), CRC        block = head, statistics, payload, CRC

Every block's CRC goes on from that of the block before it, so blocks that were swapped, repeated or left out are found
as surely as changed bytes. Lengths and counts are compared with limits and with the file before memory is taken.
"""

import struct
from dataclasses import dataclass

from sidestep.errors import CheckpointError

__all__ = [
    "ATTACHED", "FLIPS", "FORMAT", "MOST_COEFS", "MOST_FLIPS", "MOST_STATISTICS", "MOST_STEPS", "MOST_WEIGHTS",
    "MOST_WORK", "NOISE", "PLAIN", "REALS", "SETS", "TRITS", "BlockHead", "CutLogError", "DamagedLogError",
    "read_varint", "varint",
]  # fmt: skip

MAGIC = b"\x8eSTEPLOG"
PLAIN, ATTACHED = 1, 2  # the first of a run, whose net the header builds; the second of a module that has to be given
FORMAT = ATTACHED  # the last that is known here; an older Sidestep refuses a later one in a sentence
NOISE = "philox4x32-10/1"  # the generator, and how probes are drawn from its words: sidestep.probes
FRAME = struct.Struct("<8sII")  # magic, format, bytes of the header
CRC = struct.Struct("<I")
MOST_HEADER = 1 << 22  # bytes
MOST_PAYLOAD = 1 << 26  # bytes
MOST_STATISTICS = 1 << 24  # bytes
MOST_STEPS = 1 << 12  # in a block
MOST_COEFS = 1 << 22  # in a block
MOST_FLIPS = 1 << 24  # in a block
MOST_WORK = 1 << 31  # of a step: elements drawn, of sparse probes the expected non-zeros, of rank-one ones the sides
MOST_WEIGHTS = 1 << 34  # of a net; and as many elements of buffers
TRITS, FLIPS, REALS, SETS = 1, 2, 3, 4  # of blocks; a block of a kind that is not known here ends the reading


class DamagedLogError(CheckpointError):
    """A part of a log that does not say what it could have been written to say."""


class CutLogError(DamagedLogError):
    """The file ends within a block: what a kill leaves, if nothing follows."""


@dataclass(frozen=True)
class BlockHead:
    """The 24 bytes that a block begins with."""

    kind: int  # of the codec that made it
    first: int  # step
    steps: int
    statistics: int  # bytes
    payload: int  # bytes

    STRUCT = struct.Struct("<4sIIIII")
    MAGIC = b"STEP"

    def to_bytes(self) -> bytes:
        """Return the head's bytes."""
        return self.STRUCT.pack(self.MAGIC, self.kind, self.first, self.steps, self.statistics, self.payload)

    @classmethod
    def parse(cls, data: bytes, first: int, left: int) -> "BlockHead":
        """Return a head; DamagedLogError unless it begins at step `first` and fits into the `left` bytes after it."""
        magic, kind, found, steps, statistics, payload = cls.STRUCT.unpack(data)
        if magic != cls.MAGIC:
            raise DamagedLogError("there is no block where one should begin")
        if found != first:
            raise DamagedLogError(f"step {first} should follow, but a block of steps from {found} does")
        if not 1 <= steps <= MOST_STEPS or payload > MOST_PAYLOAD or statistics > MOST_STATISTICS:
            raise DamagedLogError(f"a block says that it has {steps} steps in {payload} + {statistics} bytes")
        if statistics + payload + CRC.size > left:
            raise CutLogError("the last block is cut")
        return cls(kind, first, steps, statistics, payload)


def varint(value: int) -> bytes:
    """Return a whole number, not below 0, as seven bits a byte, the lowest first; all bytes but the last are above 127.

    >>> list(varint(300))
    [172, 2]
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, and the place after it; raises DamagedLogError if it has no end."""
    value = 0
    for turn in range(10):
        if at + turn >= len(data):
            break
        value |= (data[at + turn] & 127) << 7 * turn
        if data[at + turn] < 128:
            return value, at + turn + 1
    raise DamagedLogError("a number in a block has no end")
