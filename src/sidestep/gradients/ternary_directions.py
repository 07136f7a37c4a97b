"""Directions of its own for every example of a batch, carried forward through a chain of ternary layers.

    rank-one:  dy_b = scale (W dx_b + a_b (b_b . x_b))         along nu_b = a_b b_b^T in weight space
    activity:  dy_b = scale W dx_b + u_b                       along u_b in the space of the layer's outputs

One forward-mode pass gives the derivative alpha_b of every example's own loss. An activity derivative becomes a weight
gradient without further passes, `g = scale sum_b alpha_b u_b x_b^T`; the last layer's gradient is exact, since the
cotangent of the logits is known. Source: Ren et al., "Scaling forward gradient with local losses" (2022), section 3.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.grad import conv2d_weight

from sidestep.data.objective import CLASSES, Objective
from sidestep.errors import InputError
from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.nets.ternary.layers import TernaryConv2d, TernaryLayer, TernaryLinear, ternary_parameters
from sidestep.nets.ternary.nets import TernaryNet
from sidestep.noise import Noise
from sidestep.probes import RankOneProbes

__all__ = ["activity_gradients", "check_chain", "rank_one_alignments", "rank_one_shapes", "weight_gradients"]

Perturb = Callable[[str, TernaryLayer, Tensor, Tensor], Tensor]  # name, layer, inputs, outputs -> added to the tangent


def rank_one_shapes(net: TernaryNet) -> tuple[tuple[int, int], ...]:
    """Return rows and columns of every parameter; a bias is one column."""
    return tuple((len(trits), trits[0].numel()) for trits in ternary_parameters(net).values())


def rank_one_alignments(
    net: TernaryNet,
    images: Tensor,
    labels: Tensor,
    probes: RankOneProbes,
    objective: Objective = CLASSES,
    part: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the derivative of each example's own loss along the probes of its own, and the mean loss, shape ().

    Probe i belongs to example i % batch, so there must be a multiple of the batch; every pass over the batch costs one
    forward pass and its tangent. The result has one number for each pass and example, one pass after another.

    Args:
        net: the net.
        images: the examples.
        labels: their targets.
        probes: those of the whole batch.
        objective: what the outputs are judged by.
        part: where these examples begin in the whole batch, and how many that has; by default they are all of it.
    """
    begin, batch = part or (0, len(labels))
    if probes.count % batch:
        raise InputError(f"rank-one probes come in whole batches of {batch}, got {probes.count}")
    order = {name: index for index, name in enumerate(ternary_parameters(net))}
    found, loss = [], images.new_zeros(())
    for first in range(begin, probes.count, batch):

        def perturb(name: str, layer: TernaryLayer, inputs: Tensor, outputs: Tensor, first: int = first) -> Tensor:
            left, right = probes.factors(order[f"{name}.weight"], inputs.device, first, first + len(labels))
            added = _outer(layer, inputs, left.to(inputs.dtype), right.to(inputs.dtype))
            if layer.bias is not None:
                left, right = probes.factors(order[f"{name}.bias"], inputs.device, first, first + len(labels))
                sign = (left * right).to(added.dtype)
                added = added + sign.view(len(sign), -1, *[1] * (added.ndim - 2))
            return added * layer.scale

        logits, tangent, _ = _pass(net, images, perturb)
        cotangent, loss = _cotangent(logits, labels, objective)
        found.append((cotangent * tangent).sum(dim=1))
    return torch.cat(found), loss


def activity_gradients(
    net: TernaryNet, images: Tensor, labels: Tensor, noise: Noise, tangents: int, objective: Objective = CLASSES
) -> tuple[dict[str, Tensor], Tensor]:
    """Return parameter name -> estimate of the gradient of the mean loss, from `tangents` passes, and the loss."""
    sums: dict[str, Tensor] = {}
    loss = images.new_zeros(())
    last = "heads.0" if isinstance(net.heads[-1], TernaryLayer) else _names(net)[-1]
    for index in range(tangents):
        drawn: dict[str, Tensor] = {}

        def perturb(
            name: str,
            layer: TernaryLayer,
            inputs: Tensor,
            outputs: Tensor,
            drawn: dict[str, Tensor] = drawn,
            index: int = index,
        ) -> Tensor:
            if name == last:
                return torch.zeros_like(outputs)
            signs = noise.stream(name).sub(index).signs(outputs.numel(), device=outputs.device)
            drawn[name] = signs.view(outputs.shape).to(outputs.dtype)
            return drawn[name]

        logits, tangent, seen = _pass(net, images, perturb)
        cotangent, loss = _cotangent(logits, labels, objective)
        alpha = (cotangent * tangent).sum(dim=1) / len(labels)
        for name, (layer, inputs) in seen.items():
            if name == last:
                if index:
                    continue
                upstream = cotangent * (tangents / len(labels))
            else:
                upstream = drawn[name] * alpha.to(drawn[name].dtype).view(-1, *[1] * (drawn[name].ndim - 1))
            for key, gradient in weight_gradients(layer, inputs, upstream).items():
                whole = f"{name}.{key}"
                sums[whole] = sums[whole] + gradient if whole in sums else gradient
    return {name: total / tangents for name, total in sums.items()}, loss


