"""Noise schedules in continuous time: `SNR(t) = exp(-gamma(t))` and `alpha_bar(t) = sigmoid(-gamma(t))`, t in [0, 1].

t runs with the network, from noise at 0 to the label at 1, so gamma falls and alpha_bar rises.
"""

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sidestep.errors import InputError
from sidestep.nets.noprop.schedules import Levels, check_alpha_bar

__all__ = [
    "GAMMA_RANGE",
    "SCHEDULES",
    "CosineSchedule",
    "LearnedSchedule",
    "LinearSchedule",
    "Schedule",
    "make_schedule",
]


GAMMA_RANGE = (math.log(1e-6 / (1 - 1e-6)), math.log(1e9 - 1))  # -13.8 to 20.7: alpha_bar from 1e-9 to 1 - 1e-6
_SLACK = 1e-3  # of gamma beyond its bounds: rounding
_FLATTEST = 1e-3  # the least that a learned alpha_bar may rise from t = 0 to t = 1
_NARROWEST = 1e-3  # the least span that a bounded schedule is left


class Schedule(Protocol):
    """Negative log signal-to-noise ratio gamma(t), falling, and its slope."""

    def gamma(self, time: Tensor) -> Tensor:
        """Return gamma(t), of the shape of `time`."""
        ...

    def slope(self, time: Tensor) -> Tensor:
        """Return d gamma / dt, negative, of the shape of `time`."""
        ...

    def alpha_bar(self, time: Tensor) -> Tensor:
        """Return sigmoid(-gamma(t))."""
        ...

    def levels(self, time: Tensor) -> Levels:
        """Return alpha_bar(t) and 1 - alpha_bar(t) = sigmoid(gamma(t))."""
        ...

    def snr_slope(self, time: Tensor) -> Tensor:
        """Return `SNR'(t) = -gamma'(t) exp(-gamma(t))`, positive."""
        ...


class _Base(nn.Module):
    def gamma(self, time: Tensor) -> Tensor:
        raise NotImplementedError

    def slope(self, time: Tensor) -> Tensor:
        raise NotImplementedError

    def alpha_bar(self, time: Tensor) -> Tensor:
        """Return sigmoid(-gamma(t))."""
        return torch.sigmoid(-self.gamma(time))

    def levels(self, time: Tensor) -> Levels:
        """Return alpha_bar(t) and 1 - alpha_bar(t), neither as a difference."""
        return Levels.at(self.gamma(time))

    def snr_slope(self, time: Tensor) -> Tensor:
        """Return `SNR'(t) = -gamma'(t) exp(-gamma(t))`."""
        return -self.slope(time) * torch.exp(-self.gamma(time))


class LinearSchedule(_Base):
    """`gamma(t) = g1 + (g0 - g1) t`: the logarithm of the signal-to-noise ratio rises evenly.

    >>> schedule = LinearSchedule(0.01, 0.99)
    >>> [round(value, 2) for value in schedule.alpha_bar(torch.tensor([0.0, 0.5, 1.0])).tolist()]
    [0.01, 0.5, 0.99]
    """

    def __init__(self, low: float = 0.0067, high: float = 0.9933) -> None:
        super().__init__()
        self.start, self.end = _gamma_of(low), _gamma_of(high)

    def gamma(self, time: Tensor) -> Tensor:
        """Return gamma(t)."""
        return self.start + (self.end - self.start) * time

    def slope(self, time: Tensor) -> Tensor:
        """Return the constant slope."""
        return torch.full_like(time, self.end - self.start)


