"""Probes: seeded directions in the space of a net's weights, made again wherever they are needed, never stored.

A step has K of them, and an update is one coefficient per probe. All is integer arithmetic on Philox words, so a probe
is the same on every device, but for dense probes of normal values. Positions count through all weights of a net, one
parameter after another.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.noise import Noise, rows_of_signs
from sidestep.permutation import permuted

__all__ = ["DenseProbes", "Distribution", "Entries", "PerParameter", "Probes", "RankOneProbes", "SparseProbes"]

Distribution = Literal["rademacher", "gaussian", "signs", "sparse", "rank-one"]
_DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)
"""What a dense probe is drawn from, each of mean 0 and variance 1 for every weight.

    rademacher  fair signs, from a stream for every parameter
    gaussian    standard normal values, likewise
    signs       fair signs, from one stream for all parameters and probes: one draw serves a small net for a step
    sparse      fair signs times 4 on a sixteenth of the weights, 0 on the others
    rank-one    a b^T with fair signs a and b in matrices (beyond two dimensions, columns), fair signs elsewhere
"""

PerParameter = Literal["rademacher", "gaussian"]  # those that need to know nothing but the parameter

_CHUNK = 1 << 22  # elements of probes at a time
_DENSE = 1 << 26  # up to so many weights, a sum of several chunks is kept as one vector of all of them


@dataclass(frozen=True)
class Entries:
    """The non-zero elements of several sparse probes, ordered by probe; all of shape (non-zeros,)."""

    probe: Tensor  # int64, in [first, last)
    position: Tensor  # int64, in [0, weights)
    sign: Tensor  # int8, 1 or -1


@dataclass(frozen=True)
class SparseProbes:
    """K sparse sign vectors over d weights: of every weight a share s, each with a fair sign.

        bernoulli:  nu_i = Bernoulli(s) * U{-1, 1} per weight, the probes independent
        exclusive:  n = max(1, round(s d)) non-zeros in every probe, and no weight in two probes while K n <= d

    Only the non-zeros are drawn: their number by inversion of the binomial distribution, their places as the first of a
    keyed permutation of 0 .. d-1. So the cost is that of the non-zeros, whatever d is.

    Source of the bernoulli probes: Brickner, "noise_step" (2024); of exclusive ones: section 2 of the same, where
    37 % of probes of density 1 / d are empty.

    >>> probes = SparseProbes(Noise(0), weights=1000, count=3, density=0.002, exclusive=True)
    >>> probes.entries().probe.tolist()
    [0, 0, 1, 1, 2, 2]
    """

    noise: Noise  # stands at the step
    weights: int
    count: int
    density: float
    exclusive: bool = False

    def __post_init__(self) -> None:
        if self.weights < 1 or self.weights > 1 << 62:
            raise InputError(f"probes need from 1 to 2**62 weights, got {self.weights}")
        if not 1 <= self.count < 1 << 32:
            raise InputError(f"a step needs from 1 to 2**32 - 1 probes, got {self.count}")
        if not 0 < self.density <= 1 or self.density * self.weights < 1 - 1e-9:
            raise InputError(
                f"density must be in (0, 1] and at least 1/d, got {self.density:g}; the smallest useful value for "
                f"{self.weights:,} weights is 1/d = {1 / self.weights:.2g}"
            )

    def non_zeros(self) -> Tensor:
        """Return the number of non-zero elements of every probe, (K,), int64."""
        if self.exclusive:
            return torch.full((self.count,), max(1, round(self.density * self.weights)), dtype=torch.int64)
        first, thresholds = _binomial(self.weights, self.density)
        words = self.noise.stream("non-zeros").words(self.count)
        return torch.bucketize(words, thresholds, right=True).add_(first)

    def entries(self, first: int = 0, last: int | None = None, device: str | torch.device = "cpu") -> Entries:
        """Return the non-zeros of probes `first` to `last` - 1, by default of all."""
        return self._entries(first, self.count if last is None else last, torch.device(device))

    def _entries(self, first: int, last: int, device: torch.device, coefs: Tensor | None = None) -> Entries:
        """Return the same, with coefs (K,) of those probes alone whose coefficient is not 0; others have no places."""
        sizes = self.non_zeros()
        before = int(sizes[:first].sum())
        sizes = sizes[first:last]
        total = int(sizes.sum())
        probe = torch.repeat_interleave(torch.arange(first, last), sizes)
        element = torch.arange(before, before + total)
        if self.exclusive:  # one permutation for all probes, and another one once every weight had its turn
            whole = self.weights - self.weights % max(1, round(self.density * self.weights))  # no probe on two laps
            lap, index = element // whole, element % whole
        else:
            lap, index = probe, element - before - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        sign = self.noise.stream("sign").signs(total, before, device)
        if coefs is not None:
            kept = coefs.cpu()[probe] != 0
            probe, lap, index, sign = probe[kept], lap[kept], index[kept], sign[kept.to(device)]
        position = permuted(index.to(device), lap.to(device), self.weights, self.noise.stream("places"))
        return Entries(probe.to(device), position, sign)

    def weighted_sum(self, coefs: Tensor) -> tuple[Tensor, Tensor]:
        """Return `sum_i c_i nu_i` for whole-numbered coefs (K,), as ascending positions and their values, int64.

        Positions whose terms cancel are left out.
        """
        if coefs.shape != (self.count,):
            raise InputError(f"there are {self.count} probes, got coefficients of shape {tuple(coefs.shape)}")
        chunks = self._chunks()
        if len(chunks) == 1 or self.weights > _DENSE:
            position, value = self._part(coefs, *chunks[0])
            for first, last in chunks[1:]:
                more = self._part(coefs, first, last)
                position, value = _merged(torch.cat([position, more[0]]), torch.cat([value, more[1]]))
            return position[value != 0], value[value != 0]
        total = torch.zeros(self.weights, dtype=torch.int64, device=coefs.device)
        for first, last in chunks:
            total.index_add_(0, *self._part(coefs, first, last))
        position = total.nonzero()[:, 0]
        return position, total[position]

    def _part(self, coefs: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        found = self._entries(first, last, coefs.device, coefs)
        return _merged(found.position, coefs.to(torch.int64)[found.probe] * found.sign)

    def _chunks(self) -> list[tuple[int, int]]:
        """Ranges of probes with few non-zeros, so that a sum needs little memory beside its result."""
        size = max(1, int(_CHUNK / max(1.0, self.density * self.weights)))
        return [(first, min(first + size, self.count)) for first in range(0, self.count, size)]


@dataclass(frozen=True)
class RankOneProbes:
    """One rank-one sign matrix per probe and layer, `nu_i = a_i b_i^T` with fair signs a_i (rows) and b_i (columns).

    Its noise is rows + columns bits, where a dense probe has rows x columns; and `sum_i c_i nu_i = A^T diag(c) B` is
    one matrix product. Weights beyond a matrix's two dimensions (a kernel's) count as columns.

    >>> position, value = RankOneProbes(Noise(0), ((2, 3),), 5).weighted_sum(torch.tensor([1, 0, 0, 0, 0]))
    >>> value.abs().tolist()
    [1, 1, 1, 1, 1, 1]
    """

    noise: Noise  # stands at the step
    shapes: tuple[tuple[int, int], ...]  # rows and columns of every layer
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count < 1 << 24:
            raise InputError(f"a step needs from 1 to 2**24 - 1 rank-one probes, got {self.count}")

    @property
    def weights(self) -> int:
        """The number of weights that the matrices have."""
        return sum(rows * columns for rows, columns in self.shapes)

    def factors(
        self, layer: int, device: str | torch.device = "cpu", first: int = 0, last: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return A (probes, rows) and B (probes, columns) of a layer, int8, for probes `first` to `last` - 1."""
        rows, columns = self.shapes[layer]
        noise = self.noise.stream("rank one").sub(layer)
        count = (self.count if last is None else last) - first
        return (
            noise.stream("rows").signs(count * rows, first * rows, device).view(count, rows),
            noise.stream("columns").signs(count * columns, first * columns, device).view(count, columns),
        )

    def layer_sums(self, coefs: Tensor, layers: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yield `sum_i c_i nu_i` of each layer for coefs in {-1, 0, 1}, (K,): (rows, columns), int32 or float32, exact.

        Probes whose coefficient is 0 are not drawn. `layers` are the numbers of those that are asked for.
        """
        asked = range(len(self.shapes)) if layers is None else layers
        chosen = coefs.nonzero()[:, 0]
        size = max(1, _CHUNK // sum(sum(self.shapes[layer]) for layer in asked)) if asked else 1
        several = [asked] if len(chosen) <= size else [[layer] for layer in asked]
        for some in several:
            yield from self._sums(coefs, some, chosen.split(size) if len(chosen) else ())

    def _sums(self, coefs: Tensor, layers: Sequence[int], chunks: Sequence[Tensor]) -> list[Tensor]:
        points = []
        for layer in layers:
            noise, (rows, columns) = self.noise.stream("rank one").sub(layer), self.shapes[layer]
            points += [(noise.stream("rows"), rows), (noise.stream("columns"), columns)]
        found: list[Tensor] = []
        for chosen in chunks:
            signs, own = rows_of_signs(points, chosen), coefs[chosen].to(torch.int8)[:, None]
            more = [_product(left.mul_(own), right) for left, right in zip(signs[::2], signs[1::2], strict=True)]
            found = [total.add_(each) for total, each in zip(found, more, strict=True)] if found else more
        return found or [torch.zeros(self.shapes[layer], device=coefs.device) for layer in layers]

    def weighted_sum(self, coefs: Tensor) -> tuple[Tensor, Tensor]:
        """Return `sum_i c_i nu_i` for coefs in {-1, 0, 1}, (K,), as ascending positions and values, int64."""
        values = torch.cat([total.flatten() for total in self.layer_sums(coefs)])
        position = values.nonzero()[:, 0]
        return position, values[position].to(torch.int64)


Probes = SparseProbes | RankOneProbes  # of ternary weights: their sums are whole numbers


@dataclass(frozen=True)
class DenseProbes:
    """K directions over all weights of a net of floats: fair signs, or standard normal values.

    A description alone: `sidestep.gradients.directions` draws them, a parameter at a time. Every parameter has a
    stream of its own, by name, and every probe a substream.

    >>> DenseProbes(Noise(0), (("weight", (2, 3)), ("bias", (2,))), 4).weights
    8
    """

    noise: Noise  # stands at the step
    parameters: tuple[tuple[str, tuple[int, ...]], ...]  # name and shape of each, in the order of the net
    count: int
    distribution: Distribution = "rademacher"
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count < 1 << 32:
            raise InputError(f"a step needs from 1 to 2**32 - 1 probes, got {self.count}")
        if self.distribution not in _DISTRIBUTIONS:
            raise InputError(f"distribution must be one of {', '.join(_DISTRIBUTIONS)}, got {self.distribution!r}")

    @property
    def weights(self) -> int:
        """The number of weights that the parameters have."""
        return sum(math.prod(shape) for _, shape in self.parameters)

    @property
    def names(self) -> list[str]:
        """The names of the parameters that an update along the probes is about."""
        return [name for name, _ in self.parameters if self.only is None or name in self.only]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left^T right of signs (probes, rows) and (probes, columns), int8: int32 or float32, and exact.

    Sums of fewer than 2^24 signs are exact in float32; a processor with AVX-512 multiplies bytes four times as fast.
    With one row, whose strides say nothing, torch's product of bytes is wrong.
    """
    fast = left.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if fast and left.shape[1] > 1 and right.shape[1] > 1:
        return torch._int_mm(left.T, right)
    return left.float().T @ right.float()


def _merged(position: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return every position once, ascending, with the sum of its values."""
    position, place = position.unique(return_inverse=True)
    return position, torch.zeros_like(position).index_add_(0, place, value)


@functools.lru_cache(maxsize=32)
def _binomial(trials: int, density: float) -> tuple[int, Tensor]:
    """Return the least number of successes worth counting, and the words below which a draw stays at it, plus 1, ...

    In whole numbers (pmf relative to its mode, 96 bits), so the table is the same on every machine; words have 32 bits,
    so events rarer than 2^-32 do not happen.
    """
    chance = Fraction(density)
    if chance == 1:
        return trials, torch.empty(0, dtype=torch.int64)
    success, failure, unit = chance.numerator, chance.denominator - chance.numerator, 1 << 96
    mode = min(trials, math.floor((trials + 1) * chance))
    below, value = [], unit
    for n in range(mode, 0, -1):
        value = value * n * failure // ((trials - n + 1) * success)
        if value < unit >> 48:
            break
        below.append(value)
    above, value = [], unit
    for n in range(mode, trials):
        value = value * (trials - n) * success // ((n + 1) * failure)
        if value < unit >> 48:
            break
        above.append(value)
    masses = [*reversed(below), unit, *above]
    sums = list(itertools.accumulate(masses))
    thresholds = [(total << 32) // sums[-1] for total in sums[:-1]]
    return mode - len(below), torch.tensor(thresholds, dtype=torch.int64)
