"""The update of a whole step from those of its parts, wherever they were estimated; what of it ranks send each other.

    coefficients that every part adds to   sum_p round(c_p 2^40) / 2^40        in whole numbers, exact in any order
    coefficients of some probes each       side by side
    gradients, statistics                  sum_p g_p / P, summed in float64, and rounded once
    losses                                 sum_p l_p / P, rounded once
    gradients, where that is asked for     the signs of their largest entries (`signs`)

A rank sends one message a step: the losses of its parts, and its coefficients, whole numbers in as few bits as the
largest needs, or trits of probes that are its own alone. Which net, rule and step it is, how many parts there are, and
which of them and of the probes are whose, all ranks know, so it is not sent: the digest of the message covers it.
Gradients and statistics are summed by all ranks together (`World.sum`), in eight bytes for each number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sidestep.errors import InputError, NonFiniteError, RankError
from sidestep.training.numbers import pack_losses, pack_values, pack_whole, unpack_losses, unpack_values, unpack_whole
from sidestep.training.signs import Signs
from sidestep.update import Dense, Seeded, Update
from sidestep.world import World

__all__ = ["SAVE", "PartSum", "together"]

SAVE = 0x80  # beside the number of a stop request: a checkpoint is due after this step
_TAKEN = 0x40  # likewise: which probes were taken follows, a bit each

_UNIT = 2.0**40  # of whole numbers in 1
_MOST = 2.0**16  # of a coefficient, so that the sum of 64 parts stays below 2^63


@dataclass(frozen=True)
class _Message:
    """What one rank says of a step."""

    signal: int
    losses: np.ndarray  # (parts, terms), float32
    taken: np.ndarray | None  # (probes,), bool; None for the usual ones
    rest: bytes


class PartSum:
    """The sum of the updates of one rank's parts; `exchanged` makes the update of the whole step of all ranks'."""

    def __init__(self, signs: Signs | None = None) -> None:
        self._signs, self._packed = signs, b""  # makes messages of gradients, and those of the parts
        self._like: Update | None = None
        self._losses: list[Tensor] = []
        self._reals: dict[str, Tensor] = {}  # sums of gradients and statistics, float64
        self._whole: Tensor | None = None  # sums of coefficients, int64
        self._values: Tensor | None = None  # coefficients of the probes that were taken
        self._taken: Tensor | None = None

    def add(self, update: Update, part: int = 0, message: bytes | None = None) -> None:
        """Add the update of a part, of the same kind as those before; of signs, in the order of the parts.

        Where somebody else has made the message of its signs, that is added as it is.
        """
        self._like = update if self._like is None else self._like
        if isinstance(update, Seeded) and (not isinstance(self._like, Seeded) or update.probes != self._like.probes):
            raise InputError("the parts of a step have other probes: the rule's `common_noise` has to be true")
        self._losses.append(torch.stack([loss.detach().float().cpu() for loss in update.losses.values()]))
        if self._signs and isinstance(update, Dense):
            self._packed += self._signs.packed(part, update.gradients) if message is None else message
        for name, value in _reals(update, statistics_only=self._signs is not None).items():
            if name in self._reals:
                self._reals[name] += value
            else:
                self._reals[name] = value.to(torch.float64, copy=True)
        if isinstance(update, Seeded):
            self._add_coefs(update.coefs.detach(), update.taken)

    def _add_coefs(self, coefs: Tensor, taken: Tensor | None) -> None:
        if taken is None:
            whole = _as_whole(coefs)
            self._whole = whole if self._whole is None else self._whole + whole
            return
        if self._values is None or self._taken is None:
            self._values, self._taken = torch.zeros_like(coefs), torch.zeros_like(taken)
        if bool((self._taken & taken).any()):
            raise InputError("two parts of a step have taken the same probe; each takes `batch.share.probes(count)`")
        self._values += coefs  # 0 where another part has its own
        self._taken |= taken

    def exchanged(self, world: World, parts: int, signal: int) -> tuple[Update, int]:
        """Return the update of a whole step, of so many parts, and what the ranks' signals are `together`.

        Raises:
            RankError: if a rank has failed or has gone, or if its message is of another step or rule.
        """
        like = self._like
        if like is None:
            raise InputError("there are more ranks than parts of a step: a rank has none")
        own = len(_own(world.rank, world.size, parts))
        if len(self._losses) != own:
            raise RankError(f"rank {world.rank} has estimated {len(self._losses)} parts of a step, and {own} are its")
        said = self._said(world.gather(self.message(world, parts, signal), self._known(parts)), parts)
        losses = np.concatenate([each.losses for each in said])  # in the order of the ranks; the sum knows none
        means = {
            name: torch.tensor(_mean(losses[:, place])).to(value)
            for place, (name, value) in enumerate(like.losses.items())
        }
        reals = self._means_of_reals(world, parts)
        statistics = {name: reals[f"statistic {name}"].to(value) for name, value in like.statistics.items()}
        found: Update
        if isinstance(like, Dense) and self._signs:
            gradients = self._signs.combined([each.rest for each in said], parts, like.gradients)
            found = Dense(gradients, statistics, means)
        elif isinstance(like, Dense):
            gradients = {name: reals[f"gradient {name}"].to(value) for name, value in like.gradients.items()}
            found = Dense(gradients, statistics, means)
        elif isinstance(like, Seeded):
            found = replace(like, coefs=self._coefs(said, parts), statistics=statistics, losses=means, taken=None)
        else:
            raise InputError(f"an estimate is Dense or Seeded, got {type(like).__name__}")
        return found, together([each.signal for each in said])

    def message(self, world: World, parts: int, signal: int) -> bytes:
        """Return what this rank sends of a step of so many parts, without the world's header."""
        data = pack_losses(torch.stack(self._losses).numpy())
        if self._values is not None and self._taken is not None:
            taken = self._taken.cpu().numpy()
            usual = _usual(world.rank, world.size, parts, self._count)
            if usual is None or not np.array_equal(taken, usual):
                signal |= _TAKEN
                data += np.packbits(taken, bitorder="little").tobytes()
            data += pack_values(self._values[self._taken].cpu().numpy())
        elif self._whole is not None:
            data += pack_whole(self._whole.cpu().numpy())
        else:
            data += self._packed
        return bytes([signal]) + data

    @property
    def _count(self) -> int:
        return self._like.coefs.numel() if isinstance(self._like, Seeded) else 0

    def _known(self, parts: int) -> bytes:
        """Return what tells updates of other nets, rules and losses apart, which all ranks know."""
        like = self._like
        words = [type(like).__name__, str(self._whole is None), str(parts), *(like.losses if like else ())]
        words += [f"{name} {tuple(value.shape)}" for name, value in self._reals.items()]
        if self._signs and isinstance(like, Dense):
            words += [f"signs {name} {tuple(value.shape)}" for name, value in like.gradients.items()]
        if isinstance(like, Seeded):
            words += [repr(like.coefs.dtype), str(like.coefs.numel())]
            words += [type(like.probes).__name__, str(like.probes.noise.step)]
        return "\n".join(words).encode()

    def _said(self, messages: Sequence[bytes], parts: int) -> list[_Message]:
        terms, found, mask = self._losses[0].numel(), [], -(-self._count // 8)
        for rank, message in enumerate(messages):
            own = len(_own(rank, len(messages), parts))
            losses, end = unpack_losses(message[1:], own, terms, rank)
            signal, rest, taken = message[0], message[1 + end :], None
            if signal & _TAKEN:
                bits, rest = np.frombuffer(rest[:mask].ljust(mask, b"\0"), np.uint8), rest[mask:]
                taken = np.unpackbits(bits, count=self._count, bitorder="little").astype(bool)
            found.append(_Message(signal & ~_TAKEN, losses, taken, rest))
        return found

    def _coefs(self, said: Sequence[_Message], parts: int) -> Tensor:
        like = self._like
        assert isinstance(like, Seeded)
        if self._values is None:
            total = sum(unpack_whole(each.rest, self._count, rank) for rank, each in enumerate(said))
            return (torch.from_numpy(total).double() / _UNIT).to(like.coefs)
        whole, seen = self._values.cpu().numpy().copy(), np.zeros(self._count, bool)
        for rank, each in enumerate(said):
            usual = _usual(rank, len(said), parts, self._count)
            taken = usual if each.taken is None else each.taken
            values = None if taken is None else unpack_values(each.rest, int(taken.sum()), whole.dtype)
            if taken is None or values is None or (taken & seen).any():
                raise RankError(f"rank {rank} sent coefficients of probes that are not its own, or not all of them")
            whole[taken], seen = values, seen | taken
        if not seen.all():
            raise RankError(f"nobody has taken probe {int((~seen).argmax())} of {self._count}")
        return torch.from_numpy(whole).to(like.coefs)

    def _means_of_reals(self, world: World, parts: int) -> dict[str, Tensor]:
        if not self._reals:
            return {}
        if world.size == 1:
            return {name: value / parts for name, value in self._reals.items()}
        flat = world.sum(torch.cat([value.reshape(-1) for value in self._reals.values()])) / parts
        pieces = flat.split([value.numel() for value in self._reals.values()])
        named = zip(self._reals.items(), pieces, strict=True)
        return {name: piece.view(value.shape) for (name, value), piece in named}


def together(signals: Sequence[int]) -> int:
    """Return the largest number of a stop request, and with it SAVE if any rank has sent it.

    >>> together([0, 15, 2 | SAVE]) == 15 | SAVE
    True
    """
    return max(signal & ~SAVE for signal in signals) | max(signal & SAVE for signal in signals)


def _own(rank: int, size: int, parts: int) -> range:
    """Return the numbers of the parts that a rank takes (`Parts.own`)."""
    return range(rank, parts, size)


def _usual(rank: int, size: int, parts: int, count: int) -> np.ndarray | None:
    """Return which probes a rank takes, (count,), bool, where each part takes as many as the others, in their order."""
    if count % parts:
        return None
    taken = np.zeros((parts, count // parts), bool)
    taken[rank::size] = True
    return taken.reshape(-1)


def _reals(update: Update, statistics_only: bool = False) -> dict[str, Tensor]:
    gradients = update.gradients if isinstance(update, Dense) and not statistics_only else {}
    return {f"gradient {name}": value.detach() for name, value in gradients.items()} | {
        f"statistic {name}": value.detach() for name, value in update.statistics.items()
    }


def _as_whole(coefs: Tensor) -> Tensor:
    """Return `round(c 2^40)`, int64."""
    real = coefs.double()
    if bool((real.abs() < _MOST).all()):  # false for NaN, too
        return (real * _UNIT).round().to(torch.int64)
    raise NonFiniteError(
        f"a coefficient of the estimate is {float(real.abs().max()):g}, and parts of a step are summed up to "
        f"{_MOST:,.0f}: training diverges, or the loss needs another scale; try a smaller learning rate"
    )


def _mean(values: np.ndarray) -> float:
    """Return the mean, rounded once whatever the order; infinities and NaNs stay what they are."""
    return math.fsum(values.tolist()) / len(values) if np.isfinite(values).all() else float(values.sum())
