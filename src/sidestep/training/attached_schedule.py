"""The learning rate over the steps of a loop of the user's own, by `sidestep.schedule`, so that a log can name it."""

from dataclasses import dataclass
from typing import Any

import torch

from sidestep.errors import InputError
from sidestep.schedule import DECAYS, Decay, rate_factor
from sidestep.training.attached_rule import Attached

__all__ = ["AttachedSchedule", "begun"]


@dataclass(frozen=True)
class AttachedSchedule:
    """How the learning rate of every parameter group rises and falls over the steps of a loop."""

    steps: int
    decay: Decay
    warmup: float

    @classmethod
    def of(cls, steps: int | None, decay: Decay, warmup: float) -> "AttachedSchedule | None":
        """Return the schedule that `attach` was asked for, or None for a rate that the loop sets itself.

        Raises InputError unless there is a number of steps, and the rest is within its limits.
        """
        if decay not in DECAYS:
            raise InputError(f"decay must be one of {', '.join(DECAYS)}, got {decay!r}")
        if not 0 <= warmup <= 1:
            raise InputError(f"warmup is a share of the steps, from 0 to 1, got {warmup}")
        if steps is None:
            if decay == "none" and not warmup:
                return None
            raise InputError("a schedule needs to know its end: give attach(..., steps=...) beside decay and warmup")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"steps must be a whole number from 1, got {steps!r}")
        return cls(steps, decay, float(warmup))

    @property
    def record(self) -> dict[str, Any]:
        """What the header of a log says of it."""
        return {"decay": self.decay, "warmup": self.warmup}

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rates of a step, counted from 0; raises InputError for one beyond the schedule's end."""
        if step >= self.steps:
            raise InputError(
                f"the schedule has {self.steps:,} steps, and all are taken; attach with a larger number of steps"
            )
        factor = rate_factor(self.decay, step, self.steps, round(self.warmup * self.steps))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def begun(attached: Attached, schedule: AttachedSchedule | None) -> Attached:
    """Take the learning rates that an optimiser has for the highest ones of a schedule, if there is one."""
    for group in attached.optimizer.param_groups if schedule else ():
        group["initial_lr"] = group["lr"]
    return attached
