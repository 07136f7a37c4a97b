"""The ways to compute the losses and gradients of T independent blocks, and which of them is fastest where."""

import torch

__all__ = ["EXECUTIONS", "choose_execution"]

EXECUTIONS: tuple[str, ...] = ("per block", "together", "graph", "compiled")
"""A block per core, or one after another on a GPU; all in one pass; that pass recorded as a CUDA graph, or compiled."""


def choose_execution(device: torch.device) -> str:
    """Return the execution where none is asked for (docs/decisions/006-blocks-together.md).

    On a CPU, `per block`: one block's convolution keeps a core busy, and cores need not wait for one another. On a GPU,
    `together`: a quarter of the operations to start, at the price of all blocks' activations at once.
    """
    return "per block" if device.type == "cpu" else "together"
