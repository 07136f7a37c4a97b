"""Sparse probes through a chain, in mixed mode: what one weight moves is one row of activations; much is shared.

Behind linear layer l, and the bends after it, a weight (j, c) with sign s moves the activations by

    dx_l = J_l e_j s scale_l x_(l-1)[c],      J_l = diag(d) + sum_r u_r q_r^T     per sample

where a rectifier only masks d and u, and each layer norm adds two terms of rank one. With g the gradient of the loss at
the logits, the last layer is folded into one vector per sample, p = J_(L-1) scale_L W_L^T g, so that

    layer L:      alpha = s scale_L     <x_(L-1)[c], g[j]>
    layer L - 1:  alpha = s scale_(L-1) <x_(L-2)[c], p[j]>
    layer L - 2:  alpha = s scale_(L-2) (scale_(L-1) <W_(L-1)[:, j], p (d[j] x_(L-3)[c])^T> + <x_(L-3)[c], v[j]>)
                  v = sum_r q_r <p, scale_(L-1) W_(L-1) u_r>

sums over the batch first: the tangent d[j] x[c] is multiplied by p before it is by W, so nothing of the size of a
layer's activations is made per probe. Making p is a step of reverse mode, through W_L and the norm and rectifier of
layer L - 1, once for all probes; so is v, through the norm of layer L - 2. That makes this fast, and is not forward
mode; `sidestep.gradients.tangents.chain.carry` and `torch.func.jvp` are, with the same result. Tangents of layers
before L - 2 have to be carried forward whole: they begin with the columns of W_(l+1) that are touched, and end at
layer L - 2.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from sidestep.gradients.tangents.chain import Bend, Bent, LayerEntries, SparseDirect, Step

__all__ = ["Columns", "columns_bytes", "columns_cost", "fold_columns"]

TILE = 1024  # more rows at once make nothing faster


@dataclass(frozen=True)
class Before:
    """What is kept of the layer before the last hidden one, in the dtype of products."""

    matrix: Tensor  # (units of the next layer, units), scale W of the next layer without the scale
    scale: float  # of the next layer
    inputs: Tensor  # (columns + 1, batch)
    diagonal: Tensor  # (units, batch)
    low: Tensor  # v, (units, batch)


@dataclass(frozen=True)
class Early:
    """What is kept of a layer before that one, whose tangents have to be carried."""

    step: Step
    following: Step
    diagonal: Tensor  # (units, batch)
    terms: list[tuple[Tensor, Tensor]]  # scale W u_r (units of the next layer, batch), and q_r (units, batch)

    def start(self, index: int, direct: SparseDirect, product: torch.dtype) -> Tensor:
        """Return the tangents at the next layer's outputs by what this layer's non-zeros move there."""
        found, inputs, (units, columns) = direct.layers[index], self.step.inputs, self.step.linear.shape
        probe = direct.probe[found.place]
        sizes = probe.bincount(minlength=direct.count)
        most = max(1, int(sizes.max()))
        if 4 * most > units:  # whole tangents are no more work
            tangent = direct.at(index, self.step, product)
            for bend in self.step.bends:
                bend.push(tangent)
            return self.following.through(tangent, product)
        rows = inputs.index_select(0, found.column.clamp(max=columns - 1))
        rows[found.column == columns] = 1
        rows.mul_(direct.sign[found.place, None]).mul_(self.step.linear.scale)
        slot = _slots(probe, sizes, most)
        moved = inputs.new_zeros(direct.count * most, inputs.shape[1], dtype=product)
        moved[slot] = (rows * self.diagonal.index_select(0, found.unit)).to(product)
        weight = cast(Tensor, self.following.linear.trits("weight", moved))
        onto = moved.new_zeros(direct.count * most, len(weight))
        onto[slot] = weight.T.index_select(0, found.unit)
        reached = onto.view(direct.count, most, -1).transpose(1, 2) @ moved.view(direct.count, most, -1)
        tangent = reached.to(inputs.dtype).mul_(self.following.linear.scale).transpose(0, 1)
        for left, right in self.terms:
            along = inputs.new_zeros(direct.count, inputs.shape[1])
            along.index_add_(0, probe, rows * right.index_select(0, found.unit))
            tangent.addcmul_(left[:, None], along)
        return tangent


@dataclass(frozen=True)
class Columns:
    """The shared part of all alignments with sparse probes: everything that does not depend on the probe."""

    early: list[Early]  # layers 1 to L - 3
    scales: list[float]
    last: Tensor  # g, (classes, batch)
    hidden: Tensor | None  # p, (units, batch)
    last_inputs: Tensor  # (columns + 1, batch)
    hidden_inputs: Tensor | None
    before: Before | None
    product: torch.dtype
    work: torch.dtype
    tile: int  # non-zeros whose rows are in work at once

    def alignments(self, direct: SparseDirect) -> Tensor:
        """Return alpha (probes,) of a chunk."""
        total = len(self.scales)
        alpha = torch.zeros(direct.count, dtype=self.work, device=self.last.device)
        rows = [(total - 1, self.last_inputs, self.last), (total - 2, self.hidden_inputs, self.hidden)]
        for index, inputs, field in rows:
            if inputs is not None and field is not None:
                self._add(alpha, direct, index, partial(self._dots, inputs, field))
        if self.before is not None:
            self._add(alpha, direct, total - 3, self._through_matrix)
        if self.early:
            alpha += self._carried(direct)
        return alpha

    def _add(self, alpha: Tensor, direct: SparseDirect, index: int, found: Callable[[LayerEntries], Tensor]) -> None:
        """Add what the non-zeros of one layer contribute, a tile after another."""
        entries = direct.layers[index]
        for begin in range(0, len(entries.place), self.tile):
            tile = entries.between(begin, begin + self.tile)
            values = found(tile).mul_(self.scales[index]).mul_(direct.sign[tile.place])
            alpha.index_add_(0, direct.probe[tile.place], values)

    def _dots(self, inputs: Tensor, field: Tensor, tile: LayerEntries) -> Tensor:
        return _row_dots(inputs.index_select(0, tile.column), field.index_select(0, tile.unit), self.work)

    def _through_matrix(self, tile: LayerEntries) -> Tensor:
        before, hidden = cast(Before, self.before), cast(Tensor, self.hidden)
        inputs = before.inputs.index_select(0, tile.column)
        low = _row_dots(before.low.index_select(0, tile.unit), inputs, self.work)
        moved = inputs.mul_(before.diagonal.index_select(0, tile.unit))  # (non-zeros, batch)
        summed = moved @ hidden.T  # (non-zeros, units of the next layer)
        through = _row_dots(summed, before.matrix.T.index_select(0, tile.unit), self.work)
        return through.mul_(before.scale).add_(low)

    def _carried(self, direct: SparseDirect) -> Tensor:
        """Return what the probes' parts before layer L - 2 add, (probes,)."""
        before, hidden, work = cast(Before, self.before), cast(Tensor, self.hidden), self.work
        tangent = self.early[0].start(0, direct, self.product)
        for index, layer in enumerate(self.early[1:], start=1):
            added = layer.start(index, direct, self.product)
            for bend in layer.step.bends:
                bend.push(tangent)
            tangent = layer.following.through(tangent, self.product).add_(added)
        tangent = tangent.to(self.product)
        low = torch.einsum("hkb,hb->k", tangent, before.low)
        units, probes, batch = tangent.shape
        moved = before.matrix @ tangent.mul_(before.diagonal[:, None]).reshape(units, -1)
        reached = moved.view(-1, probes, batch).mul_(hidden[:, None]).sum((0, 2), dtype=work)
        return reached.mul_(before.scale).add_(low.to(work))


