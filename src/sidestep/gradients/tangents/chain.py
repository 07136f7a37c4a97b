"""A chain of ternary linear layers, rectifiers and layer norms, and how tangents pass through it.

Activations stand features first and samples last, (units, batch), tangents of several probes as (units, probes, batch):
then one matrix product W t serves all probes of a chunk, and what a probe touches is whole rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn

from sidestep.nets.ternary.layers import TernaryLinear
from sidestep.probes import RankOneProbes

__all__ = [
    "Bend",
    "Bent",
    "Chain",
    "Direct",
    "LayerEntries",
    "Normed",
    "RankOneDirect",
    "SparseDirect",
    "Step",
    "carry",
    "read_chain",
    "walk",
]

DENSE_ABOVE = 1 / 512  # share of non-zeros from which a matrix product is faster than adding up rows


@dataclass(frozen=True)
class Bent:
    """A rectifier at a point: `dy = [x > 0] dx`."""

    mask: Tensor  # (units, batch), bool

    def push(self, tangent: Tensor) -> Tensor:
        """Apply the Jacobian, in place, to (units, batch) or (units, probes, batch); it is its own transpose."""
        return tangent.mul_(_beside(self.mask, tangent))


@dataclass(frozen=True)
class Normed:
    """A layer norm at a point: `dy = (dx - mean(dx) - y mean(y dx)) / sigma`, means over the units of a sample."""

    outputs: Tensor  # (units, batch)
    inverse: Tensor  # (batch,), 1 / sigma

    def push(self, tangent: Tensor) -> Tensor:
        """Apply the Jacobian, in place, to (units, batch) or (units, probes, batch); it is its own transpose."""
        outputs = _beside(self.outputs, tangent)
        along = (outputs * tangent).mean(0)
        return tangent.sub_(tangent.mean(0)).addcmul_(outputs, along, value=-1).mul_(self.inverse)


Bend = Bent | Normed


@dataclass(frozen=True)
class Step:
    """A linear layer of a chain and what follows it up to the next one, at the activations of a batch."""

    linear: TernaryLinear
    inputs: Tensor  # (columns, batch)
    bends: list[Bend]  # in the order in which they come
    outputs: Tensor  # (units, batch), behind the bends

    def through(self, tangent: Tensor, product: torch.dtype) -> Tensor:
        """Return the tangent behind the linear layer, (units, probes, batch)."""
        return _product(self.linear, tangent, product)


@dataclass(frozen=True)
class Chain:
    """The modules of a chain, and where the weights of its linear layers stand among a net's positions."""

    modules: list[nn.Module]
    linears: list[TernaryLinear]
    offsets: list[tuple[int, int | None]]  # of weight and bias
    places: list[tuple[int, int | None]]  # of weight and bias among the net's parameters

    def split(self, position: Tensor) -> "list[LayerEntries]":
        """Return which of the positions lie in each linear layer, and on which unit and column."""
        found = []
        for linear, (weight, bias) in zip(self.linears, self.offsets, strict=True):
            units, columns = linear.shape
            place = ((position >= weight) & (position < weight + units * columns)).nonzero()[:, 0]
            inside = position[place] - weight
            unit, column = inside // columns, inside % columns
            if bias is not None:
                extra = ((position >= bias) & (position < bias + units)).nonzero()[:, 0]
                place, unit = torch.cat([place, extra]), torch.cat([unit, position[extra] - bias])
                column = torch.cat([column, torch.full_like(extra, columns)])
            found.append(LayerEntries(place, unit, column))
        return found


@dataclass(frozen=True)
class LayerEntries:
    """Those non-zeros of sparse probes that lie in one linear layer; all of shape (non-zeros,)."""

    place: Tensor  # among all non-zeros
    unit: Tensor
    column: Tensor  # the number of columns stands for the bias, whose input is 1

    def between(self, begin: int, end: int) -> "LayerEntries":
        """Return those from `begin` to `end` - 1."""
        return LayerEntries(self.place[begin:end], self.unit[begin:end], self.column[begin:end])


@dataclass(frozen=True)
class SparseDirect:
    """What some sparse probes add to the tangent at each linear layer's outputs: `scale nu_i x`."""

    probe: Tensor  # (non-zeros,), from 0
    sign: Tensor  # (non-zeros,)
    layers: list[LayerEntries]
    count: int

    def at(self, index: int, step: Step, product: torch.dtype) -> Tensor:
        """Return the addition at linear layer `index`, (units, probes, batch)."""
        found, inputs = self.layers[index], step.inputs
        (units, columns), scale = step.linear.shape, step.linear.scale
        probe, value = self.probe[found.place], self.sign[found.place].to(inputs.dtype)
        row = found.unit * self.count + probe
        if len(row) > DENSE_ABOVE * self.count * units * columns:
            noise = inputs.new_zeros(self.count * units, columns + 1)
            noise.view(-1).index_add_(0, row * (columns + 1) + found.column, value * scale)
            moved = (noise[:, :-1].to(product) @ inputs.to(product)).to(inputs.dtype).add_(noise[:, -1:])
        else:
            moved = inputs.new_zeros(self.count * units, inputs.shape[1])
            rows = inputs.index_select(0, found.column.clamp(max=columns - 1))
            rows[found.column == columns] = 1
            moved.index_add_(0, row, rows.mul_(value[:, None]), alpha=scale)
        return moved.view(units, self.count, -1)


