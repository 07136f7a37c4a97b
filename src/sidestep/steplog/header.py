"""The header of a step log: what it takes to rebuild the net that the steps start from."""

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.trained import frozen, trained
from sidestep.rules.protocol import Rule, Task
from sidestep.rules.record import rule_record
from sidestep.steplog.format import (
    ATTACHED,
    CRC,
    FRAME,
    MAGIC,
    MOST_HEADER,
    MOST_WEIGHTS,
    NOISE,
    PLAIN,
    DamagedLogError,
)  # fmt: skip
from sidestep.version import __version__

__all__ = ["DTYPES", "Header", "digest_of", "table_of"]

_KINDS = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128,
)  # fmt: skip
DTYPES = {str(kind).removeprefix("torch."): kind for kind in _KINDS}


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
    training: dict[str, Any] = field(default_factory=dict)  # what else the steps follow from: batch, augment, ...
    frozen: tuple[tuple[str, str, tuple[int, ...]], ...] = ()  # parameters that no step moves; written if there are any
    attached: bool = False  # of a module in a loop of its own, which no task and no rule builds; written if so

    @property
    def weights(self) -> int:
        """The number of weights, among which the positions of flips and probes count."""
        return sum(math.prod(shape) for _, _, shape in self.parameters)

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of every parameter."""
        return tuple((name, shape) for name, _, shape in self.parameters)

    @property
    def table(self) -> str:
        """Digest of the parameters' names and shapes."""
        return hashlib.blake2b(_canonical(self.parameters), digest_size=16).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the file's beginning, up to the first block.

        Raises InputError if that is longer than a header may be, or for a net that is larger.
        """
        self.check()
        entries = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value or name not in ("frozen", "attached")
        }
        text = _canonical({**entries, "table": self.table})
        if len(text) > MOST_HEADER:
            raise InputError(f"the log's header may have {MOST_HEADER:,} bytes, this net's has {len(text):,}")
        frame = FRAME.pack(MAGIC, ATTACHED if self.attached else PLAIN, len(text)) + text
        return frame + CRC.pack(zlib.crc32(frame))

    @classmethod
    def parse(cls, text: bytes) -> "Header":
        """Return what `to_bytes` wrote as JSON; raises DamagedLogError for anything else."""
        try:
            entries = json.loads(text)
            digest = entries.pop("table")
            for name in ("parameters", "buffers", *(["frozen"] if "frozen" in entries else [])):
                entries[name] = tuple((n, kind, tuple(shape)) for n, kind, shape in entries[name])
            found = cls(**entries)
            found.check()
            if digest == found.table:
                return found
            raise ValueError("its entries contradict each other")
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise DamagedLogError(f"the header is damaged ({error}), so nothing can be replayed: use a copy") from error

    def check(self) -> None:
        """Raise InputError unless every entry is of its kind and within the limits."""
        wanted = {"rule": dict, "task": dict, "training": dict, "data": str, "start": str, "noise": str}
        for name, kind in {**wanted, "sidestep": str, "seed": int}.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name} is no {kind.__name__}")
        if not (self.module is None or isinstance(self.module, str)):
            raise InputError("module is neither null nor a name")
        if not isinstance(self.rule.get("name"), str) or isinstance(self.seed, bool) or not 0 <= self.seed < 1 << 64:
            raise InputError("the rule has no name, or the seed is not from 0 to 2^64 - 1")
        for entry in (*self.parameters, *self.buffers, *self.frozen):
            _check_entry(*entry)
        for name, table in (("parameters", self.parameters), ("buffers", self.buffers), ("frozen", self.frozen)):
            if sum(math.prod(shape) for _, _, shape in table) > MOST_WEIGHTS:
                raise InputError(f"the {name} have more than {MOST_WEIGHTS:,} elements")
        if not isinstance(self.attached, bool):
            raise InputError("attached is neither true nor false")
        if not self.weights:
            raise InputError("the net has no weights")

    def differences(self, other: "Header") -> list[tuple[str, Any, Any]]:
        """Return name, own value and other value of what two headers of one run have in common, where they differ."""
        names = (
            "rule",
            "task",
            "data",
            "training",
            "seed",
            "module",
            "parameters",
            "buffers",
            "frozen",
            "start",
            "noise",
        )
        mine, others = (json.loads(_canonical(dataclasses.asdict(header))) for header in (self, other))
        return [(name, mine[name], others[name]) for name in names if mine[name] != others[name]]

    @classmethod
    def attached_to(
        cls, net: nn.Module, rule: Mapping[str, Any], seed: int, training: Mapping[str, Any] | None = None
    ) -> "Header":
        """Describe a module of the user's before its first step; `rule` has its name and hyper-parameters."""
        return cls(
            rule=dict(rule),
            task={},
            data="",
            seed=seed,
            parameters=table_of(dict(trained(net))),
            buffers=table_of(dict(net.named_buffers())),
            start=digest_of(net),
            module=type(net).__qualname__,
            training=dict(training or {}),
            frozen=table_of(frozen(net)),
            attached=True,
        )

    @classmethod
    def of(  # long: what a header holds
        cls,
        net: nn.Module,
        rule: Rule,
        task: Task,
        data: str,
        seed: int,
        module: str | None,
        training: Mapping[str, Any] | None = None,
    ) -> "Header":
        """Describe a net that is about to take its first step."""
        return cls(
            rule=rule_record(rule),
            task=task.record(),
            data=data,
            seed=seed,
            parameters=table_of(dict(trained(net))),
            buffers=table_of(dict(net.named_buffers())),
            start=digest_of(net),
            module=module,
            training=dict(training or {}),
            frozen=table_of(frozen(net)),
        )


def digest_of(net: nn.Module) -> str:
    """Return a blake2b digest over the name, dtype, shape and bytes of every parameter, frozen ones too, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in net.named_parameters():
        plain = parameter.detach().cpu().contiguous()
        digest.update(_canonical([name, str(plain.dtype), list(plain.shape)]))
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def table_of(tensors: dict[str, Tensor]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Return name, dtype and shape of every tensor."""
    return tuple((name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items())


def _check_entry(name: Any, kind: Any, shape: Any) -> None:
    whole = all(isinstance(side, int) and not isinstance(side, bool) and 0 <= side <= MOST_WEIGHTS for side in shape)
    if not isinstance(name, str) or kind not in DTYPES or not whole or len(shape) > 16:
        raise InputError(f"{name!r} of dtype {kind!r} and shape {list(shape)[:16]} is no tensor of a net")


def _canonical(entry: Any) -> bytes:
    try:
        return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"the log's header must be plain JSON, got {error}") from error