def fold_columns(steps: list[Step], gradient: Tensor, product: torch.dtype, tile: int) -> Columns:
    """Return what all alignments share, from all steps of a chain and the loss gradient behind the last, in place."""
    for bend in reversed(steps[-1].bends):
        bend.push(gradient)
    scales, hidden, before = [step.linear.scale for step in steps], None, None
    if len(steps) > 1:
        last = cast(Tensor, steps[-1].linear.trits("weight", gradient))
        hidden = (last.T @ gradient).mul_(scales[-1])
        for bend in reversed(steps[-2].bends):
            bend.push(hidden)
    if len(steps) > 2:
        before = _fold_before(steps[-3], steps[-2], cast(Tensor, hidden), product)
    return Columns(
        [_fold_early(*pair, product) for pair in itertools.pairwise(steps[:-2])],
        scales,
        gradient.to(product),
        None if hidden is None else hidden.to(product),
        _with_ones(steps[-1].inputs, product),
        _with_ones(steps[-2].inputs, product) if len(steps) > 1 else None,
        before,
        product,
        gradient.dtype,
        min(max(tile, 1), TILE),
    )


def columns_bytes(sizes: list[tuple[int, int]], batch: int, work: torch.dtype) -> int:
    """Return about how many bytes `fold_columns` keeps and makes for linear layers of (units, columns)."""
    kept = sum(columns for _, columns in sizes[-3:]) + sum(3 * units for units, _ in sizes)
    kept += sum(8 * units for units, _ in sizes[:-3])
    made = 6 * max(units for units, _ in sizes)
    return (batch * (kept + made) + 2 * max(units * columns for units, columns in sizes)) * work.itemsize


