"""A threshold of trits that is known before the step: it follows from how many trits of earlier steps were not 0.

    tau_i = sgn(alpha_i) if |alpha_i| >= theta_t else 0
    log2 theta_(t+1) = log2 theta_t + (n_t - z_t) / (n_t + z_t)       n_t trits of step t are not 0, z_t are
    theta_0 = 2^-12

So about as many are 0 as not, as with the median of the step; but nobody has to see all alphas of a step before the
first of them is a trit, and whoever has the trits of the steps so far has the threshold. It begins low, and doubles
with every step whose trits are all not 0. The logarithm is kept as a whole number, which is the same everywhere.
"""

import math

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.ternary.nets import TernaryNet

__all__ = ["follow", "start_threshold", "threshold_of", "trits_above"]

_OCTAVE = 1 << 16  # what log2 theta is kept in parts of
_START, _LEAST, _MOST = -12, -40, 40
_BUFFER = "trit_threshold"


def start_threshold(net: nn.Module) -> None:
    """Give a net a place for the threshold, at its start."""
    net.register_buffer(_BUFFER, torch.tensor(_START * _OCTAVE))


def threshold_of(net: nn.Module) -> float:
    """Return the threshold of the coming step, theta.

    Between powers of two it is linear in the kept logarithm: exact in float64, so no library's `exp2` decides a trit.
    """
    if not isinstance(net, TernaryNet) or not hasattr(net, _BUFFER):
        raise InputError(
            "trit_threshold = tracked keeps the threshold in a net that noise-step builds, and this one has no place "
            "for it: leave it at median"
        )
    octave, rest = divmod(int(net.get_buffer(_BUFFER)), _OCTAVE)
    return math.ldexp(1 + rest / _OCTAVE, octave)


def trits_above(coefs: Tensor, threshold: float) -> Tensor:
    """Return the trits of coefficients (K,), int8.

    >>> trits_above(torch.tensor([0.3, -0.1, 0.0, -2.0]), 0.25).tolist()
    [1, 0, 0, -1]
    """
    return torch.where(coefs.abs() >= threshold, coefs.sign(), 0).to(torch.int8)


def follow(net: nn.Module, trits: Tensor) -> None:
    """Move the threshold by the trits of a step (K,)."""
    kept, count, some = net.get_buffer(_BUFFER), trits.numel(), int(trits.count_nonzero())
    level = int(kept) + (2 * some - count) * _OCTAVE // count
    kept.fill_(min(max(level, _LEAST * _OCTAVE), _MOST * _OCTAVE))
