"""Blocks of which some may be on other ranks: which are here, and how predictions pass from rank to rank."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sidestep.data.share import WHOLE, Share
from sidestep.errors import InputError
from sidestep.nets.parallel import run_units

__all__ = ["Passed", "SpreadBlocks", "building", "moved"]

Passed: TypeAlias = Callable[[int, Tensor | None], Tensor]

_BUILT: ContextVar[tuple[Share, Callable[[nn.Module], str]]] = ContextVar("built")


@contextmanager
def building(share: Share, digest: Callable[[nn.Module], str]) -> Iterator[None]:
    """Let nets that are built meanwhile have the weights of this share of their blocks alone.

    Every block is drawn, so that all have the bits that they have in one process, but one after another: those of other
    ranks are let go before the next is made. `digest` gives what a net keeps of each block as drawn, in `drawn`.
    """
    token = _BUILT.set((share, digest))
    try:
        yield
    finally:
        _BUILT.reset(token)


def moved(net: nn.Module, device: torch.device) -> nn.Module:
    """Return the net on a device, where weights that are elsewhere still have a shape alone, and no memory."""
    for parameter in net.parameters():
        if parameter.numel() > 1 and not any(parameter.stride()):
            _let_go(parameter, device)
    return net.to(device)


def _let_go(parameter: nn.Parameter, device: torch.device) -> None:
    parameter.data = parameter.new_zeros((), device=device).expand(parameter.shape)


class SpreadBlocks(nn.Module):
    """What nets have in common whose blocks train apart, each here or on another rank."""

    kind = "block"  # what one is called

    def __init__(self) -> None:
        super().__init__()
        self._elsewhere: frozenset[int] = frozenset()  # blocks whose weights other ranks hold
        self._passed: Passed | None = None
        self._strides: dict[str, tuple[int, ...]] = {}  # of those, by index and name, as they were drawn
        self.drawn: list[str] = []  # digests of the blocks before the first step, where not all of them are here

    def _own(self, blocks: Iterable[nn.Module], count: int) -> nn.ModuleList:
        """Return `count` blocks, made one by one, of which those of other ranks (`building`) have no weights."""
        share, digest = _BUILT.get((WHOLE, None))
        own, found = share.units(count), nn.ModuleList()
        for index, block in enumerate(blocks):
            if digest is not None:
                self.drawn.append(digest(block))
            for name, parameter in block.named_parameters() if index not in own else ():
                self._strides[f"{index}.{name}"] = parameter.stride()
                _let_go(parameter, parameter.device)
            found.append(block)
        self._elsewhere = frozenset(range(count)) - frozenset(own)
        return found

    @property
    def count(self) -> int:
        """The number of blocks, wherever they are."""
        raise NotImplementedError

    def hold(self, own: Collection[int]) -> None:
        """Note which blocks are here; of the others only the shape is known, and other ranks have the weights."""
        self._elsewhere = frozenset(range(self.count)) - frozenset(own)

    def laid_out(self, name: str, value: Tensor) -> Tensor:
        """Return the value of a parameter that was elsewhere as such a one lies in memory, which sums are rounded by.

        Args:
            name: in the net, say blocks.3.norm.weight.
            value: of it, however it lies.
        """
        strides = self._strides.get(name.partition(".")[2], value.stride())
        if strides == value.stride():
            return value
        return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device).copy_(value)

    @contextmanager
    def spread(self, passed: Passed) -> Iterator[None]:
        """Predict with all blocks, some of which are elsewhere: `passed(index, logits)` is called for each, in turn.

        It is given the logits of a block that is here, or None, and returns those of the rank that has it. Every rank
        must predict the same inputs.
        """
        self._passed = passed
        try:
            yield
        finally:
            self._passed = None

    def features_here(self, features: Callable[[int], Tensor], inputs: Tensor, together: bool) -> list[Tensor]:
        """Return `features(index)` of every block that is here, and of those elsewhere rows of length 0."""
        here = [index for index in range(self.count) if index not in self._elsewhere]
        found = run_units([partial(features, index) for index in here], inputs.device, together)
        if not self._elsewhere:
            return found
        by_block = dict(zip(here, found, strict=True))
        return [by_block.get(index, inputs.new_empty(len(inputs), 0)) for index in range(self.count)]

    def logits_anywhere(self, index: int, logits: Callable[[], Tensor]) -> Tensor:
        """Return what block `index` gives, by `logits()` where it is here.

        Raises:
            InputError: for a block that is elsewhere, unless the ranks predict together (`spread`).
        """
        here = index not in self._elsewhere
        if here and self._passed is None:
            return logits()
        if self._passed is None:
            raise InputError(
                f"{self.kind} {index + 1} is trained by another process, which alone has its weights, so nothing can "
                "be predicted here before the end of the run; train with --split batch to predict in between"
            )
        return self._passed(index, logits() if here else None)
