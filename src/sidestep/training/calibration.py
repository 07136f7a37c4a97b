"""From scores to probabilities: one temperature for each reading, fitted on validation images.

A net's probabilities p say which class it holds most likely, and need not say how likely. One number T for each reading
mends most of that without changing any answer:

    q = softmax(log p / T)        T > 1: less sure than p, T < 1: surer

Two temperatures are fitted to the labels of n validation images, and the one with the smaller expected calibration
error (below) on those images is taken:

- the likeliest: `1/T` minimises the negative log-likelihood `sum_i -log q_i(y_i)`, which is convex in 1/T, plus
  `1/T + log T`, as little as one more image would add: where every answer is right, as it may be if images are few, the
  minimum would else lie at 1/T = infinity. (Guo et al. 2017, "On calibration of modern neural networks", section 4.2;
  the added term is a Gamma(2, 1) prior of 1/T, whose mode is T = 1.)
- the expected: the mean of the largest probability is the accuracy, `(right + 1) / (n + 2)` with Laplace's correction,
  so that it is never 1. The mean falls as T rises. (Clarte et al. 2023, "Expectation consistency for calibration of
  neural networks".)

How good probabilities are, two numbers say:

- the negative log-likelihood, `NLL = mean_i -log q_i(y_i)`, in nats: 0 is best;
- the expected calibration error over 15 bins of equal width of the largest probability,
  `ECE = sum_b n_b / n |accuracy_b - mean confidence_b|` (Guo et al. 2017, eq. 3): the mean gap between how sure a net
  is and how often it is right, in [0, 1].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sidestep.data import Split
from sidestep.data.objective import OBJECTIVES
from sidestep.errors import CheckpointError
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule

__all__ = [
    "CONFIDENCE_SUMS",
    "FEWEST",
    "FIT_SUMS",
    "HIGHEST",
    "Calibration",
    "Quality",
    "calibrated",
    "calibration_images",
    "confidence_sums",
    "fit_sums",
    "fit_temperature",
    "settings_of",
]

FEWEST, _MOST = 50, 3_000  # validation images: with fewer nothing is fitted; more are not needed
HIGHEST = 50.0  # T lies between 1 / 50 and 50
_POINTS = 129  # values of 1/T at which sums are made, 6% apart
_BINS = 15
_ACCURACIES = {own.score_name for own in OBJECTIVES.values() if own.score_name.endswith("accuracy")}
FIT_SUMS = (2 + _BINS) * _POINTS + 2  # numbers of `fit_sums`
CONFIDENCE_SUMS = 2 * (1 + 3 * _BINS)  # numbers of `confidence_sums`
_AT_ONCE = 1 << 17  # numbers in one product: a megabyte, beside a net that may be small


@dataclass(frozen=True)
class Calibration:
    """The temperatures of a net's readings, and what they hold for."""

    temperatures: Mapping[str, float]  # by reading
    settings: Mapping[str, Any]  # values of what predictions depend on, at which they were fitted
    images: int  # validation images on which they were fitted

    @classmethod
    def fitted(cls, rule: Rule, sums: Mapping[str, Sequence[float]], images: int) -> "Calibration":
        """Return the calibration of a rule's readings from their sums (`fit_sums`), on so many images."""
        return cls({name: fit_temperature(sums[name]) for name in sums}, settings_of(rule), images)

    def temperature(self, rule: Rule, reading: str) -> float | None:
        """Return a reading's T; None if there is none, or if the rule has other settings than T was fitted with."""
        return self.temperatures.get(reading) if dict(self.settings) == settings_of(rule) else None

    def missing(self, rule: Rule, reading: str) -> str | None:
        """Return why a reading has no temperature, in a few words; None if it has one."""
        if dict(self.settings) != settings_of(rule):
            fitted = ", ".join(f"{name}={value}" for name, value in self.settings.items())
            return f"temperatures were fitted with {fitted}"
        return None if reading in self.temperatures else "this reading was not calibrated in training"

    def record(self) -> dict[str, Any]:
        """Return what `of` makes the calibration of again, as plain JSON."""
        return {
            "temperatures": dict(self.temperatures), "settings": dict(self.settings), "images": self.images,
        }  # fmt: skip

    @classmethod
    def of(cls, record: Any) -> "Calibration":
        """Return the calibration of a record; CheckpointError if it is none."""
        try:
            temperatures = {str(name): float(value) for name, value in record["temperatures"].items()}
            found = cls(temperatures, dict(record["settings"]), int(record["images"]))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"the record of temperatures lacks or misnames an entry: {error}") from error
        if not all(1 / HIGHEST <= value <= HIGHEST for value in temperatures.values()):
            raise CheckpointError(f"temperatures lie between {1 / HIGHEST} and {HIGHEST}, got {temperatures}")
        return found


