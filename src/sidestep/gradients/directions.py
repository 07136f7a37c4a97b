"""Random directions in the space of a net's weights, made from the seed wherever they are needed.

Every parameter has a stream of its own, by name, so that layers of one shape never share noise; every pair or tangent
has a substream.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sidestep.gradients.shifted import at_shifted
from sidestep.nets.precision import at_least_float32
from sidestep.nets.stages.staged import StagedNet
from sidestep.nets.trained import first_names, trained
from sidestep.noise import Noise, signs_of
from sidestep.probes import Distribution

__all__ = ["Directions", "OneDirection", "paired_logits", "weighted_directions"]

_DRAWLESS = (nn.Conv2d, nn.Flatten, nn.GroupNorm, nn.LayerNorm, nn.Linear, nn.ReLU, nn.Tanh)  # seeding takes time


@dataclass(frozen=True)
class Directions:
    """Fair signs or standard normal values: mean 0, variance 1, independent.

    >>> directions = Directions(Noise(0))
    >>> directions.draw("weight", (2, 3), 0, torch.zeros(1)).abs().tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    noise: Noise  # stands at the step
    distribution: Distribution = "rademacher"

    def draw(self, name: str, shape: Sequence[int], index: int, like: Tensor) -> Tensor:
        """Return direction `index` of what is called `name`, in the dtype and on the device of `like`."""
        noise, count = self.noise.stream(name).sub(index), math.prod(shape)
        if self.distribution == "rademacher":
            return noise.signs(count, device=like.device).to(like.dtype).view(tuple(shape))
        return noise.normal(count, device=like.device).to(like.dtype).view(tuple(shape))


class OneDirection:
    """One direction of all weights: nu, the part of each by its name.

    keep: whether a part that was drawn stays in memory. Signs do in any case, eight to a byte.
    """

    def __init__(self, directions: Directions, index: int, keep: bool) -> None:
        self._directions, self._index, self._keep = directions, index, keep
        self._parts: dict[str, Tensor] = {}
        self._packed: dict[str, Tensor] = {}

    def of(self, name: str, like: Tensor) -> Tensor:
        """Return the part of that name, in the shape and dtype of `like`."""
        if name in self._parts:
            return self._parts[name]
        if name in self._packed:
            signs = signs_of(self._packed[name])[: like.numel()]
            return signs.to(like.dtype).view(like.shape)
        if not self._keep and self._directions.distribution == "rademacher":
            noise = self._directions.noise.stream(name).sub(self._index)
            self._packed[name] = noise.packed_signs(like.numel(), like.device)
            return self.of(name, like)
        found = self._directions.draw(name, like.shape, self._index, like)
        if self._keep:
            self._parts[name] = found
        return found


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


def _seeded(
    part: nn.Module, directions: Directions, prefix: str, index: int, device: torch.device
) -> AbstractContextManager[None]:
    if type(part) in _DRAWLESS:
        return nullcontext()
    return directions.noise.stream("module").stream(prefix).sub(index).torch_seeded(device)


def weighted_directions(
    net: nn.Module, directions: Directions, coefs: Tensor, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return parameter name -> `sum_i c_i nu_i`, one direction in memory at a time; for all trained ones by default."""
    sums = {}
    for name, parameter in trained(net).items():
        if names is not None and name not in names:
            continue
        total = torch.zeros_like(parameter)
        for index, coef in enumerate(coefs.tolist()):
            total.add_(directions.draw(name, parameter.shape, index, parameter), alpha=coef)
        sums[name] = total.detach()
    return sums


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
