"""What one training step decides: the small value that is exchanged, logged, applied and replayed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.probes import DenseProbes, Probes
from sidestep.seeded_sets import ChosenSets
from sidestep.ternary import packed_bytes

__all__ = ["Combination", "Dense", "Flips", "Seeded", "Update", "combined", "loss_values", "side_by_side"]

Combination = Literal["mean", "merge", "sum", "decided"]
"""How the updates of several ranks become one (`combined`).

    mean      each rank has an equal share of the batch: the mean of every gradient
    merge     each rank has other units: all of their gradients side by side
    sum       the ranks have the same probes: the sum of each coefficient, a rank's part of the whole estimate, 0 for a
              probe that it did not take
    decided   comes after the exchange, and is the same on every rank: there is nothing to combine
"""

_SHORT_PLACES = 1 << 32  # from this many weights on a position takes eight bytes


@dataclass(frozen=True)
class Dense:
    """Gradients of named parameters, for the whole net or for one unit of it.

    gradients: by parameter name, each of its parameter's shape.
    statistics: new values of named buffers (a batch norm's running mean), each of its buffer's shape; they
        are part of the update because `estimate` writes nothing into the net.
    losses: named terms of the loss, shape () each, for display and for the check that all are finite.
    combination: "merge" for some of the units only, beside others' updates.

    >>> import torch
    >>> update = Dense({"weight": torch.zeros(3, 2)}, losses={"cross entropy": torch.tensor(2.3)})
    >>> update.statistics
    {}
    """

    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    combination: Literal["mean", "merge"] = "mean"

    @property
    def plain_bytes(self) -> int:
        """The bytes of every gradient and statistic, in their own dtypes."""
        return sum(map(_bytes, [*self.gradients.values(), *self.statistics.values()]))

    def to(self, device: str | torch.device) -> "Dense":
        """Return the update on a device."""
        return replace(self, gradients=_moved(self.gradients, device), **_rest_moved(self, device))

    def _combined(self, updates: "Sequence[Dense]") -> "Dense":
        over: Callable[..., dict[str, Tensor]] = _means if self.combination == "mean" else side_by_side
        return Dense(
            over("gradients", [update.gradients for update in updates]),
            over("statistics", [update.statistics for update in updates]),
            over("losses", [update.losses for update in updates]),
            self.combination,
        )


@dataclass(frozen=True)
class Seeded:
    """One coefficient per probe; the probes' directions are made again from the seed and the step.

    coefs: shape (probes,), real before `decide`, or trits (int8) of a part that can make them of its own probes; after
        `decide` one trit each, or still real along dense probes.
    probes: which directions they belong to.
    statistics: new values of named buffers, as in `Dense`.
    losses: named terms of the loss, shape () each, for display and for the check that all are finite.
    rate: the learning rate that `apply` steps with, which `decide` puts in where a replay cannot know it otherwise.
    taken: of a part of a step, shape (probes,), bool: the probes that it took; the coefficients of the others are 0.
        None where every part adds to every coefficient.
    """

    combination: ClassVar[Combination] = "sum"
    coefs: Tensor
    probes: Probes | DenseProbes
    statistics: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    rate: float | None = None
    taken: Tensor | None = None

    @property
    def plain_bytes(self) -> int:
        """The bytes of the coefficients, of trits (int8) five to a byte, and of every statistic."""
        trits = self.coefs.element_size() == 1
        own = packed_bytes(self.coefs.numel()) if trits else _bytes(self.coefs)
        return own + sum(map(_bytes, self.statistics.values()))

    def to(self, device: str | torch.device) -> "Seeded":
        """Return the update on a device."""
        return replace(self, coefs=self.coefs.to(device), **_rest_moved(self, device))

    def _combined(self, updates: "Sequence[Seeded]") -> "Seeded":
        for other in updates:
            if other.probes != self.probes:
                raise InputError(
                    "coefficients are added that belong to the same probes, and these belong to others (another step, "
                    "seed, number or kind); give each rank the probes of the whole step, and 0 where it took none"
                )
            whole = other.taken is None  # a part that took some of the probes may have made trits of them
            if other.rate is not None or (whole and not other.coefs.is_floating_point()):
                raise InputError("coefficients are added before decide turns them into trits or sets a learning rate")
        coefs = _exact_sum([update.coefs for update in updates])
        statistics = _means("statistics", [update.statistics for update in updates])
        losses = _means("losses", [update.losses for update in updates])
        return replace(self, coefs=coefs, statistics=statistics, losses=losses, taken=None)


@dataclass(frozen=True)
class Flips:
    """Single weights of a ternary net that move one step up or down.

    positions: ascending places in all weights, one parameter after another, int64 of shape (flips,).
    moves: 1 or -1 each, int8 of shape (flips,).
    statistics: new values of named buffers, as in `Dense`.
    losses: named terms of the loss, shape () each, for display and for the check that all are finite.
    sets: the seeded sets whose moves these are, where a log is to keep their numbers in place of the moves.
    """

    combination: ClassVar[Combination] = "decided"
    positions: Tensor
    moves: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    sets: ChosenSets | None = None

    @property
    def plain_bytes(self) -> int:
        """Per flip four bytes of position (eight beyond 2^32 weights) and one bit of direction, or of seeded sets a
        byte each; every statistic."""
        if self.sets is not None:
            return self.sets.numbers.numel() + sum(map(_bytes, self.statistics.values()))
        flips = self.positions.numel()
        far = flips > 0 and int(self.positions[-1]) >= _SHORT_PLACES
        return flips * (8 if far else 4) + -(-flips // 8) + sum(map(_bytes, self.statistics.values()))

    def to(self, device: str | torch.device) -> "Flips":
        """Return the update on a device."""
        return replace(
            self, positions=self.positions.to(device), moves=self.moves.to(device), **_rest_moved(self, device)
        )

    def _combined(self, updates: "Sequence[Flips]") -> "Flips":
        raise InputError("flips are decided after the exchange, the same on every rank: combine the estimates instead")


Update: TypeAlias = Dense | Seeded | Flips
OneKind = TypeVar("OneKind", bound=Update)


def combined(updates: Sequence[OneKind]) -> OneKind:
    """Return one estimate of those of several ranks, in the way that the updates themselves name (`Combination`).

        mean    g = sum_r g_r / R, in float64 in the order given, rounded once; what is equal stays as it is; statistics
                and losses likewise
        merge   the gradients, statistics and losses of all, none of them twice
        sum     c_i = sum_r c_{r,i}, whose rounding depends on no order; statistics and losses as in mean

    Raises:
        InputError: for no updates, of several kinds, or that do not go together.

    >>> ranks = [Dense({"weight": torch.tensor([1.0, 2.0])}), Dense({"weight": torch.tensor([3.0, 2.0])})]
    >>> combined(ranks).gradients["weight"].tolist()
    [2.0, 2.0]
    """
    kinds = {(type(update), update.combination) for update in updates}
    if len(kinds) != 1:
        found = ", ".join(sorted(f"{kind.__name__} ({how})" for kind, how in kinds)) or "none"
        raise InputError(f"updates are combined that are of one kind, got {found}")
    same: Any = updates
    found_one: OneKind = same[0]._combined(same)
    return found_one


def loss_values(update: Update) -> list[float]:
    """Return the losses of an update as numbers, in their order: from a GPU by one transfer.

    >>> loss_values(Dense({}, losses={"one": torch.tensor(1.5), "two": torch.tensor(2.0)}))
    [1.5, 2.0]
    """
    losses = [loss.float() for loss in update.losses.values()]
    if all(loss.device.type == "cpu" for loss in losses):
        return [loss.item() for loss in losses]
    return torch.stack(losses).tolist()


def _means(what: str, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    first = parts[0]
    for part in parts:
        wrong = sorted(first.keys() ^ part.keys())
        wrong += [name for name in first if name in part and first[name].shape != part[name].shape]
        if wrong:
            raise InputError(f"the {what} of the ranks differ in name or shape: {', '.join(wrong[:5])}")
    return {name: _mean(what, name, [part[name] for part in parts]) for name in first}


def _mean(what: str, name: str, values: Sequence[Tensor]) -> Tensor:
    first = values[0]
    if all(torch.equal(value, first) for value in values):
        return first
    if not first.is_floating_point():
        raise InputError(f"{name} of the {what} is counted in whole numbers, and differs between the ranks")
    total = torch.zeros_like(first, dtype=torch.float64)
    for value in values:
        total += value
    return total.div_(len(values)).to(first.dtype)


def side_by_side(what: str, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all parts by name; InputError, which says `what` they are, where a name is there twice."""
    found: dict[str, Tensor] = {}
    for part in parts:
        if not found.keys().isdisjoint(part):
            twice = sorted(found.keys() & part.keys())
            raise InputError(f"the {what} of two units have the same names: {', '.join(twice[:5])}")
        found.update(part)
    return found


def _exact_sum(coefs: Sequence[Tensor]) -> Tensor:
    """Return the sum that is rounded once, to float64, and then to the coefficients' dtype."""
    first, stacked = coefs[0], torch.stack([each.detach().cpu().double() for each in coefs])
    if not bool(stacked.isfinite().all()):  # not to be hidden: `decide` names the step
        return stacked.sum(0).to(first)
    sums = [math.fsum(column) for column in stacked.T.tolist()]
    return torch.tensor(sums, dtype=torch.float64).to(first)


def _rest_moved(update: Update, device: str | torch.device) -> dict[str, Any]:
    return {"statistics": _moved(update.statistics, device), "losses": _moved(update.losses, device)}


def _moved(tensors: Mapping[str, Tensor], device: str | torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
