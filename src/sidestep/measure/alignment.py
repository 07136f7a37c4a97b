"""How well estimates of a gradient point along the true one, tensor by tensor and over all of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import stdev

import torch
from torch import Tensor

from sidestep.errors import InputError

__all__ = ["WHOLE", "Alignment", "Comparison", "effective_probes"]

WHOLE = "all"  # the name of all compared tensors taken as one vector
_ROUNDING = 8.0  # a tensor's gradient below so many units of rounding of the whole one is none


@dataclass(frozen=True)
class Alignment:
    """Estimates e_1 .. e_R of one tensor's gradient, made from one batch with different noise, beside the true one, g.

    A number that does not exist is NaN: all of them but `elements` where g is zero (up to rounding, such as that of a
    bias before a batch norm), and `signal_to_noise` for a single estimate.
    """

    elements: int
    """Number of elements, d."""
    cosine: float
    """Mean of `<e, g> / (|e| |g|)`, in [-1, 1]; 1 is the direction of the gradient. An e of zeros counts as 0."""
    spread: float
    """Standard deviation of that cosine over the estimates; 0 for a single one."""
    sign_agreement: float
    """Share of equal signs among the elements that are zero in neither e nor g; mean over the estimates."""
    norm_ratio: float
    """Mean of `|e| / |g|`."""
    signal_to_noise: float
    """`|mean e|^2 / variance` of one estimate: the square of its expectation, without the share that the variance has
    in `|mean e|^2`, over `sum of (e - mean e)^2 / (R - 1)`, summed over elements. Infinite without noise."""
    effective_probes: float
    """Random directions of all of the tensor's elements that would be as good (see `effective_probes`)."""


def effective_probes(squared_cosine: float, elements: int) -> float:
    """Return the number K of random directions whose mean forward gradient has that squared cosine.

    Let |g| = 1, and `e = 1/K sum_i a_i v_i` with K Gaussian directions v_i of d elements and `a_i = <g, v_i>`. Along g,
    e is S / K with `S = sum_i a_i^2`; across it, given the a_i, it has d - 1 normal elements of variance S / K^2. So
    `cos^2 = S / (S + Q)` with independent chi-squares, S of K degrees of freedom and Q of d - 1: a Beta variable of
    K / 2 and (d - 1) / 2, whose mean is exactly

        E cos^2 = K / (K + d - 1)              hence   K = (d - 1) cos^2 / (1 - cos^2)

    For fair signs, K = 1 has the same 1 / d exactly, and for any K, `E[<e, g>]^2 / (|g|^2 E|e|^2) = K / (K + d - 1)`.
    Squares of negative cosines count as negative, so a direction that knows nothing of g has 0 and not 1; the result
    is at least 0, infinite for a cosine of 1, and NaN for a single element, which has no other direction.

    >>> effective_probes(1 / 100, 100)
    1.0
    """
    if elements < 2 or math.isnan(squared_cosine):
        return math.nan
    # a cosine that is 1 up to rounding is exact
    return math.inf if squared_cosine > 1 - 1e-6 else max(0.0, (elements - 1) * squared_cosine / (1 - squared_cosine))


@dataclass
class _Sums:
    """What is kept of one tensor, or of all: the mean of the estimates, and numbers."""

    elements: int
    squared: float  # |g|^2
    mean: list[Tensor]
    cosines: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    scatter: float = 0.0  # sum of (e - mean e)^2 over elements and estimates


