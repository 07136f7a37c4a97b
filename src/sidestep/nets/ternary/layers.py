"""Layers whose only state is trits.

    y = scale (W x + b)      W and b in {-1, 0, 1}, scale = sqrt(1.5 / fan-in), fixed

With uniform trits, of variance 2/3, that scale keeps the variance of x. Weights lie in memory as int8 while a net is
trained; on disk, and after `pack_layers`, as five trits to a byte. Source: Brickner, "noise_step" (2024).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.trained import trained
from sidestep.noise import Noise
from sidestep.ternary import pack_trits, packed_bytes, unpack_trits

__all__ = [
    "TernaryConv2d",
    "TernaryEmbedding",
    "TernaryLayer",
    "TernaryLinear",
    "pack_layers",
    "packed_size",
    "ternary_parameters",
    "trit_count",
    "unpack_layers",
]


class TernaryLayer(nn.Module):
    """A layer with a weight, and perhaps a bias, of trits; the base of the three kinds."""

    def __init__(self, shape: tuple[int, ...], bias: int, scale: float) -> None:
        super().__init__()
        if min(shape) < 1:
            raise InputError(f"a ternary layer needs one input and one output or more, got weights of shape {shape}")
        self.shape, self.scale = shape, scale
        self.weight: Tensor | None = _trits(shape)
        self.bias: Tensor | None = _trits((bias,)) if bias else None
        self.packed: dict[str, Tensor] = {}  # name -> bytes, once the layer is packed

    def draw(self, noise: Noise) -> None:
        """Draw weight and bias anew, uniform on {-1, 0, 1}; `noise` stands at a substream of this layer's own."""
        for name in ("weight", "bias"):
            parameter = getattr(self, name)
            if parameter is not None:
                drawn = noise.stream(name).integers(parameter.numel(), 3, device=parameter.device).sub_(1)
                parameter.data.copy_(drawn.view_as(parameter))

    def trits(self, name: str, like: Tensor) -> Tensor | None:
        """Return `weight` or `bias` in the dtype of `like`, unpacked for this one use if the layer is packed."""
        if name in self.packed:
            shape = self.shape if name == "weight" else self.shape[:1]
            packed = self.packed[name]
            return unpack_trits(packed, math.prod(shape)).view(shape).to(device=like.device, dtype=like.dtype)
        parameter: Tensor | None = getattr(self, name)
        return None if parameter is None else parameter.to(like.dtype)

    def pack(self) -> None:
        """Keep the trits as five to a byte from now on; such a layer computes, but cannot be trained."""
        for name in ("weight", "bias"):
            parameter = getattr(self, name)
            if parameter is not None:
                self.packed[name] = pack_trits(parameter)
                setattr(self, name, None)

    def unpack(self) -> None:
        """Keep the trits as int8 parameters again, as they are trained."""
        for name, packed in self.packed.items():
            shape = self.shape if name == "weight" else self.shape[:1]
            trits = unpack_trits(packed, math.prod(shape)).view(shape)
            setattr(self, name, nn.Parameter(trits, requires_grad=False))
        self.packed = {}

    def _apply(self, fn: Any, recurse: bool = True) -> "TernaryLayer":
        super()._apply(fn, recurse)
        self.packed = {name: fn(packed) for name, packed in self.packed.items()}
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name in ("weight", "bias"):
            if name in self.packed:
                destination[prefix + name] = self.packed[name]
            elif getattr(self, name) is not None:
                destination[prefix + name] = pack_trits(getattr(self, name))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        _, strict, missing, unexpected, errors = rest
        known = {name for name in ("weight", "bias") if name in self.packed or getattr(self, name) is not None}
        for name in sorted(known):
            key = prefix + name
            if key not in state_dict:
                missing.append(key)
                continue
            shape = self.shape if name == "weight" else self.shape[:1]
            try:
                trits = unpack_trits(state_dict[key], math.prod(shape))
            except InputError as error:
                errors.append(f"{key}: {error}")
                continue
            if name in self.packed:
                self.packed[name] = state_dict[key].detach().to(self.packed[name].device, copy=True)
            else:
                getattr(self, name).data.copy_(trits.view(shape))
        if strict:
            own = (key for key in state_dict if key.startswith(prefix) and "." not in key[len(prefix) :])
            unexpected += [key for key in own if key[len(prefix) :] not in known]

    def extra_repr(self) -> str:
        """Return the shape, for printing."""
        return f"{tuple(self.shape)}, bias={self.bias is not None or 'bias' in self.packed}, scale={self.scale:.4g}"