def check_chain(net: TernaryNet) -> None:
    """Raise InputError for layers that per-example directions have no definition for."""
    for name, layer in net.named_modules():
        if isinstance(layer, TernaryLayer) and not isinstance(layer, TernaryLinear | TernaryConv2d):
            raise InputError(f"layer {name} ({type(layer).__name__}) takes no per-example probes; use weight-probes")
        if isinstance(layer, TernaryConv2d) and (layer.groups != 1 or isinstance(layer.padding, str)):
            raise InputError(f"layer {name} has groups or padding by name, which per-example probes do not support")
    seen: dict[int, str] = {}
    for name, layer in _leaves(net):
        if isinstance(layer, TernaryLayer) and id(layer) in seen:
            raise InputError(
                f"layer {name} is {seen[id(layer)]} again: per-example probes need each layer to be used once"
            )
        seen[id(layer)] = name
    names = seen.keys()
    if missing := [n for n, m in net.named_modules() if isinstance(m, TernaryLayer) and id(m) not in names]:
        raise InputError(
            f"layer {missing[0]} lies inside a module that is no nn.Sequential, so per-example probes cannot follow "
            "the data to it; build the net of nn.Sequential, or use weight-probes"
        )


def _pass(
    net: TernaryNet, images: Tensor, perturb: Perturb
) -> tuple[Tensor, Tensor, dict[str, tuple[TernaryLayer, Tensor]]]:
    """Return logits, their tangent, and layer name -> layer and what it saw."""
    seen: dict[str, tuple[TernaryLayer, Tensor]] = {}
    value, tangent = images, torch.zeros_like(images)
    moved = False  # nothing is perturbed before the first layer
    with torch.no_grad():
        for name, module in _leaves(net):
            if isinstance(module, TernaryLayer):
                outputs = module(value)
                added = perturb(name, module, value, outputs)
                tangent = added.to(outputs.dtype) + (_linear(module, tangent) if moved else 0)
                seen[name] = (module, value)
                value, moved = outputs, True
            elif moved:
                value, tangent = jvp(module, (value,), (tangent.to(value.dtype),))[:2]
            else:
                value = module(value)
    return value, tangent, seen


def _leaves(net: TernaryNet) -> Iterator[tuple[str, nn.Module]]:
    parts = [(f"stages.{index}", stage) for index, stage in enumerate(net.stages)]
    parts.append((f"heads.{len(net.heads) - 1}", net.heads[-1]))
    for name, part in parts:
        yield from _flat(name, part)


def _flat(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for key, child in module._modules.items():  # unlike named_children(), with modules that stand there twice
            assert child is not None
            yield from _flat(f"{name}.{key}", child)
    else:
        yield name, module


def _names(net: TernaryNet) -> list[str]:
    return [name for name, module in _leaves(net) if isinstance(module, TernaryLayer)]


def _linear(layer: TernaryLayer, tangent: Tensor) -> Tensor:
    """`scale W dx`, without the bias."""
    weight = layer.trits("weight", tangent)
    assert weight is not None
    if isinstance(layer, TernaryConv2d):
        found = F.conv2d(tangent, weight, None, layer.stride, layer.padding, layer.dilation)
    else:
        found = F.linear(tangent, weight)
    return found * layer.scale


def _outer(layer: TernaryLayer, inputs: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`a_b (b_b . x_b)` for every example b; for a convolution, b_b is a kernel with one output channel."""
    if not isinstance(layer, TernaryConv2d):
        return left * (inputs * right).sum(dim=1, keepdim=True)
    batch, channels, height, width = inputs.shape
    kernels = right.view(batch, *layer.shape[1:])
    together = inputs.reshape(1, batch * channels, height, width)
    found = F.conv2d(together, kernels, None, layer.stride, layer.padding, layer.dilation, groups=batch)
    return left[:, :, None, None] * found.view(batch, 1, *found.shape[2:])


def weight_gradients(layer: TernaryLayer, inputs: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Return the gradient of weight and bias from the gradient of the outputs: one layer's product, and no more."""
    upstream = upstream.to(inputs.dtype) * layer.scale
    if isinstance(layer, TernaryConv2d):
        with full_precision(inputs):
            weight = conv2d_weight(inputs, list(layer.shape), upstream, layer.stride, layer.padding, layer.dilation)
        found = {"weight": weight}
        axes = [0, 2, 3]
    else:
        found = {"weight": upstream.T @ inputs}
        axes = [0]
    if layer.bias is not None:
        found["bias"] = upstream.sum(dim=axes)
    return found


def _cotangent(logits: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """`softmax - one-hot`, (batch, classes), of each example's own loss, and the mean loss; or another objective's."""
    logits = at_least_float32(logits)
    if objective is not CLASSES:
        return objective.derivative(logits, labels)
    loss = F.cross_entropy(logits, labels)
    chances = logits.softmax(dim=1)
    return chances - F.one_hot(labels, chances.shape[1]).to(chances.dtype), loss
