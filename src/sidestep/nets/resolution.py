"""Whether noise is large enough for floating-point weights: `w + eps` may be `w`, as rounded."""

import math

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.quantized import quantized_weights
from sidestep.nets.trained import trained

__all__ = ["check_noise_size", "share_moved"]

_LEAST = 0.5  # of the weights


def share_moved(values: Tensor, eps: float) -> float:
    """Return the share of non-zero values that are others after `eps` is added or subtracted, in their own precision.

    >>> share_moved(torch.tensor([0.1, 1.0, 10.0]), 1e-8)
    0.3333333432674408
    """
    kept = values[values != 0]
    step = torch.ones_like(kept).mul_(eps)
    return float(((kept + step != kept) | (kept - step != kept)).float().mean()) if len(kept) else 1.0


def check_noise_size(net: nn.Module, eps: float, rows: bool) -> None:
    """Raise InputError if noise of size `eps` leaves half of the trained weights, or more, as they are.

    Args:
        net: before its first step.
        eps: size of the noise.
        rows: whether noise is added to a layer's outputs, as rank-1 noise is: `W x +- eps a (b . x)`. What it is small
            beside is then the length of the weight's rows.
    """
    quantized = quantized_weights(net)
    parts = [
        _largest(*quantized[name]) if name in quantized else parameter.detach()
        for name, parameter in trained(net).items()
    ]
    values = [part.flatten(1).norm(dim=1) if rows and part.ndim > 1 else part.flatten() for part in parts]
    sizes = [int(part.count_nonzero()) for part in values]
    moved = sum(share_moved(part, eps) * size for part, size in zip(values, sizes, strict=True))
    if moved >= _LEAST * sum(sizes):
        return
    least = max(float(part.abs().max()) * torch.finfo(part.dtype).eps for part in values if part.numel())
    enough = 10.0 ** math.ceil(math.log10(least))
    kinds = ", ".join(sorted({str(part.dtype).removeprefix("torch.") for part in values}))
    what = "rows of weights" if rows else "weights"
    raise InputError(
        f"eps = {eps:g} is too small: {kinds} does not tell w + eps from w for {1 - moved / sum(sizes):.0%} of the "
        f"{sum(sizes):,} {what}, so nothing could be learned; {enough:.0e} moves all of them, and a difference of "
        "two losses wants a hundred times that, or more"
    )


def _largest(_: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Return the largest weight that each row of a quantised layer can have."""
    return scale.detach() * limit
