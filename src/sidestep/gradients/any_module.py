"""Losses of any module, as its weights are shifted: what rules need that know nothing of a net but its parameters.

The loss comes from a function without arguments, which calls the module itself. It may be called several times for one
step. Each time it meets the same buffers and draws the same from torch's generators, so that only the weights differ.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sidestep.errors import InputError
from sidestep.gradients.directions import Directions, OneDirection
from sidestep.gradients.end_to_end import gradients_of
from sidestep.gradients.forward_mode import forward_mode
from sidestep.gradients.shifted import Direction, at_shifted
from sidestep.gradients.swapped import SwappedWeights
from sidestep.nets.check_module import inplace_explained
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.nets.quantized import quantized_weights
from sidestep.nets.substituted import substituted
from sidestep.nets.trained import device_of, trained
from sidestep.noise import Noise

__all__ = [
    "Losses",
    "ShiftedPasses",
    "called",
    "check_trainable",
    "derivatives_along",
    "gradients_here",
    "losses_at_pairs",
    "mean_loss",
]

_KEPT = 1 << 18  # weights, whose direction is small beside what a process takes anyway
Losses = Callable[[], Tensor]  # -> () or (batch,): the loss, or one per example, at the weights that the net has now


def mean_loss(found: Tensor) -> Tensor:
    """Return the mean of what a function of losses gave, shape (), in float32 or wider.

    Raises:
        InputError: unless it is a float tensor of one number, or of one number per example.
    """
    if not isinstance(found, Tensor):
        raise InputError(
            f"the loss must be a tensor, one number or one per example, got {type(found).__name__}; return what the "
            "loss function gave, without float() or .item()"
        )
    if found.ndim > 1 or not found.numel() or not found.is_floating_point():
        kind = str(found.dtype).removeprefix("torch.")
        raise InputError(
            f"the loss must be one number, shape (), or one per example, shape (batch,), got {kind} of shape "
            f"{tuple(found.shape)}; take the mean over all dimensions but the first"
        )
    found = at_least_float32(found)
    return found.mean() if found.ndim else found


def called(model: nn.Module, inputs: Any, instead: str) -> Tensor:
    """Return the outputs of a model of the user's; inputs that are a mapping are given by name.

    Raises InputError, which ends in what to do `instead`, unless the outputs are one tensor.
    """
    found = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    if not isinstance(found, Tensor):
        raise InputError(f"the model gives a {type(found).__name__}, and an objective needs one tensor; {instead}")
    return found


def check_trainable(net: nn.Module, rounded: bool = False) -> None:
    """Raise InputError unless a net has weights that are not frozen, all of them floats that exist already.

    rounded: the whole numbers of quantised layers may be among them.
    """
    parameters = trained(net)
    if not parameters:
        raise InputError(
            f"nothing is left to train: the module has {sum(1 for _ in net.parameters())} parameters, and none of them "
            "has requires_grad; unfreeze some, parameter.requires_grad_(True)"
        )
    quantized = quantized_weights(net)
    for name, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter):
            raise InputError(f"the parameter {name} has no shape yet; call the module once on a batch first")
        if not parameter.is_floating_point() and not (rounded and name in quantized):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(
                f"the parameter {name} is {kind}, and only float weights can take such steps; whole numbers made by "
                "sidestep.nets.quantize are trained by spsa"
            )


def gradients_here(net: nn.Module, losses: Losses, noise: Noise) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Return the gradient of the mean loss, the buffers that the forward pass changed, both by name, and the loss, ().

    By reverse mode, of all trained weights.
    """
    with kept_statistics(net) as changed, noise.torch_seeded(device_of(net)), torch.enable_grad():
        loss = mean_loss(losses())
        if not loss.requires_grad:
            raise InputError(
                "the loss has no derivative with respect to the weights; return it as the loss function gave it, "
                "without detach() or torch.no_grad(), or train by a rule of forward passes alone"
            )
        statistics = changed()
        return gradients_of(loss, trained(net)), statistics, loss.detach()