class TernaryLinear(TernaryLayer):
    """`y = scale (W x + b)`; (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, scale: float | None = None) -> None:
        super().__init__((outputs, inputs), outputs if bias else 0, _scale(scale, inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's outputs."""
        weight, bias = self.trits("weight", inputs), self.trits("bias", inputs)
        assert weight is not None
        return F.linear(inputs, weight, bias) * self.scale


class TernaryConv2d(TernaryLayer):
    """`y = scale (W * x + b)`; (batch, channels, height, width) -> (batch, outputs, height', width')."""

    def __init__(  # long: what torch's own layer takes
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        bias: bool = False,
        scale: float | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
    ) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        fan_in = inputs // groups * height * width
        super().__init__((outputs, inputs // groups, height, width), outputs if bias else 0, _scale(scale, fan_in))
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's outputs."""
        weight, bias = self.trits("weight", inputs), self.trits("bias", inputs)
        assert weight is not None
        weight = weight * self.scale  # not the output, which is much larger
        bias = None if bias is None else bias * self.scale
        return F.conv2d(inputs, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class TernaryEmbedding(TernaryLayer):
    """Rows of trits; indices (...) -> (..., width). Its scale is sqrt(1.5), which gives rows of variance one."""

    def __init__(self, rows: int, width: int, scale: float | None = None) -> None:
        super().__init__((rows, width), 0, _scale(scale, 1))

    def forward(self, indices: Tensor) -> Tensor:
        """Return the rows, in float32, or in the dtype of what stands in the weight's place."""
        like = torch.empty(0, device=indices.device)
        if self.weight is not None and self.weight.is_floating_point():
            like = self.weight
        weight = self.trits("weight", like)
        assert weight is not None
        return F.embedding(indices, weight) * self.scale


def ternary_parameters(net: nn.Module) -> dict[str, Tensor]:
    """Return name -> int8 parameter of all ternary layers, in the order in which positions of weights are counted.

    Frozen floats are left out: they are no part of what is trained or logged.

    Raises InputError if the net has other parameters that are trained, or no trits.
    """
    found: dict[str, Tensor] = dict(trained(net))
    wrong = [name for name, parameter in found.items() if parameter.dtype != torch.int8]
    if wrong:
        raise InputError(
            f"only trits are allowed, but {wrong[0]} has {found[wrong[0]].dtype} values"
            f"{f' ({len(wrong)} such parameters)' if len(wrong) > 1 else ''}: make the net with "
            "sidestep.nets.ternarize(net, Noise(0)), which draws trits in place of the weights"
        )
    if not found:
        raise InputError("the net has no ternary weights that could be trained")
    return found


def trit_count(net: nn.Module) -> int:
    """Return how many weights and biases the net's ternary layers have."""
    return sum(trits.numel() for trits in ternary_parameters(net).values())


def pack_layers(net: nn.Module) -> nn.Module:
    """Pack every ternary layer of `net`, in place: 1.6 bits a weight, for inference. Returns the net."""
    for layer in net.modules():
        if isinstance(layer, TernaryLayer):
            layer.pack()
    return net


def unpack_layers(net: nn.Module) -> nn.Module:
    """Undo `pack_layers`, in place. Returns the net."""
    for layer in net.modules():
        if isinstance(layer, TernaryLayer):
            layer.unpack()
    return net


def packed_size(net: nn.Module) -> int:
    """Return the bytes that the net's trits take, five to a byte, each layer on its own."""
    return sum(packed_bytes(parameter.numel()) for parameter in ternary_parameters(net).values())


def _trits(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.int8), requires_grad=False)


def _scale(given: float | None, fan_in: int) -> float:
    return math.sqrt(1.5 / max(1, fan_in)) if given is None else given  # without inputs, the layer refuses