def settings_of(rule: Rule) -> dict[str, Any]:
    """Return the values of those hyper-parameters that only predictions depend on."""
    return {name: getattr(rule, name) for name in rule.for_inference}


def calibration_images(validation: Split, noise: Noise) -> Split:
    """Return up to 3,000 validation images in random order, a function of the seed; none of fewer than 50."""
    count = min(len(validation), _MOST) if len(validation) >= FEWEST else 0
    rows = noise.stream("calibration").permutation(len(validation))[:count] if count else torch.zeros(0).long()
    rows = rows.to(validation.labels.device)
    return validation.part(rows)


def _logarithms(probabilities: Tensor) -> Tensor:
    """Return log p in float64 on the CPU; what float32 has rounded to zero counts as its smallest normal number."""
    return probabilities.detach().cpu().double().clamp_min(torch.finfo(torch.float32).tiny).log()


def calibrated(probabilities: Tensor, temperature: float) -> Tensor:
    """Return `q = softmax(log p / T)`, (n, classes), float32 on the CPU; its largest entry is alone, and at p's argmax.

    Args:
        probabilities: p, (n, classes).
        temperature: T.

    >>> calibrated(torch.tensor([[0.2, 0.8]]), 0.5)
    tensor([[0.0588, 0.9412]])
    """
    found = (_logarithms(probabilities) / temperature).softmax(dim=1).float()
    best = probabilities.detach().cpu().argmax(dim=1, keepdim=True)  # (n, 1)
    others = found.scatter(1, best, -1.0).amax(dim=1, keepdim=True)
    above = torch.nextafter(others, torch.full_like(others, torch.inf))  # rounding may have made the two equal
    return found.scatter(1, best, torch.maximum(found.gather(1, best), above))


@cache
def _grid() -> Tensor:
    """The values of 1/T at which sums are made, (points,), evenly spaced in log T."""
    return torch.linspace(-math.log(HIGHEST), math.log(HIGHEST), _POINTS, dtype=torch.float64).exp()


