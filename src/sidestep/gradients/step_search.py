"""A step size from the losses along an estimate: a part of the way to the lowest point of a parabola.

    slope = (L(w + t g) - L(w - t g)) / 2t      curvature = (L(w + t g) + L(w - t g) - 2 L(w)) / t^2
    most  = 1/2 slope / curvature, a quarter of it for as long as L(w - most g) > L(w)

All losses are of one batch. Half, since an estimate from few directions is mostly noise that the next batch does not
share, and so is a part of the batch's own slope: the whole way is too far. How large that part is, the examples say:

    agreed = 1 - sum_i var_e(c_ie) / B / sum_i c_i^2          c_ie: the derivative of example e's loss along nu_i

whose numerator estimates, without bias, what other batches of as many examples share. Where a model is nearly right,
it is a few hundredths, and half of the way would walk away from all that was learnt. So the step is

    rate = min(most, 3/4 mean_k(agreed_k slope_k) / mean_k(curvature_k))          k: the steps so far

by running means over about ten steps. Without a loss for each example, agreed is taken for a quarter.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sidestep.gradients.any_module import ShiftedPasses
from sidestep.gradients.directions import Directions, WeightedDirection

__all__ = ["Along", "agreed_share", "damped_rate", "rate_along", "searched_rate"]

_SHARE = 0.5  # of the way to the lowest point that the batch itself has
_SHARED = 0.75  # of the way to that of the slope which batches share
_AGREED = 0.25  # of a slope, where there is no loss for each example
_LEAST_AGREED = 0.02
_KEPT = 0.9  # of a running mean
_TRIES = 8
_TRIAL = 3  # sizes of the noise, which a weight moves by in a trial, as a root mean square


class Along(NamedTuple):
    """What the losses of a batch say along an estimate: the largest step size, and slope and curvature of the loss."""

    most: float
    slope: float
    curvature: float


def searched_rate(loss_at: Callable[[float], float], here: float, trial: float) -> Along:
    """Return the largest step size along an estimate, 0 where no step that was tried makes the loss smaller.

    Args:
        loss_at: the loss after a step of a size, `L(w - size g)`; negative sizes go up.
        here: L(w).
        trial: a size small enough for the parabola to be right, t.

    >>> found = searched_rate(lambda size: (3 - 2 * size) ** 2, here=9.0, trial=0.1)  # the lowest point is at 1.5
    >>> [round(value, 6) for value in found]
    [0.75, 12.0, 8.0]
    """
    ahead, behind = loss_at(trial), loss_at(-trial)
    slope, curvature = (behind - ahead) / (2 * trial), (ahead + behind - 2 * here) / trial**2
    if not slope > 0:  # false for NaN, too
        return Along(0.0, slope, curvature)
    rate = _SHARE * slope / curvature if curvature > 0 else trial
    if not math.isfinite(rate):  # the loss is infinite uphill: there is no parabola, but there is a way down
        rate = trial
    for _ in range(_TRIES):
        if loss_at(rate) <= here:
            return Along(rate, slope, curvature)
        rate /= 4
    return Along(0.0, slope, curvature)


def rate_along(  # long: what an estimate is made of
    run: ShiftedPasses, directions: Directions, coefs: Tensor, here: Tensor, eps: float, first: int = 0
) -> Along:
    """Return what `searched_rate` finds along `sum_i c_i nu_i`; slope and curvature as if `sum_i c_i^2` were 1.

    Both are 0 where nothing is known of them: along no direction at all, or where a loss on the way is not finite.

    Args:
        run: one pass, at shifted weights.
        directions: nu.
        coefs: c, (directions,).
        here: the loss without a shift, ().
        eps: size of the noise that the coefficients were found with.
        first: number of the first of these directions.
    """
    length = math.sqrt(float(coefs.double().square().sum()))  # of the estimate, by its number of weights' root
    if not 0 < length < math.inf:
        return Along(0.0, 0.0, 0.0)
    along = WeightedDirection(directions, coefs, run.keep, first)
    most, slope, curvature = searched_rate(lambda size: float(run(along, -size)), float(here), _TRIAL * eps / length)
    known = math.isfinite(slope) and math.isfinite(curvature)
    return Along(most, slope / length if known else 0.0, curvature / length**2 if known else 0.0)


def agreed_share(derivatives: Sequence[Tensor | None]) -> float:
    """Return how much of the slope along an estimate other batches share, in (0, 1]; a quarter where it is unknown.

    Args:
        derivatives: c_ie of every example along each direction i, (examples,) each; None without a loss for each.

    >>> agreed_share([torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 2.0, 4.0])])  # 1 - (0 + 4/3) / (1 + 4)
    0.7333333333333334
    """
    found = [each for each in derivatives if each is not None and len(each) > 1]
    if not found or len(found) < len(derivatives):
        return _AGREED
    each = torch.stack(found).double()  # (directions, examples)
    whole, noise = float(each.mean(dim=1).square().sum()), float((each.var(dim=1) / each.shape[1]).sum())
    agreed = 1 - noise / whole if whole > 0 else 0.0
    return max(agreed, _LEAST_AGREED) if math.isfinite(agreed) else _AGREED


def damped_rate(means: list[float], most: float, slope: float, curvature: float, length: float) -> float:
    """Return the step size along an estimate, and bring the running means up to date with its batch.

    Args:
        means: of slope and curvature along the estimates, and how many steps they are of; [] before the first one.
        most: the largest step size.
        slope: the part of the slope that other batches share, along an estimate of length 1.
        curvature: along the same.
        length: of the estimate.
    """
    if (slope or curvature) and math.isfinite(slope) and math.isfinite(curvature):
        before = means or [0.0, 0.0, 0.0]
        kept = min(_KEPT, before[2] / (before[2] + 1))
        new = (slope * length, max(curvature, 0.0) * length**2)
        means[:] = [kept * a + (1 - kept) * b for a, b in zip(before, new, strict=False)] + [before[2] + 1]
    if not means or not means[1] > 0:
        return most
    return min(most, max(_SHARED * means[0] / means[1], 0.0))
