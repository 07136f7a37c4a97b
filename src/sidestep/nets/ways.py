"""The ways to compute the losses and gradients of T independent blocks, and which of them is fastest where."""

import torch

__all__ = ["WAYS", "choose_way"]

WAYS: tuple[str, ...] = ("per block", "together", "graph", "compiled")
"""A block per core, or one after another on a GPU; all in one pass; that pass recorded as a CUDA graph, or compiled."""

_FEW_PIXELS = 16 * 16


def choose_way(image_shape: tuple[int, int, int], device: torch.device) -> str:
    """Return the fastest way on this machine (docs/decisions/006-blocks-together.md).

    On a GPU, `together`: a tenth of the kernels to start. On a CPU, `together` for images up to 16 x 16 in float32,
    where threads wait for the interpreter's lock and not for arithmetic; `per block` for larger ones, whose grouped
    convolutions are slower than one convolution per core, and in bfloat16.
    """
    if device.type != "cpu":
        return "together"
    small = image_shape[1] * image_shape[2] <= _FEW_PIXELS
    return "together" if small and not torch.is_autocast_enabled("cpu") else "per block"
