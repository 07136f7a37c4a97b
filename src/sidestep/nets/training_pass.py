"""A forward pass as in training that leaves the net as it was: what most estimates are made in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from sidestep.nets.dropout import masks_from
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.trained import set_training
from sidestep.noise import Noise

__all__ = ["training_pass"]


@contextmanager
def training_pass(
    net: nn.Module, device: torch.device, noise: Noise, masks: torch.Generator | None = None
) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """Put the net into training mode, and its buffers back at the end; yield a function that tells what they became.

    It returns name -> new value of each buffer that changed (`kept_statistics`), and is called after the forward pass.
    Derivatives are taken inside: batch norm's way back needs its buffers untouched.

    Args:
        net: the net.
        device: where it computes.
        noise: of this step; modules that draw from torch's own generator draw what follows from it.
        masks: what dropout draws from, in nets that are built here.
    """
    set_training(net)
    drawn = nullcontext() if masks is None else masks_from(masks)
    with kept_statistics(net) as changed, drawn, noise.stream("module").torch_seeded(device):
        yield changed
