"""How a learning rate rises and falls over a run, to the same bits on every machine.

    rising steps:  factor = (step + 1) / (rising + 1)
    after them:    done = (step - rising) / (steps - rising);  factor = 1, 1 - done, or (1 + cos(pi done)) / 2

A step log keeps these few numbers in place of every rate, so none of it may depend on a library's cosine.
"""

from typing import Literal, get_args

__all__ = ["DECAYS", "Decay", "rate_factor"]

Decay = Literal["none", "cosine", "linear"]
DECAYS: tuple[Decay, ...] = get_args(Decay)  # their places stand in the log

_BITS = 128
_PI = 0x3243F6A8885A308D313198A2E03707344A4093822299F31D0082EFA98EC4E6C89 >> (256 - _BITS)  # in units of 2^-_BITS


def rate_factor(decay: Decay, step: int, steps: int, rising: int) -> float:
    """Return what a learning rate is multiplied by at `step` of `steps`, counted from 0: in (0, 1].

    >>> [round(rate_factor("cosine", step, 10, rising=2), 2) for step in range(10)]
    [0.33, 0.67, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """
    if step < rising:
        return (step + 1) / (rising + 1)
    done, whole = step - rising, max(1, steps - rising)
    if decay == "cosine":
        return _half_cosine(done, whole)
    return 1 - done / whole if decay == "linear" else 1.0


def _half_cosine(done: int, whole: int) -> float:
    """`(1 + cos(pi done / whole)) / 2`, by Taylor's series in whole numbers, rounded once."""
    one = 1 << _BITS
    angle = _PI * done // whole
    square, term, total, order = angle * angle >> _BITS, one, one, 0
    while term:
        term = (term * square >> _BITS) // ((order + 1) * (order + 2))
        order += 2
        total += term if order % 4 == 0 else -term
    return (total + one) / (one << 1)
