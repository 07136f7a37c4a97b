"""Many members of a population in one forward pass: weights shifted by rank-one directions, without making them.

    (W +- eps a b^T) x + (c0 +- eps c) = W x + c0  +-  eps (a (b . x) + c)

so every example, or group of examples, can have directions of its own, for the price of inner products. The estimate
`sum_k f_k a_k b_k^T` is one matrix product. Source: Sarkar et al., "Evolution strategies at the hyperscale" (2025).

With columns taken from the input, b = x / |x|: an example's loss changes with W only through W x, hence its gradient is
`delta x^T`, and noise in b that is orthogonal to x is noise and nothing else. This is node perturbation.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.gradients.directions import Directions
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.stages.staged import StagedNet
from sidestep.nets.trained import trained
from sidestep.noise import Noise

__all__ = [
    "Factors",
    "Members",
    "check_rank_one",
    "check_repeats",
    "noise_at_outputs",
    "rank_one_logits",
    "weighted_rank_one",
]

Layer: TypeAlias = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Members:
    """Who evaluates what: `groups` of `size` examples, and `pairs` antithetic pairs for each.

    The batch of a pass is ordered by (sign, pair, group, example); a direction's number is pair * groups + group.
    """

    pairs: int
    groups: int
    size: int

    @property
    def count(self) -> int:
        """The number of pairs in all, K."""
        return self.pairs * self.groups

    @property
    def examples(self) -> int:
        """The number of examples."""
        return self.groups * self.size


@dataclass(frozen=True)
class Factors:
    """The directions of one layer: `a b^T` for its weight, and the bias's."""

    rows: Tensor  # a: (K, outputs)
    columns: Tensor  # b: (K, inputs), or (examples, inputs) where all pairs of an example share it
    bias: Tensor | None  # (K, outputs), if there is a bias
    along_inputs: bool = False  # b = x / |x|


def check_rank_one(net: nn.Module, input_columns: bool) -> None:
    """Raise InputError for layers that rank-one directions have no definition for."""
    for name, layer in net.named_modules():
        kind = type(layer).__name__
        known = isinstance(layer, nn.Linear | nn.Conv2d)
        if not any(p.requires_grad for p in layer.parameters(recurse=False)):
            continue
        if not known:
            raise InputError(f"layer {name} ({kind}) takes no rank-1 noise; use noise_kind = full-rank")
        if input_columns and not layer.weight.requires_grad:
            raise InputError(f"layer {name} has a frozen weight and a bias that is not; use columns = drawn")
        if isinstance(layer, nn.Conv2d):
            if input_columns:
                raise InputError(f"layer {name} ({kind}) sees many inputs per example; use columns = drawn")
            if layer.groups != 1 or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
                raise InputError(
                    f"layer {name} has groups or padding other than by numbers; use noise_kind = full-rank"
                )


