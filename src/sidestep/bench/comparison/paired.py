"""Two answers to the same questions: is one right more often, or is it chance?

McNemar's test looks at the examples of which only one of the two answers is right, b of one and c of the other. If both
are as good, b is a binomial value of b + c tosses of a fair coin. Source: McNemar, "Note on the sampling error of the
difference between correlated proportions or percentages" (1947); the mid-p value: Fagerland, Lydersen, Laake, "The
McNemar test for binary matched-pairs data" (2013).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.noise import Noise

__all__ = ["Paired", "mcnemar", "paired"]

_DRAWS = 2000
_AT_ONCE = 1 << 22  # values that are drawn at a time


@dataclass(frozen=True)
class Paired:
    """What a paired comparison found; shares of the examples, and probabilities."""

    examples: int
    first: float  # share that the first one has right
    second: float
    only_first: int  # examples that the first one alone has right
    only_second: int
    difference: float  # second - first
    low: float  # 95% interval of the difference, by the bootstrap over examples
    high: float
    p_exact: float  # of McNemar's test, two-sided
    p_mid: float  # the same, less conservative: half of the probability of what was seen is left out


def paired(first: Tensor, second: Tensor) -> Paired:
    """Compare which of the same examples two answers have right, both bool, (examples,).

    Raises:
        InputError: for other shapes, or no examples.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise InputError(f"two answers to the same examples are compared, got {first.shape} and {second.shape}")
    examples = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    exact, mid = mcnemar(only_first, only_second)
    low, high = _interval(only_first, only_second, examples)
    return Paired(
        examples, float(first.double().mean()), float(second.double().mean()), only_first, only_second,
        (only_second - only_first) / examples, low, high, exact, mid,
    )  # fmt: skip


def mcnemar(b: int, c: int) -> tuple[float, float]:
    """Return the exact and the mid-p value of McNemar's test, b examples right for one alone, c for the other.

    >>> [round(p, 4) for p in mcnemar(1, 5)]  # 2 (1 + 6) / 64, and less the 6 / 64 of what was seen
    [0.2188, 0.125]
    >>> mcnemar(0, 0)
    (1.0, 1.0)
    """
    tosses, least = b + c, min(b, c)
    if not tosses:
        return 1.0, 1.0
    logs = [_log_binomial(tosses, k) for k in range(least + 1)]
    tail, seen = math.fsum(map(math.exp, logs)), math.exp(logs[-1])
    return min(1.0, 2 * tail), min(1.0, 2 * tail - seen)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)


def _interval(b: int, c: int, examples: int) -> tuple[float, float]:
    """Return the middle 95% of the difference over examples drawn again, with replacement; the same at every call."""
    noise, found = Noise(0).stream("bootstrap"), []
    rows = max(1, _AT_ONCE // examples)
    for start in range(0, _DRAWS, rows):
        count = min(rows, _DRAWS - start)
        drawn = noise.integers(count * examples, examples, start * examples).view(count, examples)
        gained, lost = (drawn < c).sum(1), ((drawn >= c) & (drawn < b + c)).sum(1)  # only which kind is drawn counts
        found.append((gained - lost).double() / examples)
    low, high = torch.quantile(torch.cat(found), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
