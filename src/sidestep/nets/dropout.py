"""Dropout whose masks come from a generator that the caller names, so that they repeat and cost little."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.noise import dropout_mask

__all__ = ["Dropout", "masks_from", "repeatable"]

_generator: ContextVar[torch.Generator | None] = ContextVar("dropout_generator", default=None)


@contextmanager
def masks_from(generator: torch.Generator) -> Iterator[None]:
    """Let every `Dropout` that runs inside (in this thread) draw its masks from `generator`, in call order."""
    token = _generator.set(generator)
    try:
        yield
    finally:
        _generator.reset(token)


def repeatable(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap `function` so that later calls draw the masks of the first: activation checkpointing computes twice.

    The first call moves the generator on as if it were not wrapped; later calls, from whatever thread, leave it alone.
    """
    generator = _generator.get()
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


class Dropout(nn.Module):
    """Set each element to 0 with probability `rate` and scale the others by 1 / (1 - rate), while training.

    The difference to `torch.nn.Dropout`: the mask comes from the generator named by `masks_from`, not from a hidden
    global state, and costs 16 random bits an element.
    """

    def __init__(self, rate: float = 0.2) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"a dropout rate must lie in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Return the masked values, of the shape given; in evaluation they pass unchanged."""
        if not self.training or self.rate == 0:
            return values
        generator = _generator.get()
        if generator is None:
            raise InputError("Dropout in training needs a generator: run it inside `with masks_from(generator):`")
        mask = dropout_mask(values.shape, self.rate, generator, values.dtype)
        if values.is_contiguous(memory_format=torch.channels_last):  # a mask has no order: lay it out as the values
            batch, channels, height, width = values.shape
            mask = mask.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return values * mask

    def extra_repr(self) -> str:
        """Return the rate, for printing."""
        return f"rate={self.rate}"
