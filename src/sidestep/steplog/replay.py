"""Replay: the net after any number of logged steps, without data, bit for bit.

Float weights have the same bits on the same processor with the same torch, and are right up to rounding elsewhere.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sidestep.errors import InputError
from sidestep.nets.trained import trained
from sidestep.nets.user_modules import ImagePath
from sidestep.rules.protocol import Rule
from sidestep.steplog.codecs import codec_of
from sidestep.steplog.reader import LogReader
from sidestep.steplog.untrained import start_of

__all__ = ["Replayed", "rebuild", "replay"]


@dataclass(frozen=True)
class Replayed:
    """A net that was rebuilt from its steps."""

    net: nn.Module
    step: int  # how many steps it has taken
    names: tuple[str, ...]  # parameters that were rebuilt; the others are as they were before training
    skipped: int  # steps that were left out on request
    damage: str | None  # why the replay ended before the file did
    buffers_step: int  # the step that the buffers belong to: the log has them at the ends of its blocks
    next_buffers_step: int  # the next step of which it has them; `step`, as buffers_step, if they are right

    @property
    def stale_buffers(self) -> tuple[str, ...]:
        """Names of the buffers that belong to `buffers_step` instead of `step`, or may do so; the weights are exact."""
        return () if self.buffers_step == self.step else tuple(name for name, _ in self.net.named_buffers())


def rebuild(  # long: a log, and five ways to use less than all of it
    path: Path,
    *,
    to_step: int | None = None,
    only: str | None = None,
    drop: range = range(0),
    module: ImagePath | None = None,
    device: str | torch.device = "cpu",
) -> Replayed:
    """Rebuild a net from a log alone.

    Args:
        path: of the log.
        to_step: take this many steps; all by default.
        only: name of a layer or parameter; the others stay as they were before training.
        drop: steps to leave out.
        module: the image path the run was trained with, if it was one of your own.
        device: where to compute; ternary weights do not depend on it, float ones up to rounding.

    Raises:
        CheckpointError: if the log cannot be read, or the net that it starts from cannot be made again.
        InputError: for a step beyond the log, or a layer that the net does not have.
    """
    reader = LogReader(path)
    _check_span(reader, to_step, drop)
    rule, net = start_of(reader.header, module)
    net = net.to(device)
    names = _named(net, only)
    part = _range(net, names) if only else None
    step = replay(net, rule, rule.optimizer(net), reader, last=to_step, part=part, skipped=drop)
    damage, skipped = reader.damage, len(range(drop.start, min(step, drop.stop)))
    return Replayed(net, step, names, skipped, damage, *reader.buffers_around(step))


def _check_span(reader: LogReader, to_step: int | None, drop: range) -> None:
    if to_step is not None and to_step < 0:
        raise InputError(f"the number of steps to take is 0 or more, got {to_step}")
    if drop and (drop.start < 0 or drop.step != 1):
        raise InputError(f"steps to leave out are a range of steps from 0 on, got {drop}")
    if to_step is None and not drop:
        return
    scan = reader.scan(to_step)
    if to_step is not None and scan.steps < to_step:
        raise InputError(
            f"step {to_step} is beyond {reader.path}, which holds {scan.steps:,} steps"
            + (f" before its damage: {scan.damage}" if scan.damage else "")
        )
    most = scan.steps if to_step is None else to_step
    if drop and drop.start >= most:
        raise InputError(f"the steps to leave out begin at {drop.start}, but only steps below {most} are replayed")


def replay(  # long: what a replay depends on
    net: nn.Module,
    rule: Rule,
    optimizer: torch.optim.Optimizer,
    reader: LogReader,
    *,
    last: int | None = None,
    part: tuple[int, int] | None = None,
    skipped: range = range(0),
) -> int:
    """Apply logged steps to a net that stands before the first of them; return how many steps it has then taken."""
    device = next(net.parameters()).device
    done = 0
    for step, update in reader.records(last):
        if step not in skipped:
            moved = update.to(device)
            rule.apply(net, moved if part is None else codec_of(moved).part(moved, *part), optimizer)
        else:  # a block's buffers come with its last step, but belong to all of it
            for name, value in update.statistics.items():
                net.get_buffer(name).copy_(value)
        done = step + 1
    return done


def _named(net: nn.Module, only: str | None) -> tuple[str, ...]:
    every = [name for name, _ in net.named_parameters()]
    if only is None:
        return tuple(every)
    found = tuple(name for name in every if name == only or name.startswith(f"{only}."))
    if not found:
        raise InputError(f"the net has no layer or parameter {only!r}; it has: {', '.join(every[:20])}")
    return found


def _range(net: nn.Module, names: tuple[str, ...]) -> tuple[int, int]:
    """Where the weights of neighbouring parameters lie among all that are trained."""
    at, first, last = 0, None, 0
    for name, parameter in trained(net).items():
        if name in names:
            first = at if first is None else first
            last = at + parameter.numel()
        at += parameter.numel()
    return first or 0, last
