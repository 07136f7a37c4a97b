"""Parts of probes: what they do to some of the weights, made without the rest where that is cheaper."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sidestep.probes import Probes, RankOneProbes, SparseProbes

__all__ = ["part_of_probes"]


def part_of_probes(probes: Probes, first: int, last: int) -> Probes:
    """Return probes whose sums have weights `first` to `last` - 1 of the given ones', and no others.

    >>> from sidestep.noise import Noise
    >>> probes = RankOneProbes(Noise(0), ((2, 3),), 5)
    >>> part_of_probes(probes, 2, 4).weighted_sum(torch.tensor([1, 0, 0, 0, 0]))[0].tolist()
    [2, 3]
    """
    given: dict[str, Any] = {field.name: getattr(probes, field.name) for field in fields(probes)}
    if isinstance(probes, SparseProbes):
        return _SparsePart(**given, part=(first, last))
    return _RankOnePart(**given, part=(first, last))


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
    total = next(probes.layer_sums(coefs, [layer])).flatten().to(torch.int64)
    position = total.nonzero()[:, 0]
    return position, total[position]
