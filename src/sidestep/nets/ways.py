"""The ways to compute the losses and gradients of T independent blocks, and which of them is fastest where."""

import torch

__all__ = ["WAYS", "choose_way"]

WAYS: tuple[str, ...] = ("per block", "together", "graph", "compiled")
"""A block per core, or one after another on a GPU; all in one pass; that pass recorded as a CUDA graph, or compiled."""

_FEW_PIXELS = 16 * 16


def choose_way(image_shape: tuple[int, int, int], device: torch.device) -> str:
    """Return the fastest way on this machine (docs/decisions/006-blocks-together.md).

    On a GPU, `together`: a quarter of the operations to start. On a CPU, `per block`: a convolution of one block keeps
    a core busy, and cores need not wait for one another. Where torch has one thread there are no cores to share out,
    and small images (up to 16 x 16), in float32, gain a little by going together.
    """
    if device.type != "cpu":
        return "together"
    small = image_shape[1] * image_shape[2] <= _FEW_PIXELS
    alone = torch.get_num_threads() == 1 and not torch.is_autocast_enabled("cpu")
    return "together" if small and alone else "per block"
