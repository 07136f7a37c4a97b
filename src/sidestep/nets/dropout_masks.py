"""Masks of dropout from 16 random bits an element."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sidestep.errors import InputError

__all__ = ["dropout_mask", "dropout_scale"]


def dropout_mask(
    shape: Sequence[int], rate: float, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A mask of zeros (with probability rate) and 1 / (1 - rate), of mean one, on the generator's device.

    Each element compares 16 random bits with a threshold, so the rate is a multiple of 2^-16. The scale is
    rounded to `dtype` first and the threshold then follows it: in bfloat16 a rate of .1 becomes .0986 and the
    mean stays one. Raises InputError unless rate is in [0, 1).

    >>> from sidestep.noise import Noise
    >>> dropout_mask((2, 4), 0.5, Noise(0).generator()).unique().tolist()
    [0.0, 2.0]
    """
    keep, scale = _keep_and_scale(rate, dtype)
    n = math.prod(shape)
    bits = torch.empty((n + 3) // 4, dtype=torch.int64, device=generator.device)
    bits.random_(-(2**63), None, generator=generator)  # 64 random bits: 6 to 18 times cheaper than bernoulli_
    kept = bits.view(torch.int16)[:n].ge_(2**15 - keep)  # zeros and ones, still int16
    if dtype.itemsize == 2:  # times the scale's own bits: no conversion, 20 times cheaper
        pattern = torch.tensor(scale, dtype=dtype).view(torch.int16).item()
        return kept.mul_(int(pattern)).view(dtype).view(tuple(shape))
    return kept.to(dtype).mul_(scale).view(tuple(shape))


def dropout_scale(rate: float, dtype: torch.dtype = torch.float32) -> float:
    """The value of those elements of a `dropout_mask` that are kept, as `dtype` rounds it."""
    return _keep_and_scale(rate, dtype)[1]


@lru_cache
def _keep_and_scale(rate: float, dtype: torch.dtype) -> tuple[int, float]:
    """How many of the 65536 values of 16 bits keep an element, and the scale that makes the mean one."""
    keep = 65536 - round(rate * 65536) if 0.0 <= rate < 1.0 else 0
    scale = torch.tensor(65536 / keep, dtype=dtype).item() if keep else math.inf
    if not math.isfinite(scale):
        raise InputError(f"a dropout rate must be in [0, 1) and its scale 1 / (1 - rate) finite, got {rate}")
    return round(65536 / scale), scale
