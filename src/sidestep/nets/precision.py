"""Where bfloat16 is not good enough."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["at_least_float32", "full_precision", "product_dtype"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return bfloat16 and float16 as float32, and wider tensors as they are."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Return a context without autocast on the device of `like`, for the few small products that need float32.

    A probability above 0.998 rounds to 1 in bfloat16, and what a block still has to learn is rounded away with it: at
    0.999 the gradient of the squared error is off by half.
    """
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def product_dtype(inputs: Tensor) -> torch.dtype:
    """Return the dtype of matrix products: that of autocast, where it is on and the inputs are not float64."""
    if inputs.dtype == torch.float64:
        return torch.float64
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind := inputs.device.type) else torch.float32