def fit_sums(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return all that `fit_temperature` needs, to be added over batches, float64.

    On a grid of b = 1/T: first and second derivatives of `sum_i -log q_i(y_i)` by b, which with `l = log p` are
    `sum_i (E_q[l] - l(y_i))` and `sum_i Var_q[l]`, (points,) each; by bin, right answers less the sum of confidences,
    (points, bins). Then the number of images, and of right answers.

    Args:
        probabilities: p, (n, classes).
        labels: y, (n,).
    """
    logs, labels = _logarithms(probabilities), labels.cpu()
    own = logs.gather(1, labels[:, None]).sum()
    right = (probabilities.detach().cpu().argmax(dim=1) == labels).double()
    slopes, curvatures, gaps = [], [], []
    for values in _grid().split(max(1, _AT_ONCE // max(1, logs.numel()))):
        weights = (values[:, None, None] * logs).softmax(dim=2)  # (points, n, classes)
        means = (weights * logs).sum(dim=2, keepdim=True)
        slopes.append(means.sum(dim=(1, 2)) - own)
        curvatures.append((weights * (logs - means).square()).sum(dim=(1, 2)))
        confidence = weights.amax(dim=2)  # (points, n)
        empty = torch.zeros(len(values), _BINS, dtype=torch.float64)
        gaps.append(empty.scatter_add(1, _bins(confidence), right - confidence).flatten())
    return torch.cat([*slopes, *curvatures, *gaps, torch.stack([right.new_tensor(len(right)), right.sum()])])


def _bins(confidence: Tensor) -> Tensor:
    """Return the number of each confidence's bin: (0, 1/15], (1/15, 2/15], ..."""
    return (confidence * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1)


def fit_temperature(sums: Sequence[float]) -> float:
    """Return T from what `fit_sums` gave, added over batches: four digits, between 1/50 and 50."""
    parts = torch.tensor(sums, dtype=torch.float64).split([_POINTS, _POINTS, _POINTS * _BINS, 1, 1])
    gaps = parts[2].view(_POINTS, _BINS)
    found = [_likeliest(parts[0], parts[1]), _expected(gaps, float(parts[3]), float(parts[4]))]
    return float(f"{math.exp(-min(found, key=lambda place: _error(gaps, place))):.4g}")  # if even, the likeliest


def _likeliest(slopes: Tensor, curvatures: Tensor) -> float:
    """Return log b of highest likelihood and prior.

    The slope rises with b. Its zero is found by cubic interpolation of log b by the slope between two points of the
    grid, of which the slopes' own derivatives are known.
    """
    grid = _grid()
    slopes, curvatures = slopes + 1 - 1 / grid, curvatures + grid.square().reciprocal()
    right = int((slopes < 0).sum())  # the first point whose slope is not negative
    if right in (0, _POINTS):
        return math.log(HIGHEST) * (1 if right else -1)
    (before, after), (first, last) = slopes[right - 1 : right + 1].tolist(), grid[right - 1 : right + 1].log().tolist()
    rates = (1 / (grid * curvatures)[right - 1 : right + 1]).tolist()  # d log b / d slope
    width = after - before
    s = -before / width
    found = (
        first * (1 + 2 * s) * (1 - s) ** 2 + last * s**2 * (3 - 2 * s)
        + width * (rates[0] * s * (1 - s) ** 2 - rates[1] * s**2 * (1 - s))
    )  # fmt: skip
    return min(max(found, first), last)


def _expected(gaps: Tensor, images: float, right: float) -> float:
    """Return log b at which the mean confidence is the accuracy, linear between two points of the grid."""
    missing = gaps.sum(dim=1) + images * (right + 1) / (images + 2) - right  # falls with b
    place = int((missing > 0).sum())  # the first point that is sure enough
    if place in (0, _POINTS):
        return math.log(HIGHEST) * (1 if place else -1)
    (before, after), (first, last) = missing[place - 1 : place + 1].tolist(), _grid()[place - 1 : place + 1].log()
    return float(first + (last - first) * before / (before - after))


def _error(gaps: Tensor, place: float) -> float:
    """Return the calibration error times images at log b, each bin's gap linear between two points of the grid."""
    share = (place / math.log(HIGHEST) + 1) / 2 * (_POINTS - 1)
    before = min(max(int(share), 0), _POINTS - 2)
    return float(torch.lerp(gaps[before], gaps[before + 1], share - before).abs().sum())


def confidence_sums(probabilities: Tensor, labels: Tensor, temperature: float | None) -> Tensor:
    """Return what `Quality.of` needs, of p and then of q, to be added over batches, float64.

    Args:
        probabilities: p, (n, classes).
        labels: y, (n,).
        temperature: T; without one, q is p.
    """
    plain, labels = probabilities.detach().float().cpu(), labels.cpu()
    tempered = plain if temperature is None else calibrated(plain, temperature)
    return torch.cat([_sums(plain, labels), _sums(tempered, labels)])


def _sums(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of -log p(y), and by bin: images, right answers, the sum of confidences; (1 + 3 bins,)."""
    confidence, answers = probabilities.double().max(dim=1)
    bins = _bins(confidence)
    parts = torch.ones_like(confidence), (answers == labels).double(), confidence
    binned = [torch.zeros(_BINS, dtype=torch.float64).index_add(0, bins, part) for part in parts]
    return torch.cat([-_logarithms(probabilities).gather(1, labels[:, None]).sum().view(1), *binned])


@dataclass(frozen=True)
class Quality:
    """How good a reading's answers are on some images; with a temperature the numbers are those of q, else of p."""

    accuracy: float  # or the objective's score, where the targets are no classes
    nll: float | None  # negative log-likelihood, nats; None where the targets are no classes
    ece: float | None  # expected calibration error
    temperature: float | None  # None: what the reading gives is a score
    raw_nll: float | None  # of p
    raw_ece: float | None

    @classmethod
    def of(cls, accuracy: float, sums: Sequence[float], temperature: float | None) -> "Quality":
        """Return the numbers of all images, from what `confidence_sums` gave, added over batches; none: no classes."""
        if not sums:
            return cls(accuracy, None, None, None, None, None)
        plain, tempered = torch.tensor(sums, dtype=torch.float64).view(2, -1)
        return cls(accuracy, *_nll_and_ece(tempered), temperature, *_nll_and_ece(plain))

    def record(self, score_name: str) -> dict[str, float | None]:
        """Return the numbers by name: the first as `accuracy` where it is that of classes, labels or tokens.

        Any other score has the name that its objective gives it.

        >>> nothing = Quality(0.5, None, None, None, None, None)
        >>> [next(iter(nothing.record(score))) for score in ("token accuracy", "R2", "balanced accuracy")]
        ['accuracy', 'R2', 'balanced accuracy']
        """
        (_, first), *others = asdict(self).items()
        plain = "accuracy" if score_name in _ACCURACIES else score_name
        return {"score" if plain in dict(others) else plain: first, **dict(others)}

    @classmethod
    def from_record(cls, record: Mapping[str, float | None]) -> "Quality":
        """Return what `record` was made of."""
        names = [each.name for each in fields(cls)[1:]]
        (first,) = (value for name, value in record.items() if name not in names)
        return cls(first, *(record[name] for name in names))  # type: ignore[arg-type]


def _nll_and_ece(sums: Tensor) -> tuple[float, float]:
    images, right, confidence = sums[1:].view(3, _BINS)
    count = max(1.0, float(images.sum()))
    return float(sums[0]) / count, float((right - confidence).abs().sum()) / count
