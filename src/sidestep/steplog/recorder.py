"""What the training loop knows of the log: a place to put every decided update."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sidestep.errors import CheckpointError
from sidestep.rules.protocol import Rule
from sidestep.steplog.codecs import is_logged
from sidestep.steplog.header import Header
from sidestep.steplog.reader import LogReader, Scan, place_of
from sidestep.steplog.replay import replay
from sidestep.steplog.single import update_to_bytes
from sidestep.steplog.untrained import check_net
from sidestep.steplog.writer import LogWriter
from sidestep.update import Update

__all__ = ["Recorder"]


class Recorder:
    """Writes the log of a run, if its updates are of a kind that can be logged; the first one decides.

    path: of the log.
    describe: makes the header from the net before its first step.
    told: called with every step that is logged, before it is applied, and its update as `single` has it.
    """

    def __init__(self, path: Path, describe: Callable[[nn.Module], Header]) -> None:
        self._path, self._describe = path, describe
        self._writer: LogWriter | None = None
        self._going_on: tuple[Header, int, int, int] | None = None
        self.told: Callable[[int, bytes], None] | None = None

    def resume(self, record: Mapping[str, Any]) -> bool:
        """Go on where a checkpoint stood; what the log holds beyond it is cut off.

        Without a log in the record, or with the log taken away since, the run goes on without one. Nothing is cut
        before `open`. Returns whether the log was taken away.

        Raises CheckpointError if the log is damaged before the place that the checkpoint counts on.
        """
        if "steplog_bytes" not in record:
            return False
        if not self._path.exists():
            return True
        self._going_on = place_of(self._path, record, "checkpoint", "remove it to train on without a log")
        return False

    def open(self) -> None:
        """Cut the log off where the run goes on, once it is known that it does."""
        if self._going_on:
            self._writer = LogWriter.reopen(self._path, *self._going_on)

    def resume_log(self, net: nn.Module, rule: Rule, optimizer: torch.optim.Optimizer) -> Scan | None:
        """Replay the log, if there is one, into a net before its first step, to go on behind its last good block.

        Raises CheckpointError if the log is of another run, or is damaged otherwise than by being cut.
        """
        if not self._path.exists():
            return None
        reader, own = LogReader(self._path), self._describe(net)
        check_net(reader.header, net)
        for name, given, found in own.differences(reader.header):
            raise CheckpointError(
                f"{self._path} is of another run ({_words(name, given, found)}): use the log of this run"
            )
        scan = reader.scan()
        if scan.damage and not scan.cut:
            raise CheckpointError(
                f"{self._path} is damaged: {scan.damage}. Its first {scan.steps:,} steps are good. Nothing was "
                f"changed: keep a copy and bring an undamaged one back; or have the weights of those steps written, "
                f"sidestep replay {self._path} --to-step {scan.steps} --out FILE.safetensors; "
                "or begin anew with --overwrite"
            )
        step = replay(net, rule, optimizer, reader)
        if step != scan.steps:
            raise CheckpointError(f"{self._path} cannot be replayed: {reader.damage}")
        self._going_on = (reader.header, scan.size, scan.crc, step)
        return scan

    def record(self, step: int, net: nn.Module, update: Update) -> None:
        """Log the decided update of a step that is about to be applied to `net`."""
        if self._writer is None and step == 0:
            header = self._describe(net)
            if is_logged(update, header, 0):
                self._writer = LogWriter.create(self._path, header)
        if self._writer is not None:
            self._writer.append(update)
            if self.told:
                self.told(step, update_to_bytes(update, self._writer.header, step))

    @property
    def place(self) -> tuple[Path, int, int] | None:
        """The file, how many of its bytes are on the disk, and how many steps these hold; None before the first."""
        return self._writer.place if self._writer else None

    def commit(self) -> dict[str, int]:
        """Put all that was recorded on the disk, and return what a checkpoint's record says of it."""
        if self._writer is None:
            return {}
        size, crc = self._writer.commit()
        return {"steplog_bytes": size, "steplog_crc": crc}

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def _words(name: str, given: Any, found: Any) -> str:
    """Say where two entries of headers differ; of groups of entries, which of them do."""
    if not (isinstance(given, dict) and isinstance(found, dict)):
        return f"{name}: {found} there, {given} here"
    keys = [key for key in sorted(given.keys() | found.keys()) if given.get(key) != found.get(key)]
    return "; ".join(f"{name}.{key}: {found.get(key)} there, {given.get(key)} here" for key in keys)