@dataclass(frozen=True)
class RankOneDirect:
    """What rank-one probes `first` to `last` - 1 add to the tangent at each linear layer's outputs."""

    probes: RankOneProbes
    places: list[tuple[int, int | None]]  # of each linear layer's weight and bias among all parameters
    first: int
    last: int

    def at(self, index: int, step: Step, product: torch.dtype) -> Tensor:
        """Return the addition at linear layer `index`, (units, probes, batch): `scale a_i (b_i . x)`."""
        (weight, bias), inputs = self.places[index], step.inputs
        rows, columns = self.probes.factors(weight, inputs.device, self.first, self.last)
        seen = (columns.to(product) @ inputs.to(product)).to(inputs.dtype).mul_(step.linear.scale)
        moved = rows.T[:, :, None].to(inputs.dtype) * seen
        if bias is not None:
            rows, columns = self.probes.factors(bias, inputs.device, self.first, self.last)
            shift = (rows[:, :, None] * columns[:, None, :]).flatten(1)  # (probes, units)
            moved += shift.T[:, :, None].to(inputs.dtype) * step.linear.scale
        return moved


Direct = SparseDirect | RankOneDirect


def read_chain(net: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor) -> Chain | None:
    """Return the chain that `net` is, or None if it is not one, or not on these inputs."""
    modules = _members(net)
    if modules is None or not (inputs.dim() == 2 or (modules and isinstance(modules[0], nn.Flatten))):
        return None
    linears = [module for module in modules if isinstance(module, TernaryLinear)]
    ends = [0, *accumulate(weight.numel() for weight in weights.values())]
    offset = {id(weight): end for weight, end in zip(weights.values(), ends, strict=False)}
    mine = [id(parameter) for linear in linears for parameter in (linear.weight, linear.bias) if parameter is not None]
    if (
        any(linear.weight is None for linear in linears)
        or sorted(mine) != sorted(offset)
        or not inputs.is_floating_point()
    ):
        return None
    pairs = [(id(linear.weight), None if linear.bias is None else id(linear.bias)) for linear in linears]
    place = {parameter: index for index, parameter in enumerate(offset)}
    offsets, places = (
        [(where[weight], None if bias is None else where[bias]) for weight, bias in pairs] for where in (offset, place)
    )
    return Chain(modules, linears, offsets, places)


def walk(chain: Chain, inputs: Tensor, product: torch.dtype) -> Iterator[Step]:
    """Yield the steps of a chain at `inputs` (batch, ...), one after another: only the latest is held here."""
    values = inputs.flatten(1).T
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    linear: TernaryLinear | None = None
    bends: list[Bend] = []
    before = values
    for module in chain.modules:
        if isinstance(module, TernaryLinear):
            if linear is not None:
                yield Step(linear, before, bends, values)
            linear, bends, before = module, [], values
            values = _product(module, values, product)
            shift = module.trits("bias", values)
            if shift is not None:
                values.add_(shift[:, None], alpha=module.scale)
        elif isinstance(module, nn.ReLU):
            bends.append(Bent(values > 0))
            values = values.clamp(min=0)
        elif isinstance(module, nn.LayerNorm):
            values = values - values.mean(0)
            inverse = (values * values).mean(0).add_(module.eps).rsqrt_()
            values.mul_(inverse)
            bends.append(Normed(values, inverse))
    yield Step(cast(TernaryLinear, linear), before, bends, values)


def carry(steps: Iterable[Step], direct: Direct, product: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return outputs (units, batch) of the last step, and the tangents there, (units, probes, batch).

    t_l = J_l (W_l t_(l-1) + nu_l x_(l-1)),  t_0 = 0
    """
    tangent: Tensor | None = None
    outputs: Tensor | None = None
    for index, step in enumerate(steps):
        added = direct.at(index, step, product)
        tangent = added if tangent is None else step.through(tangent, product).add_(added)
        for bend in step.bends:
            bend.push(tangent)
        outputs = step.outputs
        del step, added  # so that it is gone when the next one is made
    return cast(Tensor, outputs), cast(Tensor, tangent)


def _members(module: nn.Module) -> list[nn.Module] | None:
    """Return the modules of which `module` is the composition, or None where it is something else."""
    if not isinstance(module, nn.Module) or module._forward_hooks or module._forward_pre_hooks:
        return None
    parts: Sequence[nn.Module] | None = None
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        parts = list(module)
    elif callable(getattr(module, "chain", None)):
        parts = list(module.chain())  # type: ignore[operator]
    if parts is not None:
        members = [_members(part) for part in parts]
        return None if None in members else [one for some in members for one in cast(list[nn.Module], some)]
    plain_norm = type(module) is nn.LayerNorm and module.weight is None and len(module.normalized_shape) == 1
    whole = type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
    known = type(module) in (TernaryLinear, nn.ReLU, nn.Identity) or plain_norm or whole
    return [module] if known else None


def _product(linear: TernaryLinear, values: Tensor, product: torch.dtype) -> Tensor:
    """Return `scale W x` for (columns, ..., batch), without the bias, in the dtype of `values`."""
    weight = cast(Tensor, linear.trits("weight", values.new_empty(0, dtype=product)))
    moved = weight @ values.reshape(values.shape[0], -1).to(product)
    return moved.to(values.dtype).mul_(linear.scale).view(-1, *values.shape[1:])


def _beside(field: Tensor, tangent: Tensor) -> Tensor:
    """Return a field (units, batch) so that it broadcasts over the probes of (units, probes, batch)."""
    return field if tangent.dim() == 2 else field[:, None]