@dataclass(frozen=True)
class _Look:
    """One estimate beside the gradient: sums that add up over tensors."""

    product: float  # <e, g>
    squared: float  # |e|^2
    equal: int  # signs
    both: int  # elements that are zero in neither
    scatter: float

    def __add__(self, other: "_Look") -> "_Look":
        return _Look(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


class Comparison:
    """Takes estimates one after another, and says how well they agree with the true gradient.

    Sums are in float64; of the estimates only their mean is kept, so there may be any number of them.

    Args:
        true: name -> gradient. Estimates are compared on the names that the first of them shares with it.

    Raises:
        InputError: if a gradient has the name `WHOLE`.

    >>> compared = Comparison({"weight": torch.tensor([3.0, 4.0])})
    >>> compared.add({"weight": torch.tensor([4.0, 3.0])})
    >>> compared.result()["weight"].cosine
    0.96
    """

    def __init__(self, true: Mapping[str, Tensor]) -> None:
        if WHOLE in true:
            raise InputError(f"no gradient can be called {WHOLE!r}, which means all of them; name it otherwise")
        self._true = {name: gradient.detach().double() for name, gradient in true.items()}
        dtypes = [gradient.dtype for gradient in true.values() if gradient.is_floating_point()]
        self._unit = max((torch.finfo(dtype).eps for dtype in dtypes), default=torch.finfo(torch.float32).eps)
        self._sums: dict[str, _Sums] = {}
        self.estimates = 0

    def add(self, estimate: Mapping[str, Tensor]) -> None:
        """Compare one estimate, by name; names that the true gradient lacks are left out.

        Raises:
            InputError: if the names are others than those of the first estimate.
        """
        names = [name for name in self._true if name in estimate]
        if not self.estimates:
            self._begin(names)
        others = sorted({*names} ^ {*self._sums} - {WHOLE})
        if others:
            raise InputError(
                f"all estimates must have the tensors of the first one; estimate {self.estimates + 1} has not, or the "
                f"first one had not: {', '.join(others)}"
            )
        self.estimates += 1
        looks = {name: self._look(name, estimate[name]) for name in names}
        if looks:
            looks[WHOLE] = sum(list(looks.values())[1:], next(iter(looks.values())))
        for name, look in looks.items():
            self._note(self._sums[name], look)

    def result(self) -> dict[str, Alignment]:
        """Return name -> alignment, in the order of the true gradient, and under `WHOLE` that of all of them."""
        return {name: self._alignment(sums) for name, sums in self._sums.items()}

    def _begin(self, names: list[str]) -> None:
        squares = {name: float(self._true[name].square().sum()) for name in names}
        least = (_ROUNDING * self._unit) ** 2 * sum(squares.values())
        for name in names:
            true = self._true[name]
            squared = squares[name] if squares[name] > least else 0.0
            self._sums[name] = _Sums(true.numel(), squared, [torch.zeros_like(true)])
        if names:
            means = [sums.mean[0] for sums in self._sums.values()]
            count = sum(sums.elements for sums in self._sums.values())
            self._sums[WHOLE] = _Sums(count, sum(squares.values()), means)

    def _look(self, name: str, given: Tensor) -> _Look:
        true, mean = self._true[name], self._sums[name].mean[0]
        estimate = given.detach().to(device=true.device, dtype=torch.float64)
        before = estimate - mean
        mean += before / self.estimates
        signs = estimate.sign() * true.sign()
        numbers = [(estimate * true).sum(), estimate.square().sum(), (before * (estimate - mean)).sum()]
        product, squared, scatter = torch.stack(numbers).tolist()
        return _Look(product, squared, int((signs > 0).sum()), int(signs.count_nonzero()), scatter)

    def _note(self, sums: _Sums, look: _Look) -> None:
        sums.scatter += look.scatter
        if not sums.squared:
            return
        sums.ratios.append(math.sqrt(look.squared / sums.squared))
        cosine = look.product / math.sqrt(look.squared * sums.squared) if look.squared else 0.0
        sums.cosines.append(min(1.0, max(-1.0, cosine)))
        if look.both:
            sums.agreement.append(look.equal / look.both)

    def _alignment(self, sums: _Sums) -> Alignment:
        cosine = _mean(sums.cosines)
        squared = _mean([value * abs(value) for value in sums.cosines])
        spread = stdev(sums.cosines) if len(sums.cosines) > 1 else cosine * 0
        return Alignment(
            sums.elements,
            cosine,
            spread,
            _mean(sums.agreement),
            _mean(sums.ratios),
            self._signal_to_noise(sums) if sums.squared else math.nan,
            effective_probes(squared, sums.elements),
        )

    def _signal_to_noise(self, sums: _Sums) -> float:
        if self.estimates < 2:
            return math.nan
        variance = sums.scatter / (self.estimates - 1)
        squared = sum(float(mean.square().sum()) for mean in sums.mean)
        signal = max(0.0, squared - variance / self.estimates)
        return signal / variance if variance else (math.inf if signal else math.nan)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
