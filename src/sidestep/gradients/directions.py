"""Random directions in the space of a net's weights, made from the seed wherever they are needed.

Every parameter has a stream of its own, by name, so that layers of one shape never share noise; every pair or tangent
has a substream.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

from sidestep.gradients.scaled_signs import scaled_signs
from sidestep.nets.trained import trained
from sidestep.noise import Noise, signs_of
from sidestep.probes import DenseProbes, Distribution

__all__ = [
    "Directions",
    "JointSigns",
    "OneDirection",
    "WeightedDirection",
    "directions_along",
    "weighted_directions",
]

_SHARE = 1 / 16  # of the weights that sparse noise moves
_BLOCK = 128  # signs in a block of noise
_SMALL = 1 << 22  # signs that are drawn at once and kept, int8
_MOST = 1 << 38  # signs of one point of noise, to stay below its end


@dataclass(frozen=True)
class Directions:
    """What a `Distribution` says, drawn for one parameter after another; not its `signs` (see `JointSigns`).

    Every parameter has a stream of its own, by name, and every pair or tangent a substream.

    >>> directions = Directions(Noise(0))
    >>> directions.draw("weight", (2, 3), 0, torch.zeros(1)).abs().tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    noise: Noise  # stands at the step
    distribution: Distribution = "rademacher"

    def draw(self, name: str, shape: Sequence[int], index: int, like: Tensor) -> Tensor:
        """Return direction `index` of what is called `name`, in the dtype and on the device of `like`."""
        noise, count, place = self.noise.stream(name).sub(index), math.prod(shape), like.device
        if self.distribution == "gaussian":
            drawn = noise.normal(count, device=place)
        elif self.distribution == "sparse":
            drawn = noise.sparse_signs(count, _SHARE, device=place).mul_(round(_SHARE**-0.5))
        elif self.distribution == "rank-one" and len(shape) > 1 and count:
            rows, columns = shape[0], count // shape[0]
            left = noise.stream("rows").signs(rows, device=place)
            drawn = left[:, None] * noise.stream("columns").signs(columns, device=place)
        else:
            drawn = noise.signs(count, device=place)
        return drawn.to(like.dtype).view(tuple(shape))

    def scaled(self, name: str, index: int, coef: float, like: Tensor) -> Tensor:
        """Return a direction times a number, in the shape of `like`."""
        return self.draw(name, like.shape, index, like).mul_(coef)

    def elements(self, name: str, coefs: Sequence[float], first: int, like: Tensor, place: range) -> Tensor:
        """Return `sum_i c_i nu_(first + i)` at these places of what has the shape of `like`, (places,), float32."""
        return self.weighted(name, coefs, first, like.float()).view(-1)[place.start : place.stop]

    def weighted(self, name: str, coefs: Sequence[float], first: int, like: Tensor) -> Tensor:
        """Return `sum_i c_i nu_(first + i)` of what is called `name`, one direction in memory at a time."""
        total: Tensor | None = None
        for index, coef in enumerate(coefs, first):
            if coef and total is None:
                total = self.scaled(name, index, coef, like)  # the bits of 0 + coef nu
            elif coef and total is not None:
                total.add_(self.draw(name, like.shape, index, like), alpha=coef)
        return torch.zeros_like(like, requires_grad=False) if total is None else total


