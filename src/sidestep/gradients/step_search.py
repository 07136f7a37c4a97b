"""A step size from the losses along an estimate: half of the way to the lowest point of a parabola.

    slope = (L(w + t g) - L(w - t g)) / 2t      curvature = (L(w + t g) + L(w - t g) - 2 L(w)) / t^2
    rate  = 1/2 slope / curvature, a quarter of it for as long as L(w - rate g) > L(w)

All losses are of one batch. Half, since an estimate from few directions is mostly noise that the next batch does not
share, and so is a part of the batch's own slope: the whole way is too far.
"""

import math
from collections.abc import Callable

from torch import Tensor

from sidestep.gradients.any_module import ShiftedPasses
from sidestep.gradients.directions import Directions, WeightedDirection

__all__ = ["rate_along", "searched_rate"]

_SHARE = 0.5  # of the way to the lowest point
_TRIES = 8
_TRIAL = 3  # sizes of the noise, which a weight moves by in a trial, as a root mean square


def searched_rate(loss_at: Callable[[float], float], here: float, trial: float) -> float:
    """Return the step size along an estimate, 0 where no step that was tried makes the loss smaller.

    Args:
        loss_at: the loss after a step of a size, `L(w - size g)`; negative sizes go up.
        here: L(w).
        trial: a size small enough for the parabola to be right, t.

    >>> round(searched_rate(lambda size: (3 - 2 * size) ** 2, here=9.0, trial=0.1), 6)  # the lowest point is at 1.5
    0.75
    """
    ahead, behind = loss_at(trial), loss_at(-trial)
    slope, curvature = (behind - ahead) / (2 * trial), (ahead + behind - 2 * here) / trial**2
    if not slope > 0:  # false for NaN, too
        return 0.0
    rate = _SHARE * slope / curvature if curvature > 0 else trial
    if not math.isfinite(rate):  # the loss is infinite uphill: there is no parabola, but there is a way down
        rate = trial
    for _ in range(_TRIES):
        if loss_at(rate) <= here:
            return rate
        rate /= 4
    return 0.0


def rate_along(  # long: what an estimate is made of
    run: ShiftedPasses, directions: Directions, coefs: Tensor, here: Tensor, eps: float, first: int = 0
) -> float:
    """Return the step size along `sum_i c_i nu_i`, as `searched_rate` finds it.

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
        return 0.0
    along = WeightedDirection(directions, coefs, run.keep, first)
    return searched_rate(lambda size: float(run(along, -size)), float(here), _TRIAL * eps / length)
