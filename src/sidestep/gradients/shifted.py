"""A net's weights shifted one at a time, while an operation of its forward pass reads them.

    w + s eps nu           made for each operation that is given w, and let go of after it

So a shifted pass needs the memory of inference, one weight and the signs, whatever the module's class: what is looked
at is not which layer owns a weight, but which operation is given it. A weight that stands in several places, or that a
module reads from another (`F.linear(x, self.embedding.weight)`), is shifted by the same noise in all of them.

Whole numbers of a quantised layer become floats a tile at a time, and the tile is shifted.

What operations of torch's do not show is found out: a weight that no operation was seen to read (in a scripted module)
is put in the place of the net's own for the whole pass, as all are in a net that writes into its weights as it runs.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sidestep.nets.quantized import dequantized, looked_up, tiles
from sidestep.nets.substituted import substituted
from sidestep.nets.trained import trained

__all__ = ["Direction", "at_shifted", "shifted_weight"]

T = TypeVar("T")

_CHUNK = 1 << 16  # elements of a weight that are shifted at a time
_KEPT = 1 << 16  # elements of shifted weights that are kept until the end of a pass, small ones before large ones
_SMALL = 1 << 14
_GETTERS = ("dtype", "shape", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu", "is_leaf", "grad",
            "is_nested", "is_sparse", "is_quantized", "is_meta", "is_mps", "grad_fn", "itemsize", "nbytes")  # fmt: skip
_DESCRIBING = frozenset(
    [getattr(Tensor, name).__get__ for name in _GETTERS if hasattr(Tensor, name)]
    + [Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_contiguous, Tensor.stride,
       Tensor.element_size, Tensor.__len__, Tensor.is_complex, Tensor.get_device, torch.is_floating_point]
)  # fmt: skip
_WRITING = frozenset(
    [
        *(Tensor.data.__get__, Tensor.data.__set__),  # type: ignore[attr-defined]
        *(Tensor.__setitem__, Tensor.__iadd__, Tensor.__isub__, Tensor.__imul__, Tensor.__itruediv__),
    ]
)

_OF_WHOLE_NUMBERS = frozenset([dequantized, looked_up])

# Names of weights that no operation was seen to read, by net: found out by a pass, and right whenever it is forgotten.
_unseen: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


class Direction(Protocol):
    """A direction of all weights, nu."""

    def of(self, name: str, like: Tensor) -> Tensor:
        """Return the part of a weight's name, in the shape of `like`."""
        ...

    def elements(self, name: str, like: Tensor, start: int, count: int) -> Tensor:
        """Return `count` elements of it from `start` on, one row after another; float32, on the device of `like`."""
        ...


def at_shifted(net: nn.Module, direction: Direction, step: float, run: Callable[[], T], names: Any = None) -> T:
    """Return what `run` gives, which calls the net, with `w + step nu` in place of every trained weight w.

    The net's own weights are only read. `run` is called once more where an operation did not show which weights it
    reads; so it has to give the same twice.

    Args:
        net: its frozen weights stay.
        direction: nu.
        step: the size of the noise, of either sign.
        run: without arguments.
        names: id -> name of a weight in the direction, where the net is a part of a larger one.
    """
    every = trained(net)
    weights = {name: weight for name, weight in every.items() if weight.is_floating_point()}
    hidden = _unseen.setdefault(net, set()) & weights.keys()
    while True:
        named = {id(weight): (names[id(weight)] if names else name) for name, weight in every.items()}
        whole = {
            name: shifted_weight(weights[name], direction, named[id(weights[name])], step) for name in sorted(hidden)
        }
        mode = _Shifting({id(w): w for w in weights.values()}, named, direction, step)
        with substituted(net, whole) if whole else nullcontext(), mode:
            found = run()
        missed = weights.keys() if mode.wrote else {n for n, w in weights.items() if id(w) not in mode.seen}
        if missed <= hidden:
            return found
        del found, whole
        hidden = hidden | missed
        _unseen[net] |= hidden


def shifted_weight(weight: Tensor, direction: Direction, name: str, step: float) -> Tensor:
    """Return `w + step nu`, where nu is the part of the direction that has this name."""
    noise, size, sign = direction.of(name, weight), abs(step), math.copysign(1, step)
    weight = weight.detach()
    if not weight.is_contiguous() or weight.numel() <= _CHUNK:
        return torch.add(weight, noise.to(weight.dtype, copy=True).mul_(size), alpha=sign)
    found = torch.empty_like(weight)
    parts = (weight.view(-1), noise.reshape(-1), found.view(-1))
    for own, along, out in zip(*(part.split(_CHUNK) for part in parts), strict=True):
        torch.add(own, along.to(own.dtype, copy=True).mul_(size), alpha=sign, out=out)
    return found


class _Shifting(TorchFunctionMode):
    """Gives every operation that is given one of the weights the shifted one."""

    def __init__(
        self, weights: Mapping[int, nn.Parameter], names: Mapping[int, str], direction: Direction, step: float
    ) -> None:
        super().__init__()
        self._weights, self._names, self._direction, self._step = weights, names, direction, step
        self._kept: dict[int, Tensor] = {}
        self._room = _KEPT
        self.seen: set[int] = set()
        self.wrote = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        if func in _DESCRIBING:
            return func(*args, **(kwargs or {}))
        if func in _OF_WHOLE_NUMBERS and id(args[0]) in self._names:
            return self._whole_numbers(func, *args)
        given = tuple(map(self._replaced, args))
        named = {key: self._replaced(value) for key, value in kwargs.items()} if kwargs else {}
        if (given and given[0] is not args[0] and _writes(func)) or (
            "out" in named and named["out"] is not kwargs["out"]
        ):
            self.wrote = True
        return func(*given, **named)

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._shifted(value) if id(value) in self._weights else value
        if type(value) in (list, tuple):
            return type(value)(map(self._replaced, value))
        return value

    def _whole_numbers(self, func: Any, weight: Tensor, scale: Tensor, *where: Any) -> Tensor:
        """Return what the function makes of the rows of a quantised layer, shifted."""
        found: Tensor = func(weight, scale, *where)
        name, size, wide = self._names[id(weight)], math.copysign(1, self._step), weight[0].numel()
        if func is dequantized:
            noise = self._direction.elements(name, weight, where[0] * wide, found.numel()).mul_(abs(self._step))
            return found.add_(noise.view(found.shape), alpha=size)
        rows, indices = found.view(-1, wide), where[0].reshape(-1)
        for tile in tiles(weight):
            inside = ((indices >= tile.start) & (indices < tile.stop)).nonzero()[:, 0]
            if len(inside):
                noise = self._direction.elements(name, weight, tile.start * wide, (tile.stop - tile.start) * wide)
                noise = noise.mul_(abs(self._step)).view(-1, wide)[indices[inside] - tile.start]
                rows.index_add_(0, inside, noise.to(rows.dtype), alpha=size)
        return found

    def _shifted(self, weight: Tensor) -> Tensor:
        key = id(weight)
        self.seen.add(key)
        if key in self._kept:
            return self._kept[key]
        found = shifted_weight(weight, self._direction, self._names[key], self._step)
        if weight.numel() <= min(self._room, _SMALL):
            self._kept[key], self._room = found, self._room - weight.numel()
        return found


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return func in _WRITING or (name.endswith("_") and not name.endswith("__"))