@dataclass(frozen=True)
class JointSigns(Directions):
    """Fair signs from one stream: direction i of the weight at place j is element i n + j, n whole blocks of noise.

    So a small net draws all that a step needs at once.

    table: names and shapes of all parameters, in the order of the net.
    count: how many directions there are.
    """

    table: tuple[tuple[str, tuple[int, ...]], ...] = ()
    count: int = 1

    @cached_property
    def _places(self) -> dict[str, int]:
        ends = accumulate((math.prod(shape) for _, shape in self.table), initial=0)
        return {name: end for (name, _), end in zip(self.table, ends, strict=False)}

    @cached_property
    def _length(self) -> int:
        """Elements from one direction to the next."""
        return -(-self._weights // _BLOCK) * _BLOCK

    @cached_property
    def _block(self) -> Tensor | None:
        """All signs of a small net, (directions, n), int8."""
        if self.count * self._length > _SMALL:
            return None
        return self.noise.signs(self.count * self._length).view(self.count, self._length)

    def draw(self, name: str, shape: Sequence[int], index: int, like: Tensor) -> Tensor:
        """Return direction `index` of what is called `name`, in the dtype and on the device of `like`."""
        count = math.prod(shape)
        if self._block is not None:
            signs = self._block[index, self._places[name] :][:count].to(like.device)
        else:
            noise, start = self._at(index, name)
            signs = noise.signs(count, start, like.device)
        return signs.to(like.dtype, copy=True).view(tuple(shape))

    def scaled(self, name: str, index: int, coef: float, like: Tensor) -> Tensor:
        """Return a direction times a number, in the shape of `like`."""
        if self._block is not None or like.device.type != "cpu" or like.dtype != torch.float32:
            return super().scaled(name, index, coef, like)
        noise, start = self._at(index, name)
        return scaled_signs(noise, like.numel(), coef, start).view(like.shape)

    def elements(self, name: str, coefs: Sequence[float], first: int, like: Tensor, place: range) -> Tensor:
        """Return `sum_i c_i nu_(first + i)` at these places, (places,), float32; of a large net no others are drawn."""
        if self._block is not None:
            signs = self._block[first : first + len(coefs), self._places[name] + place.start :][:, : len(place)]
            return (torch.tensor(coefs) @ signs.to(torch.float32)).to(like.device)
        total = torch.zeros(len(place), device=like.device)
        for index, coef in enumerate(coefs, first):
            noise, start = self._at(index, name)
            if coef and like.device.type == "cpu":
                total.add_(scaled_signs(noise, len(place), coef, start + place.start))
            elif coef:
                total.add_(noise.signs(len(place), start + place.start, like.device), alpha=coef)
        return total

    def _at(self, index: int, name: str) -> tuple[Noise, int]:
        group, inside = divmod(index, max(1, _MOST // self._length))
        return self.noise.sub(group), inside * self._length + self._places[name]

    def joined(self, index: int, names: tuple[str, ...]) -> Tensor | None:
        """Return direction `index` of all these parameters, one after another, int8 on a CPU.

        None where the net is not small, or the names are not those of the table, in its order.
        """
        return None if self._block is None or names != self._names else self._block[index, : self._weights]

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.table)

    @cached_property
    def _weights(self) -> int:
        return sum(math.prod(shape) for _, shape in self.table)

    def weighted(self, name: str, coefs: Sequence[float], first: int, like: Tensor) -> Tensor:
        """Return `sum_i c_i nu_(first + i)` of what is called `name`."""
        if self._block is None:
            return super().weighted(name, coefs, first, like)
        signs = self._block[first : first + len(coefs), self._places[name] :][:, : like.numel()]
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        found = torch.tensor(coefs, dtype=kind) @ signs.to(kind)
        return found.to(like).view(like.shape)


def directions_along(probes: DenseProbes) -> Directions:
    """Return what draws the directions that probes describe."""
    if probes.distribution == "signs":
        return JointSigns(probes.noise, "signs", probes.parameters, probes.count)
    return Directions(probes.noise, probes.distribution)


class OneDirection:
    """One direction of all weights: nu, the part of each by its name.

    keep: whether a part that was drawn stays in memory. Signs do in any case, eight to a byte.
    """

    def __init__(self, directions: Directions, index: int, keep: bool) -> None:
        self._directions, self._index, self._keep = directions, index, keep
        self._parts: dict[str, Tensor] = {}
        self._packed: dict[str, Tensor] = {}

    def joined(self, names: tuple[str, ...]) -> Tensor | None:
        """Return the parts of these names one after another, signs, where one draw has given all of them; else None."""
        directions = self._directions
        return directions.joined(self._index, names) if isinstance(directions, JointSigns) else None

    def of(self, name: str, like: Tensor) -> Tensor:
        """Return the part of that name, in the shape and dtype of `like`."""
        if name in self._parts:
            return self._parts[name]
        if name in self._packed:
            signs = signs_of(self._packed[name])[: like.numel()]
            return signs.to(like.dtype).view(like.shape)
        if not self._keep and self._directions.distribution == "rademacher":  # drawn once, in an eighth of the memory
            noise = self._directions.noise.stream(name).sub(self._index)
            self._packed[name] = noise.packed_signs(like.numel(), like.device)
            return self.of(name, like)
        found = self._directions.draw(name, like.shape, self._index, like)
        if self._keep:
            self._parts[name] = found
        return found

    def elements(self, name: str, like: Tensor, start: int, count: int) -> Tensor:
        """Return `count` elements of that part from `start` on, float32; they are drawn again for every use."""
        return self._directions.elements(name, (1.0,), self._index, like, range(start, start + count))


class WeightedDirection:
    """The sum `sum_i c_i nu_i` as one direction of all weights.

    keep: whether a part that was summed up stays in memory.
    first: number of the direction that the first coefficient belongs to.
    """

    def __init__(self, directions: Directions, coefs: Tensor, keep: bool, first: int = 0) -> None:
        self._directions, self._coefs, self._keep, self._first = directions, coefs.tolist(), keep, first
        self._parts: dict[str, Tensor] = {}

    def of(self, name: str, like: Tensor) -> Tensor:
        """Return the part of that name, in the shape and dtype of `like`."""
        if name in self._parts:
            return self._parts[name]
        total = self._directions.weighted(name, self._coefs, self._first, like)
        if self._keep:
            self._parts[name] = total
        return total

    def elements(self, name: str, like: Tensor, start: int, count: int) -> Tensor:
        """Return `count` elements of that part from `start` on, float32; they are summed again for every use."""
        return self._directions.elements(name, self._coefs, self._first, like, range(start, start + count))


def weighted_directions(
    net: nn.Module, directions: Directions, coefs: Tensor, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return parameter name -> `sum_i c_i nu_i`, one direction in memory at a time; for all trained ones by default."""
    sums = {}
    for name, parameter in trained(net).items():
        if names is not None and name not in names:
            continue
        sums[name] = WeightedDirection(directions, coefs, keep=False).of(name, parameter)
    return sums