class CosineSchedule(_Base):
    """`alpha_bar(t) = low + (high - low) sin^2(pi t / 2)`: the cosine schedule with its ends moved inside (0, 1)."""

    def __init__(self, low: float = 1e-3, high: float = 0.999) -> None:
        super().__init__()
        check_alpha_bar(torch.tensor([low, high], dtype=torch.float64))
        self.low, self.high = low, high

    def _parts(self, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return alpha_bar, 1 - alpha_bar, and d alpha_bar / dt; `cos(pi t / 2) = sin(pi (1 - t) / 2)`, near 1 too."""
        sine, cosine = torch.sin(math.pi / 2 * time), torch.sin(math.pi / 2 * (1 - time))
        span = self.high - self.low
        return self.low + span * sine**2, (1 - self.high) + span * cosine**2, math.pi * span * sine * cosine

    def gamma(self, time: Tensor) -> Tensor:
        """Return gamma(t)."""
        level, rest, _ = self._parts(time)
        return rest.log() - level.log()

    def slope(self, time: Tensor) -> Tensor:
        """Return d gamma / dt; it is 0 at both ends."""
        level, rest, rise = self._parts(time)
        return -rise / (level * rest)


class LearnedSchedule(_Base):
    """The paper's learned schedule, monotone by construction (Li et al. 2025, appendix B).

    `gamma(t) = g0 + (g1 - g0) (1 - gbar(t))`, `gbar(t) = (gt(t) - gt(0)) / (gt(1) - gt(0))`, and
    `gt(t) = sum_k v_k sigmoid(w_k t + b_k)` with v_k, w_k > 0 through softplus. g0 = gamma(1) and g1 = gamma(0) are
    trained too; g1 - g0 is kept positive through its logarithm. It starts near a straight line. `bound` keeps both ends
    within GAMMA_RANGE, as the variational diffusion model keeps them between -13.3 and 5 (Kingma et al. 2021).

    Args:
        low: alpha_bar(0) at the start of training.
        high: alpha_bar(1) at the start of training.
        hidden: width of the two-layer network.
    """

    def __init__(self, low: float = 0.0067, high: float = 0.9933, hidden: int = 32) -> None:
        super().__init__()
        first, last = _gamma_of(low), _gamma_of(high)
        self.g0 = nn.Parameter(torch.tensor(last))
        self.log_span = nn.Parameter(torch.tensor(math.log(first - last)))
        steepness = 4.0
        centres = torch.linspace(-0.25, 1.25, hidden)
        self.inner = nn.Parameter(torch.full((hidden,), math.log(math.expm1(steepness))))  # softplus^-1
        self.bias = nn.Parameter(-steepness * centres)
        self.outer = nn.Parameter(torch.full((hidden,), math.log(math.expm1(1.0))))

    @property
    def g1(self) -> Tensor:
        """gamma(0), always above g0 = gamma(1)."""
        return self.g0 + self.log_span.exp()

    def bound(self) -> None:
        """Move the ends back to where they are bounded, in place."""
        low, high = GAMMA_RANGE
        with torch.no_grad():
            self.g0.clamp_(low, high - _NARROWEST)
            self.log_span.clamp_(max=(high - self.g0).log())

    def _raw(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return gt(t) and its derivative."""
        weight, scale = softplus(self.inner), softplus(self.outer)
        hidden = torch.sigmoid(time[..., None] * weight + self.bias)
        return (hidden * scale).sum(dim=-1), (hidden * (1 - hidden) * weight * scale).sum(dim=-1)

    def _ends(self, time: Tensor) -> tuple[Tensor, Tensor]:
        value, _ = self._raw(time.new_tensor([0.0, 1.0]))
        return value[0], value[1] - value[0]

    def gamma(self, time: Tensor) -> Tensor:
        """Return gamma(t)."""
        first, rise = self._ends(time)
        return self.g0 + self.log_span.exp() * (1 - (self._raw(time)[0] - first) / rise)

    def slope(self, time: Tensor) -> Tensor:
        """Return d gamma / dt."""
        _, rise = self._ends(time)
        return -self.log_span.exp() * self._raw(time)[1] / rise


SCHEDULES: dict[str, type[LinearSchedule] | type[CosineSchedule] | type[LearnedSchedule]] = {
    "learned": LearnedSchedule,
    "linear": LinearSchedule,
    "cosine": CosineSchedule,
}


def make_schedule(name: str, low: float, high: float) -> LinearSchedule | CosineSchedule | LearnedSchedule:
    """Return the schedule of that name from alpha_bar(0) = `low` to alpha_bar(1) = `high`.

    Raises:
        InputError: for another name, or unless 0 < low < high < 1.
    """
    if name not in SCHEDULES:
        raise InputError(f"schedule must be {', '.join(SCHEDULES)}, got {name!r}")
    if not 0 < low < high < 1:
        raise InputError(
            f"a schedule rises from one alpha_bar to a larger one, both strictly between 0 and 1, got {low} to {high}; "
            "for instance 0.0067 to 0.9933 (smallest_alpha_bar, largest_alpha_bar)"
        )
    return SCHEDULES[name](low, high)


def _gamma_of(alpha_bar: float) -> float:
    return math.log((1 - alpha_bar) / alpha_bar)


def schedule_failure(schedule: Schedule) -> str | None:
    """Return what is wrong with a schedule that is not finite, out of bounds or, if it is learned, flat; or None."""
    with torch.no_grad():
        ends = torch.tensor([0.0, 1.0], device=next((p.device for p in cast("nn.Module", schedule).parameters()), None))
        first, last = schedule.gamma(ends).tolist()
        before, after = schedule.alpha_bar(ends).tolist()
    remedy, (low, high) = "take a smaller --learning-rate, or --schedule linear", GAMMA_RANGE
    if not (math.isfinite(first) and math.isfinite(last)):
        return f"the noise schedule is not finite any more: gamma(0) = {first:g}, gamma(1) = {last:g}; {remedy}"
    if last < low - _SLACK or first > high + _SLACK:
        return (
            f"the noise schedule is saturated: gamma(0) = {first:.3g} and gamma(1) = {last:.3g} must lie between "
            f"{low:.1f} and {high:.1f}, beyond which nothing of the noise or of the label is left; {remedy}"
        )
    if isinstance(schedule, LearnedSchedule) and after - before <= _FLATTEST:
        return (
            f"the learned schedule has become flat: alpha_bar(0) = {before:.3g}, alpha_bar(1) = {after:.3g}, so no "
            f"time shows more of the label than another; {remedy}"
        )
    return None
