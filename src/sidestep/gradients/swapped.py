"""Shifted weights in the place of a small net's own for a whole pass: the fast path beside `shifted`, to the same bits.

`shifted` looks at every operation, to see which weights it reads; on a small net that takes longer than the operations.
Of a net of torch's plain layers alone it is known that they read their own weights, and that they neither draw nor
write. So all shifted weights are made at once, from one draw, and put where the layers look for them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from sidestep.gradients.directions import OneDirection
from sidestep.gradients.shifted import Direction, shifted_weight
from sidestep.nets.stages.staged import StagedNet
from sidestep.nets.trained import trained

__all__ = ["SwappedWeights"]

T = TypeVar("T")

_PLAIN = {StagedNet, nn.ModuleList, nn.Sequential, nn.Flatten, nn.GroupNorm, nn.LayerNorm, nn.Linear, nn.ReLU, nn.Tanh}
Place = tuple[dict[str, Any], str, nn.Parameter]  # what holds a weight, under which key, and the weight


class SwappedWeights:
    """A net of plain layers whose weights can be exchanged for a pass."""

    def __init__(self, weights: dict[str, nn.Parameter], places: list[Place]) -> None:
        """Note the weights, and copy them into one tensor, so that one operation shifts all; they stay as they are."""
        self._weights, self._places, self._names = weights, places, tuple(weights)
        self._joined = torch.cat([weight.detach().flatten() for weight in weights.values()])
        self._sizes = [weight.numel() for weight in weights.values()]

    @classmethod
    def of(cls, net: nn.Module) -> "SwappedWeights | None":
        """Return the net's weights with their places; None unless it is of plain layers, in float32 on a CPU."""
        layers = list(net.modules())
        if any(type(layer) not in _PLAIN or layer._buffers for layer in layers):
            return None
        weights = trained(net)
        if not all(w.dtype == torch.float32 and w.device.type == "cpu" and w.is_contiguous() for w in weights.values()):
            return None
        moving = {id(weight) for weight in weights.values()}
        held = [(layer._parameters, key, w) for layer in layers for key, w in layer._parameters.items()]
        return cls(weights, [(places, key, w) for places, key, w in held if w is not None and id(w) in moving])

    def at(self, direction: Direction, step: float, run: Callable[[], T]) -> T:
        """Return what `run` gives, which calls the net, with `w + step nu` in place of every trained weight w."""
        signs = direction.joined(self._names) if isinstance(direction, OneDirection) else None
        if signs is None:
            shifted = {id(w): shifted_weight(w, direction, name, step) for name, w in self._weights.items()}
        else:
            parts = torch.add(self._joined, signs.to(torch.float32), alpha=step).split_with_sizes(self._sizes)
            shifted = {id(w): part.view(w.shape) for w, part in zip(self._weights.values(), parts, strict=True)}
        try:
            for held, key, own in self._places:
                held[key] = shifted[id(own)]
            return run()
        finally:
            for held, key, own in self._places:
                held[key] = own