class ShiftedPasses:
    """The loss of a module with its weights shifted: shifted ones exist for one operation at a time.

    statistics: the buffers after the first pass, by name; a step counts once, however many passes it takes.
    each: the losses of the last pass, (batch,), or None where they are one number.
    keep: whether directions stay in memory, as they do for small nets.
    """

    def __init__(self, net: nn.Module, losses: Losses, noise: Noise, plain: bool = False) -> None:
        """Remember what to call; `plain`: the losses draw nothing, and read no weight but through the net's layers."""
        self._net, self._losses, self._noise = net, losses, noise
        weights = trained(net)
        self._like = next(iter(weights.values()))
        self.keep = sum(weight.numel() for weight in weights.values()) <= _KEPT
        self._swapped = SwappedWeights.of(net) if plain and self.keep else None
        self.statistics: dict[str, Tensor] | None = None
        self.each: Tensor | None = None

    def __call__(self, direction: Direction | None = None, step: float = 0.0, masks: int = 0) -> Tensor:
        """Return the loss at `w + step nu`, (), or at w.

        Args:
            direction: nu.
            step: the size of the noise, of either sign.
            masks: which draws of torch's generators the module meets, such as dropout's masks.
        """
        if self._swapped:
            self.statistics = {}
            with torch.no_grad(), full_precision(self._like):
                if direction is None:
                    return self._mean(self._losses())
                return self._mean(self._swapped.at(direction, step, self._losses))

        def passed() -> tuple[Tensor, dict[str, Tensor]]:
            with _repeatable(self._net, self._noise.sub(masks)) as changed:
                return self._mean(self._losses()), changed() if self.statistics is None else {}

        with torch.no_grad(), full_precision(self._like):
            loss, changed = passed() if direction is None else at_shifted(self._net, direction, step, passed)
        self.statistics = changed if self.statistics is None else self.statistics
        return loss

    def _mean(self, found: Tensor) -> Tensor:
        mean = mean_loss(found)
        self.each = at_least_float32(found) if found.ndim else None
        return mean


def losses_at_pairs(
    net: nn.Module, losses: Losses, directions: Directions, pairs: int, eps: float, noise: Noise
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses at `w + eps nu_i` and `w - eps nu_i`, (2, pairs), and the buffers after the first of them.

    The noise is drawn once for both sides, but for normal values of large nets, which are drawn again.
    """
    run = ShiftedPasses(net, losses, noise)
    found = []
    for index in range(pairs):
        direction = OneDirection(directions, index, run.keep)
        found += [run(direction, step, index) for step in (eps, -eps)]
    return torch.stack(found).view(pairs, 2).T, run.statistics or {}


def derivatives_along(
    net: nn.Module, losses: Losses, directions: Directions, tangents: range, noise: Noise
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return `grad L . nu_i` for directions i, (tangents,), the loss, (), and the buffers after it; in forward mode."""
    found, weights = [], {name: parameter.detach() for name, parameter in trained(net).items()}
    with torch.no_grad(), forward_mode(net):
        for index in tangents:
            along = {name: directions.draw(name, w.shape, index, w) for name, w in weights.items()}
            with forward_ad.dual_level(), inplace_explained(), _repeatable(net, noise) as changed:
                with substituted(net, {name: forward_ad.make_dual(w, along[name]) for name, w in weights.items()}):
                    loss, derivative = forward_ad.unpack_dual(mean_loss(losses()))
                if derivative is None:
                    raise InputError(
                        "the loss has no derivative with respect to the weights; leave detach() out of the function, "
                        "or train by a rule of forward passes alone"
                    )
                found.append(derivative.clone())
                statistics = changed()
    return torch.stack(found), loss.clone(), statistics


@contextmanager
def _repeatable(net: nn.Module, noise: Noise) -> Iterator[Callable[[], dict[str, Tensor]]]:
    with kept_statistics(net) as changed, noise.torch_seeded(device_of(net)):
        yield changed
