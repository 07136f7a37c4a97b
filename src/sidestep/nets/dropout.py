"""Dropout whose masks come from a generator that the caller names, so that they repeat and cost little."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.dropout_masks import dropout_mask, dropout_scale

__all__ = ["Dropout", "draw_from_torch", "map_masks", "masks_from", "repeatable"]

Given = torch.Generator | Callable[[], torch.Generator]

_generator: ContextVar[Given | None] = ContextVar("dropout_generator", default=None)


class masks_from:  # noqa: N801  (a class, no generator: every step of a small net enters it)
    """Let every `Dropout` that runs inside (in this thread) draw its masks from `generator`, in call order.

    A function that makes the generator is called at the first draw: most nets draw none, and a step feels the making.
    """

    def __init__(self, generator: Given) -> None:
        self._given = generator

    def __enter__(self) -> None:
        """Name the generator."""
        self._token = _generator.set(self._given)

    def __exit__(self, *error: object) -> None:
        """Name the one before it."""
        _generator.reset(self._token)


def _named() -> torch.Generator | None:
    """Return the generator that was named last, made if it was not yet."""
    given = _generator.get()
    if given is not None and not isinstance(given, torch.Generator):
        given = given()
        _generator.set(given)
    return given


def _torch_generator(device: torch.device) -> torch.Generator:
    """Return the generator that torch itself draws from on a device, or one that is seeded by it."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    generator = torch.Generator(device)
    generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_(generator=torch.default_generator)))
    return generator


def repeatable(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap `function` so that later calls draw the masks of the first: activation checkpointing computes twice.

    The first call moves the generator on as if it were not wrapped; later calls, from whatever thread, leave it alone.
    """
    generator = _named()
    if generator is None:
        return function
    state, first = generator.get_state(), True

    def run(*inputs: Tensor) -> Tensor:
        nonlocal first
        twin = torch.Generator(generator.device)
        twin.set_state(state)
        with masks_from(twin):
            output = function(*inputs)
        if first:
            generator.set_state(twin.get_state())
            first = False
        return output

    return run


def map_masks(shape: Sequence[int], rate: float, generators: Sequence[torch.Generator], dtype: torch.dtype) -> Tensor:
    """Return masks of feature maps, (batch, generators * channels, height, width): each generator's own, side by side.

    Drawn and laid out channels last, whatever the layout of the values, so that a mask depends on its generator alone.

    Args:
        shape: of one generator's values, (batch, channels, height, width).
        rate: the share of zeros.
        generators: one for each unit.
        dtype: of the values.
    """
    batch, channels, height, width = shape
    drawn = [dropout_mask((batch, height, width, channels), rate, one, dtype) for one in generators]
    return (drawn[0] if len(drawn) == 1 else torch.cat(drawn, dim=3)).permute(0, 3, 1, 2)


class _RectifiedDropout(torch.autograd.Function):
    """`y = mask * max(x, 0)`, in place. Only y is kept for the way back: it is positive where x and the mask are."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor, scale: float) -> Tensor:
        values.relu_().mul_(mask)
        ctx.mark_dirty(values)
        ctx.save_for_backward(values)
        ctx.scale = scale
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], kept, 0).mul_(ctx.scale), None, None


class Dropout(nn.Module):
    """Set each element to 0 with probability `rate` and scale the others by 1 / (1 - rate), while training.

    The difference to `torch.nn.Dropout`: the mask comes from the generator named by `masks_from`, and costs 16 random
    bits an element. Outside of it, and in a module given as `module=` (`from_torch`), it comes from torch's generator,
    which `torch.utils.checkpoint` puts back before it computes anew. Unlike torch's layer it cannot be mapped by
    `torch.func.vmap(randomness="different")` or exported in training mode.

    Args:
        rate: the share of zeros.
        rectify: first replace negative values by 0 (ReLU), in place. Done in one, neither the mask nor what ReLU gave
            is kept for the way back.
    """

    from_torch = False

    def __init__(self, rate: float = 0.2, rectify: bool = False) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"a dropout rate must lie in [0, 1), got {rate}")
        self.rate, self.rectify = rate, rectify

    def forward(self, values: Tensor) -> Tensor:
        """Return the masked values, of the shape given; in evaluation they pass unmasked."""
        if not self.training or self.rate == 0:
            return values.relu_() if self.rectify else values
        generator = (None if self.from_torch else _named()) or _torch_generator(values.device)
        if values.dim() == 4:
            mask = map_masks(values.shape, self.rate, [generator], values.dtype)
        else:
            mask = dropout_mask(values.shape, self.rate, generator, values.dtype)
        return self.masked(values, mask)

    def masked(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return the values under a mask of `dropout_mask`, rectified first where that is wanted."""
        if not self.rectify:
            return values * mask
        if torch.compiler.is_compiling():  # which fuses by itself
            return values.relu() * mask
        return _RectifiedDropout.apply(values, mask, dropout_scale(self.rate, values.dtype))

    def extra_repr(self) -> str:
        """Return the rate, for printing."""
        return f"rate={self.rate}, rectify={self.rectify}"


def draw_from_torch(module: nn.Module) -> None:
    """Let every `Dropout` of a user's module draw from torch's generator, as the rest of it does."""
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.from_torch = True
