"""Fair signs times a number, made from the bits of the noise at once, without signs of one byte in between."""

import numpy as np
import torch
from torch import Tensor

from sidestep.noise import Noise

__all__ = ["scaled_signs"]

_OCTETS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") * np.float32(2) - 1
"""The eight signs of each byte, (256, 8)."""


def scaled_signs(noise: Noise, count: int, scale: float, start: int = 0) -> Tensor:
    """Return the bits of `noise.signs(count, start).float() * scale`, (count,), float32 on the processor.

    >>> scaled_signs(Noise(0), 3, 0.5).tolist()
    [0.5, -0.5, 0.5]
    """
    first = start // 32
    words = noise.words((start + count + 31) // 32 - first, first)
    octets = words.numpy().astype("<u4").view(np.uint8)
    rows = np.take(_OCTETS * np.float32(scale), octets, axis=0, mode="clip")
    return torch.from_numpy(rows.reshape(-1))[start - first * 32 :][:count]
