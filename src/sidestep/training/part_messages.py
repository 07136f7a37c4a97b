"""The update of one part of a step as bytes: its losses, and its numbers one after another, as they are."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sidestep.errors import InputError, RankError
from sidestep.ternary import packed_bytes
from sidestep.training.numbers import pack_values, unpack_values
from sidestep.training.signs import Signs
from sidestep.update import Dense, Seeded, Update

__all__ = ["apart", "packed", "unpacked"]

_DIGEST = 4
_LOSS, _NUMBERS = 0.01, 0.1  # by which another processor's rounding may differ, relatively; more is another estimate
_TRITS = 2  # that may differ, of numbers just at the threshold


def packed(update: Update, signs: Signs | None = None, part: int = 0) -> bytes:
    """Return a digest of what the update is like, its losses, statistics, and coefficients or gradients.

    Of coefficients of which the part has taken some, which these are, a bit each, and their values. Of gradients, where
    `signs` is given, the message that it makes of them.
    """
    data = b"".join(map(_bytes, [*update.losses.values(), *update.statistics.values()]))
    if isinstance(update, Dense) and signs:
        data += signs.packed(part, dict(update.gradients))
    elif isinstance(update, Dense):
        data += b"".join(map(_bytes, update.gradients.values()))
    elif isinstance(update, Seeded) and update.taken is not None:
        data += np.packbits(update.taken.cpu().numpy(), bitorder="little").tobytes()
        data += pack_values(update.coefs[update.taken].cpu().numpy())
    elif isinstance(update, Seeded):
        data += _bytes(update.coefs)
    else:
        raise InputError(f"an estimate is Dense or Seeded, got {type(update).__name__}")
    return _layout(update) + data


def unpacked(data: bytes, like: Update, signs: Signs | None = None) -> tuple[Update, bytes]:
    """Return the update that `packed` took, and the message of its signs; `like` is that of another part of the step.

    Of signs the update has the gradients that they make.

    Raises:
        RankError: for bytes that it cannot have made of such an update.
    """
    if data[:_DIGEST] != _layout(like):
        raise RankError("it sent the update of another net, rule or version of torch")
    reading = _Reading(data[_DIGEST:])
    losses, statistics = reading.tensors(like.losses), reading.tensors(like.statistics)
    found: Update
    if isinstance(like, Dense) and signs:
        message = reading.rest()
        try:
            gradients = signs.combined([message], 1, dict(like.gradients))
        except RankError as error:
            raise RankError("it sent an update whose signs cannot be read") from error
        return Dense(gradients, statistics, losses, like.combination), message
    if isinstance(like, Dense):
        found = Dense(reading.tensors(like.gradients), statistics, losses, like.combination)
    elif isinstance(like, Seeded):
        coefs, taken = like.coefs, None
        if like.taken is not None:
            taken = reading.bits(like.taken)
            own = reading.values(coefs[taken])
            coefs = torch.zeros_like(coefs)
            coefs[taken] = own
        else:
            coefs = reading.tensor(coefs)
        found = replace(like, coefs=coefs, statistics=statistics, losses=losses, taken=taken)
    else:
        raise RankError("it sent an update that is no estimate")
    reading.end()
    return found, b""


def apart(one: Update, other: Update) -> str | None:
    """Return in what two estimates of one part differ by more than rounding, or None if they are of the same part."""
    losses = [_flat(update.losses) for update in (one, other)]
    numbers = [_numbers(update) for update in (one, other)]
    for what, (left, right), most in (("losses", losses, _LOSS), ("numbers", numbers, _NUMBERS)):
        least = _TRITS**0.5 if what == "numbers" and _of_trits(one, other) else 1e-12
        if not bool((left - right).norm() <= most * right.norm() + least):  # true for a NaN, too
            return f"{what} that are not those of its part"
    taken = [update.taken if isinstance(update, Seeded) else None for update in (one, other)]
    if taken[0] is not None and taken[1] is not None and not torch.equal(taken[0], taken[1]):
        return "coefficients of other probes than those of its part"
    return None


class _Reading:
    """Bytes that are read from the beginning to the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def _next(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        self._at += size
        if len(found) < size:
            raise RankError(f"it sent an update that is cut, {len(self._data):,} bytes")
        return found

    def tensor(self, like: Tensor) -> Tensor:
        size = like.numel() * like.element_size()
        data = torch.frombuffer(bytearray(self._next(size)), dtype=torch.uint8) if size else torch.empty(0).byte()
        return data.view(like.dtype).view(like.shape).to(like.device)

    def tensors(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.tensor(value) for name, value in like.items()}

    def values(self, like: Tensor) -> Tensor:
        if like.dtype != torch.int8:
            return self.tensor(like)
        found = unpack_values(self._next(packed_bytes(like.numel())), like.numel(), np.dtype(np.int8))
        if found is None:
            raise RankError("it sent bytes that are no trits")
        return torch.from_numpy(found).to(like.device)

    def bits(self, like: Tensor) -> Tensor:
        data = np.frombuffer(self._next(-(-like.numel() // 8)), np.uint8)
        found = np.unpackbits(data, count=like.numel(), bitorder="little").astype(bool)
        return torch.from_numpy(found).view(like.shape).to(like.device)

    def rest(self) -> bytes:
        return self._next(len(self._data) - self._at)

    def end(self) -> None:
        if self._at != len(self._data):
            raise RankError(f"it sent an update with {len(self._data) - self._at:,} bytes more than it has")


def _layout(update: Update) -> bytes:
    """Return what tells updates of other nets, rules and losses apart."""
    tensors = {**update.losses, **update.statistics, **(update.gradients if isinstance(update, Dense) else {})}
    words = [type(update).__name__, *(f"{name} {value.dtype} {tuple(value.shape)}" for name, value in tensors.items())]
    if isinstance(update, Seeded):
        words += [repr(update.coefs.dtype), str(update.coefs.numel()), str(update.taken is None)]
        words += [type(update.probes).__name__, str(update.probes.noise.step)]
    return hashlib.blake2b("\n".join(words).encode(), digest_size=_DIGEST).digest()


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.detach().reshape(-1).double().cpu() for value in tensors.values()])


def _of_trits(*updates: Update) -> bool:
    return all(isinstance(update, Seeded) and update.coefs.dtype == torch.int8 for update in updates)


def _numbers(update: Update) -> Tensor:
    if isinstance(update, Dense):
        return _flat(update.gradients)
    return update.coefs.detach().double().cpu() if isinstance(update, Seeded) else torch.zeros(0)
