"""Forward gradients of activities: a direction of its own for every example on the outputs of layers.

    alpha_b = d loss_b along u_b        g_W = 1/B sum_b alpha_b u_b x_b^T

u has as many dimensions as a layer has outputs, where a direction of weights has that times the inputs. One pass of
`torch.autograd.forward_ad` gives alpha for all examples, and nothing runs backwards. Source: Ren et al., "Scaling
forward gradient with local losses" (2022), section 3.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from sidestep.data.objective import CLASSES, Objective
from sidestep.errors import InputError
from sidestep.gradients.directions import Directions
from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.nets.trained import check_unshared, trained

__all__ = [
    "Seen",
    "activity_pass",
    "at_layer",
    "check_activities",
    "check_activity",
    "cotangent",
    "output_gradients",
    "tangent_of",
]


@dataclass(frozen=True)
class Seen:
    """What one layer saw, and the direction that was added to its outputs."""

    layer: nn.Linear | nn.Conv2d
    inputs: Tensor
    direction: Tensor


def check_activity(net: nn.Module) -> None:
    """Raise InputError for layers that directions of outputs have no definition for."""
    for name, layer in net.named_modules():
        if not any(p.requires_grad for p in layer.parameters(recurse=False)):
            continue
        kind = type(layer).__name__
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise InputError(f"layer {name} ({kind}) takes no directions on its outputs; use kind = weights")
        if isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
            raise InputError(f"layer {name} has padding other than by numbers; use kind = weights")


def check_activities(stages: nn.ModuleList, local: bool) -> None:
    """Raise InputError for stages without directions of outputs; `local`: each has one layer, under its own loss."""
    check_unshared(stages, again=False, instead="kind = weights")
    for stage in stages:
        check_activity(stage)
    for stage in stages if local else ():
        at_layer(stage)


def activity_pass(
    module: nn.Module, inputs: Tensor, prefix: str, directions: Directions, index: int
) -> tuple[Tensor, Tensor, dict[str, Seen]]:
    """Return the module's outputs, their tangent, and layer name -> what it saw and its direction.

    Args:
        module: runs once; every linear or convolutional layer in it that is not frozen is perturbed.
        inputs: what it gets, (batch, ...); it has no tangent.
        prefix: stands before the names of its layers.
        directions: where the noise comes from.
        index: which tangent of the step.
    """
    seen: dict[str, Seen] = {}

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name in seen:
                raise InputError(f"layer {name} is used twice in one pass; use kind = weights")
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            primal = forward_ad.unpack_dual(output).primal
            direction = directions.draw(name, primal.shape, index, primal)
            seen[name] = Seen(layer, forward_ad.unpack_dual(given[0]).primal, direction)
            # a copy of the direction: an activation that works in place would write into its tangent
            return output + forward_ad.make_dual(torch.zeros_like(primal), direction.clone())

        return hook

    with ExitStack() as stack:
        stack.enter_context(forward_ad.dual_level())
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and trained(layer):
                hook = layer.register_forward_hook(hook_for(".".join(filter(None, (prefix, name)))))
                stack.callback(hook.remove)
        primal, tangent = forward_ad.unpack_dual(module(inputs))
    return primal, torch.zeros_like(primal) if tangent is None else tangent, seen


def at_layer(stage: nn.Module) -> tuple[nn.Module, tuple[str, nn.Linear | nn.Conv2d], nn.Module]:
    """Return what lies before a stage's one layer, the layer with its name, and what lies after it."""
    parts = list(stage._modules.items()) if isinstance(stage, nn.Sequential) else []  # also what stands there twice
    places = [place for place, (_, part) in enumerate(parts) if any(True for _ in part.parameters())]
    if len(places) == 1 and isinstance(layer := parts[places[0]][1], nn.Linear | nn.Conv2d):
        before, after = parts[: places[0]], parts[places[0] + 1 :]
        return (
            nn.Sequential(*(part for _, part in before)),
            (parts[places[0]][0], layer),
            nn.Sequential(*(part for _, part in after)),
        )
    raise InputError(
        "local losses need stages of one linear or convolutional layer each, and others without parameters, directly "
        "in one nn.Sequential; write the module so, or use kind = activities"
    )


def tangent_of(module: nn.Module, inputs: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return the module's outputs and their derivative along `direction` of its inputs."""
    with forward_ad.dual_level():
        # copies, since an activation that works in place would write into both
        primal, tangent = forward_ad.unpack_dual(module(forward_ad.make_dual(inputs.clone(), direction.clone())))
    return primal, torch.zeros_like(primal) if tangent is None else tangent


def output_gradients(layer: nn.Linear | nn.Conv2d, inputs: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Return the gradient of weight and bias from that of the outputs: one layer's product, nothing passes on."""
    if isinstance(layer, nn.Conv2d):
        shape = list(layer.weight.shape)
        assert not isinstance(layer.padding, str)
        with full_precision(inputs):
            place = (layer.stride, layer.padding, layer.dilation, layer.groups)
            found = {"weight": conv2d_weight(inputs, shape, upstream.to(inputs.dtype), *place)}
        rows = upstream.transpose(1, -1)
    else:
        rows = upstream.to(inputs.dtype)
        found = {"weight": rows.flatten(0, -2).T @ inputs.flatten(0, -2)}
    if layer.bias is not None:
        found["bias"] = rows.flatten(0, -2).sum(dim=0)
    return {name: gradient.to(layer.weight.dtype) for name, gradient in found.items()}


def cotangent(
    logits: Tensor, labels: Tensor, objective: Objective = CLASSES, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return `softmax - one-hot` of each example's own cross-entropy, (..., classes), and the mean loss, shape ().

    The one-hot labels are smoothed by `label_smoothing`. Of another objective, the derivative of each example's loss by
    its outputs.
    """
    logits = at_least_float32(logits)
    if objective is not CLASSES:
        return objective.derivative(logits, labels)
    chances = logits.softmax(dim=-1)
    wanted = F.one_hot(labels, logits.shape[-1]).to(chances.dtype)
    if label_smoothing:
        wanted = wanted * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    loss = -(logits.log_softmax(dim=-1) * wanted).sum(dim=-1).mean()
    return chances - wanted, loss
