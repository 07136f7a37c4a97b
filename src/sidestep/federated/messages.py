"""What a server and its clients say: how many updates a client has missed, all of them, and a client's own scalars.

    invitation   2 bytes SF, version, kind 0, 8 who federates, number of the first update and how many follow, steps to
                 estimate, learning rate; the updates as blocks of the step log; 8 digest
    answer       2 bytes SF, version, kind 1, 8 who federates, first step, steps, scalars a step, examples, mean loss;
                 the scalars in float32, one step after another; 8 digest

`who federates` is a digest of the rule, the seed and the weights before the first step: who starts elsewhere, or draws
other directions, is refused. Nothing is pickled.
"""

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.steplog.codecs.reals import decode_reals, encode_reals
from sidestep.steplog.format import MOST_COEFS, DamagedLogError, read_varint, varint
from sidestep.steplog.header import Header
from sidestep.update import Seeded

__all__ = ["MOST_STEPS", "Answer", "Invitation", "Messages", "rounded_sums", "within"]

_MAGIC, _VERSION, _INVITATION, _ANSWER, _DIGEST = b"SF", 1, 0, 1, 8
_START = struct.Struct("<2sBB8s")
_ASKS = struct.Struct("<IIHd")
_SAYS = struct.Struct("<IHIIf")
MOST_STEPS = 1 << 10  # that a client estimates in one round


@dataclass(frozen=True)
class Invitation:
    """What a server sends: the updates that the client has missed, and what it is to estimate after them.

    first: step of the first of the updates.
    updates: as the server decided them, one a step.
    steps: how many steps to estimate, from step `first + len(updates)` on; 0 to estimate none.
    rate: learning rate of these steps.
    """

    first: int
    updates: tuple[Seeded, ...]
    steps: int
    rate: float


@dataclass(frozen=True)
class Answer:
    """What a client sends: its coefficients of every step, (steps, probes), float32, and what they were made from.

    begins: the first of the steps.
    examples: how many the client has.
    loss: their mean before the first step.
    """

    begins: int
    examples: int
    loss: float
    coefs: Tensor


class Messages:
    """Writes and reads the messages of one federation: a rule, a seed and the weights before the first step."""

    def __init__(self, header: Header) -> None:
        self._seed, self._shapes = header.seed, header.shapes
        said = {key: value for key, value in dataclasses.asdict(header).items() if key != "sidestep"}
        text = json.dumps(said, sort_keys=True, default=str)
        self._who = hashlib.blake2b(text.encode(), digest_size=8).digest()

    def invitation(self, said: Invitation) -> bytes:
        """Return an invitation as bytes."""
        blocks, at = [], 0
        while at < len(said.updates):
            held = max(1, MOST_COEFS // said.updates[at].coefs.numel())
            block = said.updates[at : at + held]
            payload = encode_reals(block)
            blocks += [varint(len(block)), varint(len(payload)), payload]
            at += len(block)
        return self._sealed(
            _INVITATION, _ASKS.pack(said.first, len(said.updates), said.steps, said.rate) + b"".join(blocks)
        )

    def read_invitation(self, data: bytes) -> Invitation:
        """Return an invitation; raises InputError for anything else."""
        body = self._opened(data, _INVITATION, "the server")
        try:
            first, count, steps, rate = _ASKS.unpack_from(body)
            updates: list[Seeded] = []
            at = _ASKS.size
            while at < len(body):
                held, at = read_varint(body, at)
                length, at = read_varint(body, at)
                noise = Noise(self._seed).at(first + len(updates))
                updates += decode_reals(body[at : at + length], held, noise, self._shapes)
                at += length
        except (struct.error, IndexError, DamagedLogError) as error:
            raise InputError(f"the server sent an invitation that cannot be read ({error}): ask again") from error
        if len(updates) != count or steps > MOST_STEPS or not (math.isfinite(rate) and rate >= 0):
            raise InputError(
                f"the server sent {len(updates)} of {count} updates, and asks for {steps} steps at the learning rate "
                f"{rate}: it needs up to {MOST_STEPS} steps and a rate of 0 or more"
            )
        return Invitation(first, tuple(updates), steps, rate)

    def answer(self, said: Answer) -> bytes:
        """Return an answer as bytes."""
        steps, count = said.coefs.shape
        head = _SAYS.pack(said.begins, steps, count, said.examples, said.loss)
        return self._sealed(_ANSWER, head + said.coefs.detach().cpu().numpy().astype("<f4").tobytes())

    def read_answer(self, data: bytes, name: object) -> Answer:
        """Return the answer of the client `name`; raises InputError, naming it, for anything else."""
        body = self._opened(data, _ANSWER, f"client {name}")
        if len(body) < _SAYS.size:
            raise InputError(f"client {name} sent {len(body)} bytes that are no answer")
        begins, steps, count, examples, loss = _SAYS.unpack_from(body)
        if len(body) - _SAYS.size != 4 * steps * count:
            raise InputError(f"client {name} says that it sends {steps} times {count} scalars, and sends others")
        values = np.frombuffer(body, "<f4", offset=_SAYS.size).astype(np.float32)
        if not (np.isfinite(values).all() and math.isfinite(loss)):
            raise InputError(f"client {name} sent scalars or a loss that are not finite numbers")
        if not examples:
            raise InputError(f"client {name} says that it has no examples")
        return Answer(begins, examples, loss, torch.from_numpy(values).view(steps, count))

    def _sealed(self, kind: int, body: bytes) -> bytes:
        data = _START.pack(_MAGIC, _VERSION, kind, self._who) + body
        return data + _digest(data)

    def _opened(self, data: bytes, kind: int, who: str) -> bytes:
        if len(data) < _START.size + _DIGEST or data[:2] != _MAGIC:
            raise InputError(f"{who} sent what is no message of Sidestep's federated training")
        _, version, its_kind, federation = _START.unpack_from(data)
        if (version, its_kind) != (_VERSION, kind):
            raise InputError(
                f"{who} sent a message of format {version} and kind {its_kind}, where {_VERSION} and {kind} are "
                "needed: install one version of sidestep everywhere"
            )
        if data[-_DIGEST:] != _digest(data[:-_DIGEST]):
            raise InputError(f"a message of {who} was damaged on its way: send it again")
        if federation != self._who:
            raise InputError(
                f"{who} trains by another rule, from another seed or from other first weights: make the model, the "
                "rule and the seed the same everywhere"
            )
        return data[_START.size : -_DIGEST]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def within(coefs: Tensor, most: float | None) -> Tensor:
    """Return coefficients (..., probes) whose derivatives, `c K`, are held to -most .. most; as they are for None."""
    return coefs if most is None else coefs.clamp(-most / coefs.shape[-1], most / coefs.shape[-1])


def rounded_sums(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return `sum_k w_k c_k` of tensors of one shape, rounded once, whatever their order; float32."""
    stacked = torch.stack([part.double() * weight for part, weight in zip(parts, weights, strict=True)])
    sums = [math.fsum(column) for column in stacked.flatten(1).T.tolist()]
    return torch.tensor(sums, dtype=torch.float64).view(parts[0].shape).float()
