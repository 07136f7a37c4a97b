"""Parts of an update: what it does to some of the weights, made without the rest where that is cheaper."""

import itertools
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sidestep.probes import DenseProbes, Probes, RankOneProbes, SparseProbes
from sidestep.update import Flips, Seeded

__all__ = ["only_part"]

_CHUNK = 1 << 22  # elements of probes at a time


def only_part(update: Seeded | Flips, first: int, last: int) -> Seeded | Flips:
    """Return an update that does to weights `first` to `last` - 1 what the given one does, and nothing to others.

    >>> only_part(Flips(torch.tensor([1, 4, 7]), torch.tensor([1, -1, 1], dtype=torch.int8)), 2, 6).positions.tolist()
    [4]
    """
    if isinstance(update, Flips):
        inside = (update.positions >= first) & (update.positions < last)
        return replace(update, positions=update.positions[inside], moves=update.moves[inside])
    return replace(update, probes=_narrowed(update.probes, first, last))


@dataclass(frozen=True)
class _SparsePart(SparseProbes):
    part: tuple[int, int] = (0, 0)

    def weighted_sum(self, coefs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of `SparseProbes.weighted_sum`."""
        position, value = super().weighted_sum(coefs)
        inside = (position >= self.part[0]) & (position < self.part[1])
        return position[inside], value[inside]


@dataclass(frozen=True)
class _RankOnePart(RankOneProbes):
    part: tuple[int, int] = (0, 0)

    def weighted_sum(self, coefs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part of `RankOneProbes.weighted_sum`; the other layers' matrices are never made."""
        positions, values = [], []
        at = 0
        for layer, (rows, columns) in enumerate(self.shapes):
            end = at + rows * columns
            if at < self.part[1] and end > self.part[0]:
                position, value = _one_layer(self, layer, coefs)
                position += at
                inside = (position >= self.part[0]) & (position < self.part[1])
                positions.append(position[inside])
                values.append(value[inside])
            at = end
        return torch.cat(positions), torch.cat(values)


def _one_layer(probes: RankOneProbes, layer: int, coefs: Tensor) -> tuple[Tensor, Tensor]:
    shape = probes.shapes[layer]
    sums, size = torch.zeros(shape, device=coefs.device), max(1, _CHUNK // sum(shape))
    for first in range(0, probes.count, size):
        last = min(first + size, probes.count)
        left, right = probes.factors(layer, coefs.device, first, last)
        sums += (left.float() * coefs[first:last].float()[:, None]).T @ right.float()
    total = sums.flatten().to(torch.int64)
    position = total.nonzero()[:, 0]
    return position, total[position]


def _narrowed(probes: Probes | DenseProbes, first: int, last: int) -> Probes | DenseProbes:
    if isinstance(probes, DenseProbes):
        ends = list(itertools.accumulate(math.prod(shape) for _, shape in probes.parameters))
        places = zip([0, *ends], ends, probes.parameters, strict=False)
        return replace(probes, parameters=tuple(entry for at, end, entry in places if first <= at and end <= last))
    given: dict[str, Any] = {field.name: getattr(probes, field.name) for field in fields(probes)}
    if isinstance(probes, SparseProbes):
        return _SparsePart(**given, part=(first, last))
    return _RankOnePart(**given, part=(first, last))
