"""The step log of a loop of the user's own, and its replay into a module as it was before the first step."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sidestep.errors import CheckpointError, InputError
from sidestep.files import make_folder
from sidestep.keywords import known_keywords
from sidestep.rules.shared.any_module import AnyModule, OwnSteps, apply_by
from sidestep.steplog.codecs import codec_of, is_logged
from sidestep.steplog.format import REALS
from sidestep.steplog.header import Header
from sidestep.steplog.reader import LogReader, place_of
from sidestep.steplog.replay import Replayed
from sidestep.steplog.untrained import check_net, rule_of
from sidestep.steplog.writer import LogWriter
from sidestep.update import Update

__all__ = ["AttachedLog", "Fixed", "fixed_options", "replay"]

Fixed = list[dict[str, Any]]  # of every parameter group: what a replay takes from the rule


class AttachedLog:
    """Takes every decided update of a loop; what was taken is on the disk after `commit`, `close`, or half a minute.

    seconds: that half a minute.
    """

    def __init__(self, path: Path, header: Header, fixed: Fixed | None, seconds: float = 30.0) -> None:
        self.path, self._header, self._fixed, self._seconds = path, header, fixed, seconds
        self._writer: LogWriter | None = None
        self._last = time.monotonic()

    @classmethod
    def begin(
        cls, path: Path, header: Header, fixed: Fixed | None, seconds: float = 30.0,
        resumed: str = "attach(..., resume=FOLDER) with the folder that step.save wrote",
    ) -> "AttachedLog":  # fmt: skip
        """Begin a log, which is written from the first step on; folders that its path lacks are made.

        Args:
            path: of the file.
            header: what its steps start from.
            fixed: what of the optimiser does not change.
            seconds: after which it is on the disk at the latest.
            resumed: how one goes on with a log that is there, or nothing where that cannot be.

        Raises:
            InputError: for a file that is there already, and for a folder that cannot be made.
        """
        if path.exists():
            said = f"remove it, choose another name, or go on with it, {resumed}" if resumed else (
                "remove it, or choose another name")  # fmt: skip
            raise InputError(f"the step log {path} is there already: {said}")
        try:
            make_folder(path.parent)
        except OSError as error:
            raise InputError(
                f"the folder of the step log, {path.parent}, cannot be made ({error.strerror}): choose another place"
            ) from error
        return cls(path, header, fixed, seconds)

    @classmethod
    def resume(cls, path: Path, record: Mapping[str, Any], fixed: Fixed | None) -> "AttachedLog":
        """Go on with the log where a saved state stood; what it holds beyond is cut off.

        Raises CheckpointError if the state was saved without a log, or the log is damaged before that place.
        """
        if "steplog_bytes" not in record:
            raise CheckpointError(
                f"the state of step {record['step']} was saved without a step log, so {path} cannot go on from it: "
                "leave log out"
            )
        place = place_of(path, record, "state", "leave log out")
        log = cls(path, place[0], fixed)
        log._writer = LogWriter.reopen(path, *place)
        return log

    def record(self, step: int, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take the decided update of a step that is about to be applied.

        Raises InputError if it cannot be logged, or if the optimiser is not any more what a replay would make.
        """
        rates = {group["lr"] for group in optimizer.param_groups}
        if self._fixed is not None and (fixed_options(optimizer) != self._fixed or len(rates) > 1):
            raise InputError(
                f"at step {step} the optimiser has other options than the rule gave it, of which a log keeps the "
                "learning rate alone, one for all groups; leave the others as they are (cycle_momentum=False in "
                "OneCycleLR), or leave log out"
            )
        if not is_logged(update, self._header, step):
            raise InputError(
                f"step {step} cannot be logged: a log takes steps of one float32 per direction, and this one is "
                f"{type(update).__name__}; leave log out, or take a rule of seeded directions"
            )
        if self._writer is None:
            self._writer = LogWriter.create(self.path, self._header)
        self._writer.append(update)
        if time.monotonic() - self._last > self._seconds:
            self.commit()

    def commit(self) -> dict[str, int]:
        """Put all that was taken on the disk, and return what a saved state says of it."""
        if self._writer is None:
            self._writer = LogWriter.create(self.path, self._header)
        self._last = time.monotonic()
        size, crc = self._writer.commit()
        return {"steplog_bytes": size, "steplog_crc": crc}

    def close(self) -> None:
        """Put all on the disk and close the file; a second time does nothing."""
        if self._writer is not None and not self._writer.closed:
            self.commit()
            self._writer.close()


def fixed_options(optimizer: torch.optim.Optimizer) -> Fixed:
    """Return what an optimiser's groups have beside parameters and learning rate."""
    moving = ("params", "lr", "initial_lr")
    return [{key: value for key, value in group.items() if key not in moving} for group in optimizer.param_groups]


@known_keywords()
def replay(log: str | Path, model: nn.Module, *, to_step: int | None = None) -> Replayed:
    """Take the logged steps of `attach(..., log=...)` again, without data: `model` is trained in place.

    The bits are those of the loop on the same kind of processor with the same torch and number of threads.

    Args:
        log: the file.
        model: as it was before its first step: the weights, and which of them are frozen.
        to_step: take this many steps; all by default.

    Raises:
        CheckpointError: if the log is damaged, which `to_step` can go around, or if the model is another one.
        InputError: for a log of a run, or a step beyond the log.
    """
    reader = LogReader(Path(log))
    header = reader.header
    if not header.attached:
        raise InputError(f"{log} is the log of a run, which builds its own net: sidestep replay {log}")
    scan = reader.scan(to_step)
    wanted = scan.steps if to_step is None else to_step
    if wanted < 0 or wanted > scan.steps or (to_step is None and scan.damage):
        why = f" before its damage: {scan.damage}; to_step={scan.steps} takes those" if scan.damage else ""
        kind = CheckpointError if scan.damage else InputError
        raise kind(f"{log} holds {scan.steps:,} steps{why}" + ("" if to_step is None else f"; got to_step={to_step}"))
    check_net(header, model)
    rule = rule_of(header)
    if not isinstance(rule, AnyModule):
        raise CheckpointError(f"the log is of the rule {header.rule['name']}, which trains no module of that kind")
    _check_steps(reader, wanted, isinstance(rule, OwnSteps))
    optimizer, device = rule.optimizer_any(model), next(model.parameters()).device
    for _, update in reader.records(wanted):
        apply_by(rule, model, update.to(device), optimizer)
    names = tuple(name for name, _ in model.named_parameters())
    return Replayed(model, wanted, names, 0, None, *reader.buffers_around(wanted))


def _check_steps(reader: LogReader, wanted: int, ternary: bool) -> None:
    """Raise CheckpointError, while the model is untouched, unless each step can be read and is one that attach logs."""
    done = 0
    for step, update in reader.records(wanted):
        if (codec_of(update).kind == REALS) == ternary:
            raise CheckpointError(
                f"step {step} of {reader.path} is {type(update).__name__} of "
                f"{'float' if ternary else 'ternary'} weights, which attach never logs for this rule: the log was "
                "changed, use a copy"
            )
        done = step + 1
    if done < wanted:
        raise CheckpointError(f"{reader.path} can be read up to step {done:,} only: {reader.damage}; to_step={done}")
