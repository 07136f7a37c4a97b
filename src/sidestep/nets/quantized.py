"""Layers whose weights are whole numbers with a scale for each row, held as int8 and never as floats.

    w_rj = s_r q_rj          q in {-limit .. limit}, limit = 2^(bits - 1) - 1: 127, 7 or 1 (trits); s_r > 0, fixed

A pass makes floats of one tile of rows at a time, so that it takes the memory of the whole numbers, its activations and
a tile. `quantize` puts such layers in the place of a module's own.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from sidestep.errors import InputError

__all__ = [
    "TILE",
    "QuantizedConv2d",
    "QuantizedEmbedding",
    "QuantizedLayer",
    "QuantizedLinear",
    "dequantized",
    "looked_up",
    "quantized_weights",
    "tiles",
]

TILE = 1 << 18  # weights that are floats at a time


class QuantizedLayer(nn.Module):
    """A layer with weights of whole numbers; the base of the three kinds.

    weight: q, int8, (rows, ...). No gradient moves it: rules that round their steps do.
    scale: s, (rows,), a parameter that stays.
    bias: as in the float layer, float and trained as before.
    limit: the largest of |q|.
    moves: whether rules may change q; the weights of a layer that was frozen stay.
    """

    def __init__(self, weight: nn.Parameter, scale: nn.Parameter, bias: Tensor | None, bits: int) -> None:
        super().__init__()
        self.weight, self.scale, self.bias = weight, scale, bias
        self.limit, self.moves = 2 ** (bits - 1) - 1, True

    def extra_repr(self) -> str:
        """Return the shape, for printing."""
        return f"{tuple(self.weight.shape)}, limit={self.limit}, bias={self.bias is not None}"

    def _tiles(self, like: Tensor) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yield some rows at a time: which, as floats, and their biases."""
        bias = self.bias
        for rows in tiles(self.weight):
            part = dequantized(self.weight, self.scale, rows.start, rows.stop).to(like.dtype)
            yield rows, part, None if bias is None else bias[rows]


class QuantizedLinear(QuantizedLayer):
    """`y = W x + b`; (..., inputs) -> (..., outputs). conv1d: the class of transformers' that it replaced, if one."""

    conv1d: Any = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's outputs."""
        parts = ((rows, F.linear(inputs, weight, bias)) for rows, weight, bias in self._tiles(inputs))
        return _joined(parts, len(self.weight), inputs, dim=-1)


class QuantizedConv2d(QuantizedLayer):
    """`y = W * x + b`; (..., channels, height, width) -> (..., outputs, height', width')."""

    def __init__(  # long: what torch's own layer takes
        self, weight: nn.Parameter, scale: nn.Parameter, bias: Tensor | None, bits: int, layer: nn.Conv2d
    ) -> None:
        super().__init__(weight, scale, bias, bits)
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's outputs."""
        where: Any = (self.stride, self.padding, self.dilation)  # numbers, pairs or a word
        if self.groups > 1:  # whose filters see other channels each
            weight = dequantized(self.weight, self.scale, 0, len(self.weight)).to(inputs.dtype)
            return F.conv2d(inputs, weight, self.bias, *where, self.groups)  # type: ignore[call-overload]
        parts = ((rows, F.conv2d(inputs, weight, bias, *where)) for rows, weight, bias in self._tiles(inputs))
        return _joined(parts, len(self.weight), inputs, dim=-3)


class QuantizedEmbedding(QuantizedLayer):
    """Rows of whole numbers; indices (...) -> (..., width). padding_idx: that of the nn.Embedding, without effect."""

    padding_idx: int | None = None

    def forward(self, indices: Tensor) -> Tensor:
        """Return the rows."""
        return looked_up(self.weight, self.scale, indices)


def dequantized(weight: Tensor, scale: Tensor, first: int, last: int) -> Tensor:
    """Return the rows `first` to `last` - 1 as floats, `s_r q_rj`; a mode that shifts weights shifts these.

    >>> dequantized(torch.tensor([[1, -2], [3, 0]], dtype=torch.int8), torch.tensor([0.5, 2.0]), 1, 2)
    tensor([[6., 0.]])
    """
    if has_torch_function((weight, scale)):
        found: Tensor = handle_torch_function(dequantized, (weight, scale), weight, scale, first, last)
        return found
    rows = weight[first:last].to(scale.dtype)
    return rows.mul_(scale[first:last].view(-1, *[1] * (weight.ndim - 1)))


def looked_up(weight: Tensor, scale: Tensor, indices: Tensor) -> Tensor:
    """Return rows as floats by their numbers, (...) -> (..., width); a mode that shifts weights shifts these.

    >>> looked_up(torch.tensor([[1, -2], [3, 0]], dtype=torch.int8), torch.tensor([0.5, 2.0]), torch.tensor([1, 1]))
    tensor([[6., 0.],
            [6., 0.]])
    """
    if has_torch_function((weight, scale, indices)):
        found: Tensor = handle_torch_function(looked_up, (weight, scale), weight, scale, indices)
        return found
    return F.embedding(indices, weight).to(scale.dtype).mul_(scale[indices].unsqueeze(-1))


def tiles(weight: Tensor, most: int = TILE) -> Iterator[slice]:
    """Yield ranges of rows with at most so many weights each, or of one row.

    >>> [(rows.start, rows.stop) for rows in tiles(torch.empty(5, 1 << 15), 1 << 16)]
    [(0, 2), (2, 4), (4, 5)]
    """
    rows = len(weight)
    size = max(1, most * rows // max(1, weight.numel()))
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))


def quantized_weights(net: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter, int]]:
    """Return name -> (q, s, limit) of the quantised layers that may move; a shared weight once, by its first name."""
    layers = {id(layer.weight): layer for layer in net.modules() if isinstance(layer, QuantizedLayer) and layer.moves}
    named = ((name, weight) for name, weight in net.named_parameters() if id(weight) in layers) if layers else ()
    return {name: (weight, layers[id(weight)].scale, layers[id(weight)].limit) for name, weight in named}


def _joined(parts: Iterator[tuple[slice, Tensor]], size: int, inputs: Tensor, dim: int) -> Tensor:
    """Return outputs that were made some rows at a time; where no gradient is taken, each is let go of at once."""
    if torch.is_grad_enabled() and inputs.requires_grad:
        return torch.cat([part for _, part in parts], dim)
    whole: Tensor | None = None
    for rows, part in parts:
        if part.shape[dim] == size:
            return part
        if whole is None:
            shape = list(part.shape)
            shape[dim] = size
            whole = part.new_empty(shape)
        whole.narrow(dim, rows.start, rows.stop - rows.start).copy_(part)
    if whole is None:
        raise InputError("a quantised layer needs one output or more")
    return whole
