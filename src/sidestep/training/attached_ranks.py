"""A step of the user's own loop in equal parts: those of this rank, exchanged with those of the others.

As `sidestep.training.parts` has it for `train`, but the batch is the user's: each rank is given its own part of it, or
the whole of it where the probes are divided. Rank 0 alone writes logs and checkpoints.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.data.share import Division, Share
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.notices import tell
from sidestep.rules.protocol import Rule
from sidestep.training.attached_files import Saved, opened
from sidestep.training.attached_rule import Attached
from sidestep.training.exchange import PartSum
from sidestep.training.pieces import broadcast_tensors
from sidestep.training.ranks import check_same_everywhere
from sidestep.update import Update
from sidestep.version import __version__
from sidestep.wording import counted
from sidestep.world import World, world_here

__all__ = ["AttachedRanks", "ranks_of"]


class AttachedRanks:
    """The parts of a step that are this rank's, and the other ranks.

    own: the numbers of its parts.
    """

    def __init__(self, world: World, of: Division, count: int) -> None:
        self.world, self.of, self.count = world, of, count
        self.own = range(world.rank, count, world.size)
        self._inside = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell the other ranks of an error that ends the block, once where blocks lie in one another."""
        if self._inside:
            yield
            return
        self._inside = True
        try:
            with self.world.together():
                yield
        finally:
            self._inside = False

    def rows(self, total: int) -> Tensor:
        """Return the numbers of the rows that are this rank's in a batch of so many, int64."""
        if self.of != "batch":
            return torch.arange(total)
        each = [Share("batch", index, self.count).examples(total) for index in self.own]
        return torch.cat([torch.arange(part.start, part.stop) for part in each])

    def estimate(self, attached: Attached, arguments: tuple[Any, ...], noise: Noise) -> Update:
        """Return the update of the whole step, the same on every rank."""
        total = PartSum()
        for index, given in zip(self.own, self._given(arguments), strict=True):
            common = self.of == "probes" or attached.common_noise
            drawn = noise if common else noise.stream(f"part {index}")
            total.add(attached.estimate(given, drawn, Share(self.of, index, self.count)), index)
        found, _ = total.exchanged(self.world, self.count, 0)
        return found

    def _given(self, arguments: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Return what each of this rank's parts is called with."""
        count = len(self.own)
        if self.of == "probes" or count == 1:
            return [arguments] * count
        if all(callable(each) and not isinstance(each, Tensor) for each in arguments):
            if len(arguments) != count:
                raise InputError(
                    f"this rank has {counted(count, 'part')} of a step (shares = {self.count}), each of which has a "
                    f"loss of its own: call step with {counted(count, 'function')}, got {len(arguments)}"
                )
            return [(each,) for each in arguments]
        pieces = [_cut(each, count) for each in arguments]
        return list(zip(*pieces, strict=True))

    def opened(self, folder: Path, own: Mapping[str, Any]) -> Saved:
        """Return what rank 0 finds in a folder of `Step.save`."""
        if self.world.size == 1:
            return opened(folder, own)
        tensors, record = opened(folder, own) if self.world.leads else ({}, {})
        found = broadcast_tensors(self.world, tensors)
        return found, json.loads(self.world.broadcast(json.dumps(record).encode()))

    def check_same(self, model: nn.Module, record: Mapping[str, Any]) -> None:
        """Raise InputError, on every rank, unless all are about to train the same model by the same rule."""
        versions = {"sidestep": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
        own = {**record, "split": self.of, "shares": self.count, "versions": versions}
        check_same_everywhere(self.world, own, model, tell)


def ranks_of(rule: Rule, split: Division | None, shares: int | None) -> AttachedRanks | None:
    """Return how a step is divided among the ranks of this process's world; None for one that is not.

    Raises:
        InputError: if the rule's steps cannot be divided so, or there are more ranks than parts.
    """
    world = world_here()
    if world.size == 1 and shares is None and split is None:
        return None
    divides = {name: count for name, count in getattr(rule, "divides", {}).items() if name in ("batch", "probes")}
    if not divides:
        raise InputError(
            f"a step of {getattr(rule, 'name', type(rule).__name__)} with these options is one piece: attach it in one "
            "process"
        )
    of: Division = split or ("batch" if "batch" in divides else "probes")
    if of not in divides:
        raise InputError(
            f"split = {of} is not for {rule.name} with these options, whose steps are divided by {' or '.join(divides)}"
        )
    count = world.size if shares is None else shares
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"shares must be a whole number from 1, got {shares!r}")
    if of == "probes" and divides[of] % count:
        raise InputError(
            f"a step has {divides[of]:,} probes, which cannot be divided into {counted(count, 'equal part')}: change "
            "their number, or give other shares"
        )
    if world.size > count:
        raise InputError(
            f"there are {counted(world.size, 'rank')}, and a step has {counted(count, 'part')}, one or more for each; "
            "give more shares, or start fewer ranks"
        )
    return AttachedRanks(world, of, count)


def _cut(rows: Any, count: int) -> list[Any]:
    """Return equal parts of a batch's inputs or targets, a tensor or a mapping of them, in their order."""
    if isinstance(rows, Mapping):
        parts = {name: _cut(value, count) for name, value in rows.items()}
        return [{name: values[place] for name, values in parts.items()} for place in range(count)]
    if not isinstance(rows, Tensor) or rows.ndim == 0:
        raise InputError(f"a batch is divided that is a tensor or a mapping of tensors, got {type(rows).__name__}")
    if len(rows) % count:
        raise InputError(
            f"this rank has {counted(count, 'part')} of a step, and {len(rows)} examples cannot be divided into so "
            "many equal ones: give a multiple"
        )
    return list(rows.split(len(rows) // count))