def columns_cost(sizes: list[tuple[int, int]], density: float) -> tuple[float, float]:
    """Return multiplications per sample and probe by single non-zeros, and with whole tangents."""
    whole = sum(2.0 * units * columns for units, columns in sizes)
    non_zeros = [density * units * columns for units, columns in sizes]
    single = sum(200 * count for count in non_zeros)  # a non-zero reads and writes rows: as long as 200 products
    if len(sizes) > 2:
        single += non_zeros[-3] * sizes[-2][0]
    return single + sum(units * columns for units, columns in sizes[2:-1]), whole


def _fold_before(step: Step, following: Step, hidden: Tensor, product: torch.dtype) -> Before:
    diagonal, terms = _parts(step.bends, step.outputs)
    low = torch.zeros_like(diagonal)
    for left, right in terms:
        along = following.through(left, product).mul_(hidden).sum(0)  # (batch,)
        low.addcmul_(right, along)
    matrix = cast(Tensor, following.linear.trits("weight", hidden.new_empty(0, dtype=product)))
    inputs = _with_ones(step.inputs, product)
    return Before(matrix, following.linear.scale, inputs, diagonal.to(product), low.to(product))


def _fold_early(step: Step, following: Step, product: torch.dtype) -> Early:
    diagonal, terms = _parts(step.bends, step.outputs)
    return Early(step, following, diagonal, [(following.through(left, product), right) for left, right in terms])


def _slots(probe: Tensor, sizes: Tensor, most: int) -> Tensor:
    """Return a place of its own for each non-zero, where every probe has `most` of them in a row."""
    order = probe.argsort(stable=True)
    slot = torch.empty_like(probe)
    turn = torch.arange(len(probe), device=probe.device) - (sizes.cumsum(0) - sizes)[probe[order]]
    slot[order] = probe[order] * most + turn
    return slot


def _parts(bends: list[Bend], like: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return d (units, batch) and all pairs u_r, q_r of the Jacobian diag(d) + sum_r u_r q_r^T of some bends."""
    diagonal, terms = torch.ones_like(like), list[tuple[Tensor, Tensor]]()
    for bend in bends:
        if isinstance(bend, Bent):
            diagonal = diagonal * bend.mask
            terms = [(left * bend.mask, right) for left, right in terms]
            continue
        terms = [(bend.push(left), right) for left, right in terms]
        share = bend.inverse / -len(like)
        terms.append((share.expand_as(like).clone(), diagonal))
        terms.append((bend.outputs * share, bend.outputs * diagonal))
        diagonal = diagonal * bend.inverse
    return diagonal, terms


def _with_ones(inputs: Tensor, product: torch.dtype) -> Tensor:
    """Return (columns + 1, batch), rows one after another in memory, the last one the input of the bias."""
    wide = torch.empty(len(inputs) + 1, inputs.shape[1], dtype=product, device=inputs.device)
    wide[:-1] = inputs
    wide[-1] = 1
    return wide


def _row_dots(left: Tensor, right: Tensor, work: torch.dtype) -> Tensor:
    """Return the dot product of each row with its counterpart, (rows,); `left` is overwritten."""
    return left.mul_(right).sum(1, dtype=work)
