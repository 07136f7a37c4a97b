"""The bytes of a step log: header, block heads, limits. docs/step-log.md describes them for other programs.

    file  = magic, version, header length, header (JSON), CRC        block = head, statistics, payload, CRC

Every block's CRC goes on from that of the block before it, so blocks that were swapped, repeated or left out are found
as surely as changed bytes. Lengths and counts are compared with limits and with the file before memory is taken.
"""

import dataclasses
import hashlib
import json
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import CheckpointError, InputError
from sidestep.rules.protocol import Rule, Task
from sidestep.version import __version__

__all__ = [
    "FLIPS", "FORMAT", "MOST_COEFS", "MOST_STATISTICS", "MOST_STEPS", "NOISE", "TRITS",
    "BlockHead", "DamagedLogError", "Header", "digest_of", "read_varint", "varint",
]  # fmt: skip

MAGIC = b"\x8eSTEPLOG"
FORMAT = 1  # raised when an older Sidestep could not read the file any more
NOISE = "philox4x32-10/1"  # the generator, and how probes are drawn from its words: sidestep.probes
FRAME = struct.Struct("<8sII")  # magic, format, bytes of the header
CRC = struct.Struct("<I")
MOST_HEADER = 1 << 22  # bytes
MOST_PAYLOAD = 1 << 26  # bytes
MOST_STATISTICS = (1 << 16) - 1  # bytes
MOST_STEPS = 1 << 12  # in a block
MOST_COEFS = 1 << 22  # in a block
TRITS, FLIPS = 1, 2  # kinds of blocks; a block of a kind that is not known here ends the reading


class DamagedLogError(CheckpointError):
    """A part of a log that does not say what it could have been written to say."""


@dataclass(frozen=True)
class Header:
    """What it takes to rebuild the net that the steps start from."""

    rule: dict[str, Any]  # name and hyper-parameters
    task: dict[str, Any]
    data: str
    seed: int
    parameters: tuple[tuple[str, str, tuple[int, ...]], ...]  # name, dtype, shape
    buffers: tuple[tuple[str, str, tuple[int, ...]], ...]
    start: str  # digest of the parameters before the first step
    module: str | None = None  # name of the user's own image path
    noise: str = NOISE
    sidestep: str = __version__

    @property
    def weights(self) -> int:
        """The number of weights, among which the positions of flips and probes count."""
        return sum(math.prod(shape) for _, _, shape in self.parameters)

    @property
    def table(self) -> str:
        """Digest of the parameters' names and shapes."""
        return hashlib.blake2b(_canonical(self.parameters), digest_size=16).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the file's beginning, up to the first block.

        Raises InputError if that is longer than a header may be.
        """
        text = _canonical({**dataclasses.asdict(self), "table": self.table})
        if len(text) > MOST_HEADER:
            raise InputError(f"the log's header may have {MOST_HEADER:,} bytes, this net's has {len(text):,}")
        frame = FRAME.pack(MAGIC, FORMAT, len(text)) + text
        return frame + CRC.pack(zlib.crc32(frame))

    @classmethod
    def parse(cls, text: bytes) -> "Header":
        """Return what `to_bytes` wrote as JSON; raises DamagedLogError for anything else."""
        try:
            entries = json.loads(text)
            digest = entries.pop("table")
            for name in ("parameters", "buffers"):
                entries[name] = tuple((str(n), str(kind), tuple(map(int, s))) for n, kind, s in entries[name])
            found = cls(**entries)
            valid = isinstance(found.rule["name"], str) and 0 <= found.seed < 1 << 64 and 0 < found.weights < 1 << 62
            valid = valid and all(side >= 0 for _, _, shape in found.parameters for side in shape)
            if valid and digest == found.table:
                return found
            raise ValueError("its entries contradict each other")
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
            RuntimeError,
        ) as error:
            raise DamagedLogError(f"the header is damaged ({error}), so nothing can be replayed: use a copy") from error

    def differences(self, other: "Header") -> list[tuple[str, Any, Any]]:
        """Return name, own value and other value of what two headers of one run have in common, where they differ."""
        names = ("rule", "task", "seed", "module", "parameters", "buffers", "start", "noise")
        mine, others = (json.loads(_canonical(dataclasses.asdict(header))) for header in (self, other))
        return [(name, mine[name], others[name]) for name in names if mine[name] != others[name]]

    @classmethod
    def of(  # long: what a header holds
        cls, net: nn.Module, rule: Rule, task: Task, data: str, seed: int, module: str | None
    ) -> "Header":
        """Describe a net that is about to take its first step."""
        options = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
        return cls(
            rule={"name": rule.name, **options},
            task=dataclasses.asdict(task),
            data=data,
            seed=seed,
            parameters=_table(dict(net.named_parameters())),
            buffers=_table(dict(net.named_buffers())),
            start=digest_of(net),
            module=module,
        )


@dataclass(frozen=True)
class BlockHead:
    """The 20 bytes that a block begins with."""

    kind: int  # TRITS or FLIPS
    first: int  # step
    steps: int
    statistics: int  # bytes
    payload: int  # bytes

    STRUCT = struct.Struct("<4sBBHIII")
    MAGIC = b"STEP"

    def to_bytes(self) -> bytes:
        """Return the head's bytes."""
        return self.STRUCT.pack(self.MAGIC, self.kind, 0, self.statistics, self.first, self.steps, self.payload)

    @classmethod
    def parse(cls, data: bytes, first: int, left: int) -> "BlockHead":
        """Return a head; DamagedLogError unless it begins at step `first` and fits into the `left` bytes after it."""
        magic, kind, zero, statistics, found, steps, payload = cls.STRUCT.unpack(data)
        if magic != cls.MAGIC or zero:
            raise DamagedLogError("there is no block where one should begin")
        if found != first:
            raise DamagedLogError(f"step {first} should follow, but a block of steps from {found} does")
        if not 1 <= steps <= MOST_STEPS or payload > MOST_PAYLOAD:
            raise DamagedLogError(f"a block says that it has {steps} steps in {payload} bytes")
        if statistics + payload + CRC.size > left:
            raise DamagedLogError("the last block is cut")
        return cls(kind, first, steps, statistics, payload)


def digest_of(net: nn.Module) -> str:
    """Return a blake2b digest over the name, dtype, shape and bytes of every parameter, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in net.named_parameters():
        plain = parameter.detach().cpu().contiguous()
        digest.update(_canonical([name, str(plain.dtype), list(plain.shape)]))
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def _table(tensors: dict[str, Tensor]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    return tuple((name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items())


def _canonical(entry: Any) -> bytes:
    try:
        return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"the log's header must be plain JSON, got {error}") from error
