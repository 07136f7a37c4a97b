"""Observers that write a run's numbers for other programs: a CSV file for spreadsheets, and TensorBoard."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidestep.errors import InputError
from sidestep.files import read_plain, write_text
from sidestep.keywords import KnownKeywords
from sidestep.training.observers import Begin, End, EpochEnd, StepEnd
from sidestep.wording import csv_text

__all__ = ["CsvLog", "TensorBoard"]

_FIRST = ("epoch", "step", "seconds", "validation")
_MOST = 1 << 26  # bytes


class CsvLog(KnownKeywords):
    """An observer that writes a row for every epoch: epoch, step, seconds, validation score, then all losses by name.

    A resumed run keeps the rows of the steps that it has behind it, and goes on below them.

    Args:
        path: of the file; its folder must be there.
        overwrite: whether a new run may replace a file that is there.
    """

    def __init__(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        self.path, self.overwrite = Path(path), overwrite
        self._columns: list[str] | None = None

    def on_begin(self, event: Begin) -> None:
        """Keep the rows of a resumed run, or make sure that a new run's file can be written.

        Raises InputError if there is a file already, or it cannot be written.
        """
        self._columns = None
        try:
            there = self.path.exists()
            if there and not event.step and not self.overwrite:
                raise InputError(f"{self.path} is there already; choose another file, or CsvLog(..., overwrite=True)")
            rows = list(csv.reader(read_plain(self.path, _MOST).decode().splitlines())) if there and event.step else []
            kept = rows[:1] + [row for row in rows[1:] if len(row) > 1 and int(row[1]) <= event.step]
            self._columns = kept[0] if kept else None
            write_text(self.path, csv_text(kept))
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path} cannot be continued: {error}") from error

    def on_epoch(self, event: EpochEnd) -> None:
        """Append a row."""
        values = [event.epoch, event.step, round(event.seconds, 3), event.validation]
        row: dict[str, Any] = {**dict(zip(_FIRST, values, strict=True)), **event.losses}
        with self.path.open("a", encoding="utf-8", newline="") as file:
            if self._columns is None:
                self._columns = list(row)
                file.write(csv_text([self._columns]))
            file.write(csv_text([[row.get(name) for name in self._columns]]))


class TensorBoard(KnownKeywords):
    """An observer that writes losses and scores for TensorBoard, which `tensorboard --logdir FOLDER` shows.

    Losses stand under `loss/`, the validation score under `score/`, those of the end under `end/`. What a resumed run
    writes replaces what was written of the same steps.

    Args:
        folder: where the event files are to be.
        every: steps between two points of the batches' losses; 0 for those of the epochs alone.

    Raises:
        InputError: if the package tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "TensorBoard needs the package tensorboard, which is not there: pip install 'sidestep[tensorboard]'"
            ) from error
        self.folder, self.every = Path(folder), every
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def on_begin(self, event: Begin) -> None:
        """Open the event file."""
        self._writer = self._make(str(self.folder), purge_step=event.step + 1 if event.step else None)

    def on_step(self, event: StepEnd) -> None:
        """Write the batch's losses, now and then."""
        if self.every and event.step % self.every == 0:
            self._write("batch", event.losses, event.step)

    def on_epoch(self, event: EpochEnd) -> None:
        """Write the epoch's losses and its score."""
        self._write("loss", event.losses, event.step)
        if event.validation is not None:
            self._write("score", {"validation": event.validation}, event.step)
        self._writer.flush()

    def on_end(self, event: End) -> None:
        """Write the scores of the end, and close the file."""
        if self._writer:
            found = event.result or {}
            scores = {name: value for name, value in found.items() if name.endswith(("_accuracy", "_score"))}
            self._write("end", {name: value for name, value in scores.items() if value is not None}, event.step)
            self._writer.close()

    def _write(self, group: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
