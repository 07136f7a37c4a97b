"""How dense the probes are and how many, step by step: a function of the losses so far, kept in a net's `schedule`.

    constant:        density s, K probes
    two-stage:       s, then s / 4 once a batch's loss was below 2, then s / 16 once it was below 1
    loss-triggered:  after every 20 steps, if their mean loss rose: s / 2 and 2 K, up to a largest K

never below 1 / d. Sources: Brickner, "noise_step" (2024), section 4, where s = 16 / d; its public notebook.
"""

from typing import Literal

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.probes import SparseProbes
from sidestep.rules.shared.trits import ZERO
from sidestep.update import Seeded

__all__ = ["DensitySchedule", "advanced", "after_step", "density_and_count", "first_density"]

DensitySchedule = Literal["two-stage", "loss-triggered", "constant"]
_STAGE, _SUM, _COUNT, _BEFORE = range(4)  # what the numbers of a schedule mean
_WINDOW = 20
_START = 16  # non-zeros per probe at first
_BELOW = (2.0, 1.0)  # losses, in nats, that begin the next stage


def first_density(given: float | None, weights: int) -> float:
    """Return the density to start with, 16 / d if none is given.

    Raises:
        InputError: for a density outside (0, 1], or under 1 / d.
    """
    if given is None:
        return min(1.0, _START / weights)
    if not 1 / weights <= given <= 1:
        raise InputError(
            f"density must be in (0, 1] and at least 1/d, got {given:g}; the smallest useful value for the "
            f"{weights:,} weights of this net is 1/d = {1 / weights:.2g}"
        )
    return given


def density_and_count(
    kind: DensitySchedule, schedule: Tensor, start: float, count: int, most: int, weights: int
) -> tuple[float, int]:
    """Return the density and the number of probes of the coming step."""
    stage = int(schedule[_STAGE])
    if kind == "loss-triggered":
        return max(1 / weights, start / 2**stage), min(max(count, most), count * 2**stage)
    return max(1 / weights, start / 4**stage) if kind == "two-stage" else start, count


def advanced(kind: DensitySchedule, schedule: Tensor, loss: float) -> Tensor:
    """Return the schedule after a step with this mean loss, in nats."""
    after = schedule.detach().cpu().clone()
    if kind == "two-stage":
        after[_STAGE] = max(int(after[_STAGE]), sum(loss < bound for bound in _BELOW))
    elif kind == "loss-triggered":
        after[_SUM] += loss
        after[_COUNT] += 1
        if after[_COUNT] == _WINDOW:
            mean = after[_SUM] / _WINDOW
            if 0 < after[_BEFORE] < mean and after[_STAGE] < 40:
                after[_STAGE] += 1
            after[_BEFORE] = mean
            after[_SUM:_BEFORE] = torch.zeros(2, dtype=after.dtype)
    return after


def after_step(kind: DensitySchedule, before: Tensor, update: Seeded) -> dict[str, Tensor]:
    """Return the schedule as a statistic, or nothing where it stays: what does not change costs a log no bytes.

    The loss is that of the whole step, so this is asked once all parts of it are known.
    """
    if kind == "constant" or not isinstance(update.probes, SparseProbes):
        return {}
    loss = [value for name, value in update.losses.items() if name != ZERO][-1]
    after = advanced(kind, before, float(loss))
    return {} if torch.equal(after, before.cpu()) else {"schedule": after}
