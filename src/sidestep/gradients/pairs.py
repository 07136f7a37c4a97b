"""Both sides of a pair of noise through a net of stages: one layer after another, which draws its noise once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from sidestep.gradients.directions import Directions, OneDirection
from sidestep.gradients.shifted import at_shifted
from sidestep.nets.precision import at_least_float32
from sidestep.nets.stages.staged import StagedNet
from sidestep.nets.trained import first_names

__all__ = ["paired_logits", "paired_losses"]

_DRAWLESS = (nn.Conv2d, nn.Flatten, nn.GroupNorm, nn.LayerNorm, nn.Linear, nn.ReLU, nn.Tanh)  # seeding takes time


def paired_logits(
    net: StagedNet, images: Tensor, directions: Directions, index: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the logits at `w + eps nu` and at `w - eps nu`, nu being direction `index` of all weights.

    Shifted weights exist for one operation at a time; the net's own are only read. Modules that draw from torch's
    generator draw the same on both sides, or the difference would measure what they drew.
    """
    sides = [images, images]
    names = first_names(net)  # one direction for a weight, wherever it stands
    for prefix, part in _parts(net):
        direction = OneDirection(directions, index, keep=True)
        for side, step in enumerate((eps, -eps)):
            with _seeded(part, directions, prefix, index, images.device):
                sides[side] = at_shifted(part, direction, step, partial(part, sides[side]), names)
    plus, minus = (at_least_float32(side) for side in sides)
    return plus, minus


def paired_losses(  # long: what is shifted, and what is judged
    net: StagedNet,
    inputs: Callable[[int], Tensor],
    directions: Directions,
    indices: Sequence[int],
    eps: float,
    loss: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """Return the losses at `w + eps nu_i` and at `w - eps nu_i`, (2, directions).

    Args:
        net: the net, whose own weights are only read.
        inputs: from the number of a direction to what the net sees, (batch, ...).
        directions: nu.
        indices: the numbers i of the directions.
        eps: size of the noise.
        loss: from the number of a direction and logits, (batch, classes), to the loss, ().
    """
    pairs = [
        torch.stack([loss(index, side) for side in paired_logits(net, inputs(index), directions, index, eps)])
        for index in indices
    ]
    return torch.stack(pairs, dim=1)


def _seeded(
    part: nn.Module, directions: Directions, prefix: str, index: int, device: torch.device
) -> AbstractContextManager[None]:
    if type(part) in _DRAWLESS:
        return nullcontext()
    return directions.noise.stream("module").stream(prefix).sub(index).torch_seeded(device)


def _parts(net: StagedNet) -> Iterator[tuple[str, nn.Module]]:
    for index, stage in enumerate(net.stages):
        yield from _leaves(f"stages.{index}.", stage)
    yield "", nn.Flatten()
    yield "readout.", net.readout


def _leaves(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential or module._forward_hooks or module._forward_pre_hooks:
        yield prefix, module
        return
    for name, child in module._modules.items():  # unlike named_children(), with modules that stand there twice
        yield from _leaves(f"{prefix}{name}.", child)