def check_repeats(net: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Raise InputError for a net that draws in its forward pass: in one batch, the members of a pair draw differently.

    It is found by two passes of the same images in training mode, under two seeds of torch's generators.
    """
    noise = Noise(0).stream("repeats")
    images = noise.normal(16 * math.prod(image_shape)).view(16, *image_shape)
    net.train()
    logits = []
    for index in range(2):
        with torch.no_grad(), kept_statistics(net), noise.sub(index).torch_seeded():
            logits.append(net(images))
    if not torch.equal(*(each.nan_to_num() for each in logits)):  # NaN is no draw
        raise InputError(
            "the module draws random numbers in its forward pass, and with rank-1 noise the two members of a pair, "
            "which are in one batch, would draw differently: their difference would measure the draws; leave the draws "
            "out, or use noise_kind = full-rank with per = group"
        )


def rank_one_logits(
    net: StagedNet,
    images: Tensor,
    members: Members,
    directions: Directions,
    eps: float,
    input_columns: bool = False,
    multiply_late: bool = False,
) -> tuple[Tensor, dict[str, Factors]]:  # long: who, what and how
    """Return logits (2, K, size, classes), at + and - the noise, and layer name -> its directions.

    Args:
        net: of linear and convolutional layers, and others without trained parameters; what is frozen gets no noise.
        images: (groups * size, channels, height, width).
        members: the population.
        directions: where the noise comes from.
        eps: size of the noise.
        input_columns: b = x / |x| in place of drawn columns.
        multiply_late: let the first layer see every example once; only for nets that are a chain from there on.
    """
    found: dict[str, Factors] = {}
    signed = torch.tensor([eps, -eps], dtype=images.dtype, device=images.device).view(2, 1, 1, 1)

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            if input_columns and name in found:
                raise InputError(f"layer {name} is used twice; use columns = drawn")
            if name not in found:
                make = _from_inputs if input_columns else _drawn
                found[name] = make(name, layer, inputs[0], members, directions)
            moved = noise_at_outputs(layer, inputs[0], found[name], members)
            return _both_ways(output, moved, signed, members)

        return hook

    with ExitStack() as stack:
        for name, layer in net.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and trained(layer):
                stack.callback(layer.register_forward_hook(hook_for(name)).remove)
        logits = net(images if multiply_late else images.repeat(2 * members.pairs, *[1] * (images.ndim - 1)))
    return logits.view(2, members.count, members.size, -1), found


def noise_at_outputs(layer: Layer, inputs: Tensor, factors: Factors, members: Members) -> Tensor:
    """Return what a layer's outputs are moved by per eps, (1 or 2, K, examples and places of a group, outputs)."""
    return (_at_input if factors.along_inputs else _along)(layer, inputs, factors, members)


def weighted_rank_one(factors: dict[str, Factors], coefs: Tensor) -> dict[str, Tensor]:
    """Return parameter name -> `sum_k f_k nu_k`; a weight of more than two dimensions comes as a matrix."""
    sums = {}
    for name, layer in factors.items():
        rows = layer.rows * coefs[:, None]
        if layer.bias is not None:
            sums[f"{name}.bias"] = (layer.bias * coefs[:, None]).sum(dim=0)
        if len(layer.columns) < len(rows):
            rows = rows.view(-1, len(layer.columns), rows.shape[1]).sum(dim=0)
        sums[f"{name}.weight"] = (rows.T @ layer.columns).to(coefs.dtype)
    return sums


def _drawn(name: str, layer: Layer, inputs: Tensor, members: Members, directions: Directions) -> Factors:
    outputs, columns = (members.count, len(layer.weight)), (members.count, layer.weight[0].numel())
    moves, bias = layer.weight.requires_grad, _has_bias(layer)
    return Factors(
        directions.draw(f"{name}.rows", outputs, 0, inputs) if moves else inputs.new_zeros(outputs),
        directions.draw(f"{name}.columns", columns, 0, inputs) if moves else inputs.new_zeros(columns),
        directions.draw(f"{name}.bias", outputs, 0, inputs) if bias else None,
    )


def _has_bias(layer: Layer) -> bool:
    """Whether there is a bias that is trained."""
    return layer.bias is not None and layer.bias.requires_grad


def _from_inputs(name: str, layer: Layer, inputs: Tensor, members: Members, directions: Directions) -> Factors:
    if inputs.ndim != 2:
        raise InputError(f"layer {name} sees many inputs per example; use columns = drawn")
    inverse = 1 / _length(inputs, layer)
    columns = inputs * inverse
    if len(inputs) != members.examples:  # what the two members of a pair saw
        columns, inverse = (part.view(2, members.count, -1).mean(dim=0) for part in (columns, inverse))
    rows = directions.draw(f"{name}.rows", (members.count, len(layer.weight)), 0, inputs)
    bias = rows * inverse.repeat(members.count // len(inverse), 1) if _has_bias(layer) else None
    return Factors(rows, columns, bias, along_inputs=True)


def _at_input(layer: Layer, inputs: Tensor, factors: Factors, members: Members) -> Tensor:
    """`a |x|`, (1 or 2, K, 1, outputs)."""
    length = _length(inputs, layer)
    if len(inputs) == members.examples:
        length = length.repeat(members.pairs, 1)
    return factors.rows[:, None] * length.view(-1, members.count, 1, 1)


def _length(inputs: Tensor, layer: Layer) -> Tensor:
    """`|x|`, (batch, 1), where a bias is the weight of one more input that is 1."""
    return (inputs.square().sum(dim=1, keepdim=True) + _has_bias(layer)).sqrt().clamp_min(1e-12)


def _both_ways(output: Tensor, moved: Tensor, signed: Tensor, members: Members) -> Tensor:
    """`y +- eps m`, a row for each member, from a layer's output, for each member or the same for all, and what moves.

    In the place of `moved`, (1 or 2, K, ...), where it has the room and the dtype: the sums' bits are the same.
    """
    plain = moved.is_contiguous() and output.is_contiguous() and moved.dtype == output.dtype == signed.dtype
    moved = moved.mul_(signed) if plain and len(moved) == 2 else signed * moved
    if len(output) == members.examples:  # once for every member of an example, which broadcasting repeats
        moved = moved.reshape(2 * members.pairs, *output.shape)
        return (moved.add_(output) if plain else output + moved).flatten(0, 1)
    return moved.view(output.shape).add_(output) if plain else output + moved.reshape(output.shape)


def _along(layer: Layer, inputs: Tensor, factors: Factors, members: Members) -> Tensor:
    """`a (b . x) + c`, (1 or 2, K, examples and places of a group, outputs), or for a convolution in its layout."""
    if isinstance(layer, nn.Conv2d):
        return _along_convolution(layer, inputs, factors, members)
    if len(inputs) == members.examples:
        sides = inputs.view(members.groups, members.size, -1)
        columns = factors.columns.view(members.pairs, members.groups, -1).permute(1, 2, 0)
        products = (sides @ columns).permute(2, 0, 1).reshape(1, members.count, members.size, 1)
    else:
        sides = inputs.reshape(2, members.count, -1, inputs.shape[-1])
        products = sides @ factors.columns[:, :, None]
    moved = products * factors.rows[:, None]
    return moved if factors.bias is None else _added(moved, factors.bias[:, None])


def _added(moved: Tensor, bias: Tensor) -> Tensor:
    """Return the sum, in the place of the first where it has the dtype."""
    return moved.add_(bias) if moved.dtype == bias.dtype else moved + bias


def _along_convolution(layer: nn.Conv2d, inputs: Tensor, factors: Factors, members: Members) -> Tensor:
    """The same for kernels: b is a kernel of one output channel, applied by one grouped convolution."""
    _, channels, height, width = inputs.shape
    kernels = factors.columns.view(members.count, *layer.weight.shape[1:])
    sides = inputs.reshape(2, members.count, members.size, channels, height, width).transpose(1, 2)
    together = sides.reshape(2 * members.size, members.count * channels, height, width)
    assert not isinstance(layer.padding, str)
    products = F.conv2d(together, kernels, None, layer.stride, layer.padding, layer.dilation, members.count)
    products = products.view(2, members.size, members.count, 1, *products.shape[2:]).transpose(1, 2)
    moved = products * factors.rows[:, None, :, None, None]
    if factors.bias is not None:
        moved = _added(moved, factors.bias[:, None, :, None, None])
    return moved.reshape(2, members.count, members.size, -1)  # signed as the others are; reshaped by the caller
