"""Where forward-mode differentiation runs: attention by its plain kernel, recurrent layers by torch's own code."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sidestep.errors import InputError

__all__ = ["forward_mode"]


@contextmanager
def forward_mode(net: nn.Module) -> Iterator[None]:
    """Let `net` run inside with tangents.

    The fast kernels of attention have no forward-mode derivative, so the plain one is taken; nor have oneDNN's LSTM and
    cuDNN's recurrent layers, so nets with such layers run without the two. A group norm gets what has a tangent as one
    block of memory, since torch's derivative of it refuses channels last.

    Raises InputError for an operation that torch has no such derivative of; it says what to do.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(layer, nn.RNNBase) for layer in net.modules()):
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            # not by its `flags`, which would also set the precision of all products
            stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
            torch.backends.cudnn.enabled = False
        for layer in net.modules():
            if isinstance(layer, nn.GroupNorm):
                stack.callback(layer.register_forward_pre_hook(_in_one_block).remove)
        try:
            yield
        except NotImplementedError as error:
            found = re.search(r"forward AD with (\S+)", str(error))
            if found is None:
                raise
            raise InputError(
                f"the net's operation {found[1]} has no forward-mode derivative in torch {torch.__version__}; write "
                "the layer of others, or train by spsa or evolution (noise_kind = full-rank), which need none"
            ) from error


def _in_one_block(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy a norm's inputs where they have a tangent and lie otherwise: without one, the fast kernel stays."""
    return tuple(each if forward_ad.unpack_dual(each).tangent is None else each.contiguous() for each in given)
