"""The schedule that the learning rates of a block follow, in place of the rates."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from sidestep.schedule import DECAYS, Decay, rate_factor
from sidestep.steplog.format import DamagedLogError, read_varint, varint
from sidestep.steplog.header import Header

__all__ = ["Schedule", "followed"]

_NEAR = 50  # candidates for the number of steps on either side of what a rate says


@dataclass(frozen=True)
class Schedule:
    """Rates `base x rate_factor(decay, step, steps, rising)`."""

    base: float
    decay: Decay
    steps: int
    rising: int

    def rates(self, first: int, count: int) -> tuple[float, ...]:
        """Return the rates of `count` steps from `first` on; raises DamagedLogError for steps behind the last."""
        if first + count > self.steps:
            raise DamagedLogError(f"a schedule of {self.steps} steps has rates up to step {first + count}")
        return tuple(self.base * rate_factor(self.decay, first + i, self.steps, self.rising) for i in range(count))

    def to_bytes(self) -> bytes:
        """Return what `parse` reads."""
        return struct.pack("<Bd", DECAYS.index(self.decay), self.base) + varint(self.steps) + varint(self.rising)

    @classmethod
    def parse(cls, payload: bytes, at: int) -> tuple["Schedule", int]:
        """Return a schedule and the place behind it; raises DamagedLogError, or struct.error where it is cut."""
        place, base = struct.unpack_from("<Bd", payload, at)
        steps, at = read_varint(payload, at + 9)
        rising, at = read_varint(payload, at)
        if place >= len(DECAYS) or not (math.isfinite(base) and base >= 0) or not rising <= steps < 1 << 32:
            raise DamagedLogError(
                f"there is no schedule {place} of {steps} steps, {rising} of them rising, from {base}"
            )
        return cls(base, DECAYS[place], steps, rising), at


def followed(rates: Sequence[float], first: int, header: Header) -> Schedule | None:
    """Return the schedule that gives these rates from step `first` on, to the bit, or None.

    The header of a run says how its rates move, and the last of them how many steps the run has.
    """
    decay, warmup = header.training.get("decay", "none"), header.training.get("warmup", 0.0)
    base = header.rule.get("learning_rate") or 1.0
    if decay not in DECAYS or not isinstance(warmup, float | int) or not isinstance(base, float | int):
        return None
    last, factor, earliest = first + len(rates) - 1, rates[-1] / base, rates[0] / base
    if not (0 < factor <= 1 and 0 < earliest <= 1):
        return None
    done = math.acos(2 * factor - 1) / math.pi if decay == "cosine" else 1 - factor
    guesses = [last / (done * (1 - warmup) + warmup)] if done * (1 - warmup) + warmup > 0 else []
    guesses += [((first + 1) / earliest - 1) / warmup] if warmup else []  # if it rises at first
    for guess in guesses:
        for steps in sorted(range(round(guess) - _NEAR, round(guess) + _NEAR + 1), key=lambda n: abs(n - guess)):
            if last < steps < 1 << 32:
                found = Schedule(float(base), decay, steps, round(warmup * steps))
                if found.rates(last, 1) == (rates[-1],) and found.rates(first, len(rates)) == tuple(rates):
                    return found
    return None
