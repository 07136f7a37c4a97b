"""Noise levels that groups of blocks share out: each denoises its own range of log signal-to-noise ratios.

l = ln(abar / (1 - abar)) = -2 ln sigma          l_0 < l_1 < .. < l_B          group b: [l_(b-1), l_b]
"""

import math

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.nets.noprop.schedules import readable_alpha_bar

__all__ = ["LEVELS", "draw_levels", "level_bounds"]

LEVELS: tuple[str, ...] = ("normal", "readable")
_MEAN, _DEVIATION = -1.2, 1.2  # of ln sigma (Karras et al. 2022, table 1), as in DiffusionBlocks


def level_bounds(kind: str, groups: int, classes: int, low: float, high: float) -> Tensor:
    """Return l_0 .. l_B, between which the groups stand, float64 of shape (groups + 1,), rising.

    `normal`: equal probability mass of `ln sigma ~ N(-1.2, 1.2^2)`, cut off at both ends (DiffusionBlocks, arXiv
    2506.14202, section 3, which has it from Karras et al. 2022). `readable`: equal steps of how readable a noisy
    label is (`readable_alpha_bar`).

    Args:
        kind: normal or readable.
        groups: B.
        classes: m, by which readability goes.
        low: the smallest alpha_bar, of l_0.
        high: the largest alpha_bar, of l_B.

    Raises:
        InputError: for another kind, or ends that do not rise within (0, 1).

    >>> [round(value, 1) for value in level_bounds("normal", 3, 10, 1e-3, 0.999).tolist()]
    [-6.9, 1.3, 3.3, 6.9]
    """
    if kind not in LEVELS:
        raise InputError(f"levels must be one of {', '.join(LEVELS)}, got {kind!r}")
    if kind == "readable":
        return torch.logit(readable_alpha_bar(groups, classes, low, high))
    if not 0 < low < high < 1:
        raise InputError(
            f"alpha_bar goes from smallest to largest, two values in (0, 1) that rise, got [{low:g}, {high:g}]; for "
            "instance [0.001, 0.999]"
        )
    ends = torch.tensor([math.log(low / (1 - low)), math.log(high / (1 - high))], dtype=torch.float64)
    mean, deviation = -2 * _MEAN, 2 * _DEVIATION
    first, last = torch.special.ndtr((ends - mean) / deviation).tolist()
    inner = torch.linspace(first, last, groups + 1, dtype=torch.float64)[1:-1]
    return torch.cat([ends[:1], mean + deviation * torch.special.ndtri(inner), ends[1:]])


def draw_levels(bounds: Tensor, group: int, overlap: float, count: int, generator: torch.Generator) -> Tensor:
    """Return draws of l for a group, (count,), uniform in its range, which `overlap` times its width is added to.

    The ends of all ranges stay what they are: nothing lies beyond them when the chain is walked.
    """
    low, high = float(bounds[group]), float(bounds[group + 1])
    more = overlap * (high - low)
    low, high = max(low - more, float(bounds[0])), min(high + more, float(bounds[-1]))
    device = generator.device
    return torch.empty(count, device=device).uniform_(low, high, generator=generator)
