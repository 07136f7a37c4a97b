"""Replay: the net after any number of logged steps, without data, bit for bit."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import CheckpointError, InputError, SidestepError
from sidestep.nets.own import ImagePath
from sidestep.noise import Noise
from sidestep.rules import RULES
from sidestep.rules.protocol import Rule, Task
from sidestep.steplog.format import Header, digest_of
from sidestep.steplog.only import only_part
from sidestep.steplog.reader import LogReader
from sidestep.update import Flips, Seeded

__all__ = ["Replayed", "check_net", "rebuild", "replay", "untrained"]


@dataclass(frozen=True)
class Replayed:
    """A net that was rebuilt from its steps."""

    net: nn.Module
    step: int  # how many steps it has taken
    names: tuple[str, ...]  # parameters that were rebuilt; the others are as they were before training
    skipped: int  # steps that were left out on request
    damage: str | None  # why the replay ended before the file did


def rebuild(  # long: a log, and five ways to use less than all of it
    path: Path,
    *,
    to_step: int | None = None,
    only: str | None = None,
    drop: Collection[int] = (),
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
        device: where to compute; the result does not depend on it.

    Raises:
        CheckpointError: if the log cannot be read, or the net that it starts from cannot be made again.
        InputError: for a step beyond the log, or a layer that the net does not have.
    """
    reader = LogReader(path)
    rule, net = untrained(reader.header, module)
    net = net.to(device)
    if to_step is not None:
        scan = reader.scan(to_step)
        if to_step < 0 or scan.steps < to_step:
            raise InputError(
                f"--to-step {to_step} is beyond {path}, which holds {scan.steps:,} steps"
                + (f" before its damage: {scan.damage}" if scan.damage else "")
            )
    names = _named(net, only)
    part = _range(net, names) if only else None
    skipped = set(drop)
    step = replay(net, rule, rule.optimizer(net), reader, last=to_step, part=part, skipped=skipped)
    return Replayed(net, step, names, len([s for s in skipped if 0 <= s < step]), reader.damage)


def replay(  # long: what a replay depends on
    net: nn.Module,
    rule: Rule,
    optimizer: torch.optim.Optimizer,
    reader: LogReader,
    *,
    last: int | None = None,
    part: tuple[int, int] | None = None,
    skipped: Collection[int] = (),
) -> int:
    """Apply logged steps to a net that stands before the first of them; return how many steps it has then taken."""
    device = next(net.parameters()).device
    done = 0
    for step, update in reader.records(last):
        if step not in skipped:
            moved = _to(update, device)
            rule.apply(net, moved if part is None else only_part(moved, *part), optimizer)
        done = step + 1
    return done


def untrained(header: Header, module: ImagePath | None) -> tuple[Rule, nn.Module]:
    """Return the rule and the net that a log starts from.

    Raises:
        CheckpointError: if the rule is unknown here, or the net that it builds is another one.
        InputError: if the run was trained with a module of the user's own and none is given.
    """
    if header.module and module is None:
        raise InputError(
            f"the log is of a run with a module of its own ({header.module}): give it, --module FILE.py:Name"
        )
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in header.rule.items()}
    name = options.pop("name")
    if name not in RULES:
        raise CheckpointError(f"the log is of the rule {name!r}, which is not there; there are: {', '.join(RULES)}")
    try:
        rule = RULES[name](**options)
        task = _task(header.task)
        net = rule.build(task, Noise(header.seed).stream("build"), None, module)
    except (SidestepError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"the net of the log's header cannot be built: {error}") from error
    check_net(header, net)
    return rule, net


def check_net(header: Header, net: nn.Module) -> None:
    """Raise CheckpointError unless a net, before its first step, is the one that the log starts from."""
    found = replace(
        header,
        parameters=tuple((n, str(p.dtype).removeprefix("torch."), tuple(p.shape)) for n, p in net.named_parameters()),
    )
    if found.table != header.table:
        pairs = list(zip(header.parameters, found.parameters, strict=False))
        other = next(
            (f"{a[0]} {list(a[2])} there, {b[0]} {list(b[2])} here" for a, b in pairs if a != b), "their number"
        )
        raise CheckpointError(
            f"the log is of another net: it has {len(header.parameters)} parameters, this one {len(found.parameters)}; "
            f"the first that differs: {other}. Give the module and the options that the log was made with"
        )
    if digest_of(net) != header.start:
        raise CheckpointError(
            f"the untrained net is not the one that the log starts from (its weights' digest is not {header.start}): "
            "other code draws it now, or the rule starts from the training images; use the version that wrote the log, "
            f"sidestep {header.sidestep}"
        )


def _task(entries: dict[str, Any]) -> Task:
    channels, height, width = entries["image_shape"]
    lists = {name: tuple(entries[name]) for name in ("class_names", "mean", "std")}
    return Task((channels, height, width), pixels=entries["pixels"], **lists)


def _named(net: nn.Module, only: str | None) -> tuple[str, ...]:
    every = [name for name, _ in net.named_parameters()]
    if only is None:
        return tuple(every)
    found = tuple(name for name in every if name == only or name.startswith(f"{only}."))
    if not found:
        raise InputError(f"the net has no layer or parameter {only!r}; it has: {', '.join(every[:20])}")
    return found


def _range(net: nn.Module, names: tuple[str, ...]) -> tuple[int, int]:
    """Where the weights of neighbouring parameters lie among all weights."""
    at, first, last = 0, None, 0
    for name, parameter in net.named_parameters():
        if name in names:
            first = at if first is None else first
            last = at + parameter.numel()
        at += parameter.numel()
    return first or 0, last


def _to(update: Seeded | Flips, device: torch.device) -> Seeded | Flips:
    moved: dict[str, Tensor] = {name: value.to(device) for name, value in update.statistics.items()}
    if isinstance(update, Seeded):
        return replace(update, coefs=update.coefs.to(device), statistics=moved)
    return replace(update, positions=update.positions.to(device), moves=update.moves.to(device), statistics=moved)
