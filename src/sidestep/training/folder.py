"""The folder of a run: what is written when, so that a kill at any instant leaves something to resume from."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from sidestep import checkpoint
from sidestep.data import steps_per_epoch
from sidestep.errors import CheckpointError, InputError
from sidestep.files import check_plain, make_folder, open_plain
from sidestep.notices import tell
from sidestep.training.calibration import Calibration
from sidestep.training.config import (
    check_belongs,
    check_same,
    identity_of,
    is_ours,
    read_config,
    without_none,
    write_config,
)
from sidestep.training.lock import LOCK_FILES, only_writer
from sidestep.training.metrics import MetricsLog, bytes_until, check_metrics, open_metrics
from sidestep.training.progress import Progress
from sidestep.training.unit_files import check_left_units, remove_left_units

__all__ = ["RunFolder"]

_FILES = (
    "config.toml", "metrics.jsonl", "model.safetensors", "state.safetensors", "result.json", "steps.steplog",
    "evaluation.json",
)  # fmt: skip


class RunFolder:
    """`config.toml`, `metrics.jsonl`, `state.safetensors`, and at the end `model.safetensors` and `result.json`.

    `state.safetensors` is the one commit point: weights, optimiser, step, and how many bytes of the metrics belong to
    it, and of `steps.steplog`, which rules whose updates can be replayed leave. Whatever these two hold beyond that
    belongs to steps that will be taken again, and is cut off on resuming. `evaluation.json` is there only while the
    trained net is evaluated, and says how far that has come. No file of it may be a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        files = (path / name for name in _FILES)
        self.config_file, self.metrics_file, self.model_file, self.state_file, self.result_file, *others = files
        self.log_file, self.evaluation_file = others
        self._config: dict[str, Any] = {}  # of the run that is being written
        self.doubt: str | None = None  # why nobody can tell whether config.toml was changed

    @contextmanager
    def prepared(self, config: Mapping[str, Any], resume: bool, overwrite: bool, progress: Progress) -> Iterator[None]:
        """Make the folder ready for a run with this configuration, new or resumed, and be its only writer.

        Raises:
            InputError: if there is a run and neither `resume` nor `overwrite` was asked for, if the folder holds
                something else, if the run to resume was started with other options, or if another process writes there
                (BusyError).
            CheckpointError: if a file of it is none, but a link, say, or cannot be read.
        """
        self._config = without_none(config)
        self._check(resume, overwrite)
        try:
            make_folder(self.path)
        except OSError as error:
            raise InputError(f"the folder {self.path} cannot be made: {error.strerror}") from error
        with only_writer(self.path, lambda sentence: progress.notice(sentence)):
            if self._check(resume, overwrite):  # again: it may have changed until the lock was held
                remove_left_units(self.path)
                if self.doubt:
                    progress.notice(self.doubt)
            else:
                self._empty()
                write_config(self.config_file, config)
            yield

    def _check(self, resume: bool, overwrite: bool) -> bool:
        """Return whether there is a run to go on with; look only."""
        checkpoint.check_name(self.path)
        try:
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"{self.path} is a file; choose another --out")
            if not self.path.exists():
                return False  # also where a part of the path is a file, which making the folder will say
            entries = list(self.path.iterdir())
        except OSError as error:
            raise InputError(
                f"the folder {self.path} cannot be read: {error.strerror}; choose another --out"
            ) from error
        self._check_plain()
        if self.config_file.exists():
            if resume:
                saved, self.doubt = read_config(self.config_file)
                check_same(self.path, saved, self._config)
                return True
            if not is_ours(self.config_file):
                raise InputError(
                    f"{self.path} is not the folder of a run: its config.toml is not Sidestep's, so nothing in it is "
                    "touched; choose another --out"
                )
            if not overwrite:
                raise InputError(
                    f"{self.path} holds a run already; continue it with --resume, replace it with --overwrite, "
                    "or choose another --out"
                )
        elif resume and self.log_file.exists():
            return True  # the log alone: its header, not config.toml, tells whether it is of this run
        elif not all(_passing(entry) for entry in entries):
            raise InputError(
                f"{self.path} is not empty and not a run's folder (it has no config.toml); choose another --out"
            )
        return False

    def _check_plain(self) -> None:
        """Refuse a folder in which a file of ours is none: writing to a link would change what it leads to."""
        for name in _FILES:
            check_plain(self.path / name, alone=name in (self.metrics_file.name, self.log_file.name))
        check_left_units(self.path)

    def _empty(self) -> None:
        try:  # config.toml, which says that the other files are ours, is replaced at the end
            for file in (self.state_file, *(self.path / name for name in _FILES[1:])):
                file.unlink(missing_ok=True)
            self._remove_temporaries()
            remove_left_units(self.path)
        except OSError as error:
            raise InputError(f"the folder {self.path} cannot be emptied: {error.strerror}") from error

    def _remove_temporaries(self) -> None:
        for entry in filter(_temporary, list(self.path.iterdir())):
            entry.unlink(missing_ok=True)

    def empty(self) -> bool:
        """Say whether nothing is there, or nothing but what a killed run has left before it began."""
        return not self.path.exists() or (self.path.is_dir() and all(_passing(each) for each in self.path.iterdir()))

    def take_over(self, config: Mapping[str, Any], finished: bool) -> None:
        """Note that the run goes on under this configuration (more epochs, say), once it is known that it can.

        Args:
            config: the new configuration.
            finished: whether there is nothing left to train; otherwise the earlier end's results are removed.

        Raises:
            CheckpointError: if a file that is going to be continued may not be written; then nothing is removed.
        """
        try:
            if not finished:
                for file in (self.metrics_file, self.log_file):
                    if file.exists():
                        open_plain(file, os.O_RDWR, alone=True).close()
            self._remove_temporaries()
            if not finished:
                self.model_file.unlink(missing_ok=True)
                self.result_file.unlink(missing_ok=True)
                self.evaluation_file.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or self.path} cannot be written or removed ({error.strerror}), so the run cannot go "
                "on there; copy the folder to where you may write"
            ) from error
        write_config(self.config_file, config)

    def config(self) -> dict[str, Any]:
        """Return the configuration; where nobody can tell whether it was changed, a RunNotice is given once.

        Raises:
            CheckpointError: if there is none, it cannot be read, or it was changed.
        """
        entries, doubt = read_config(self.config_file)
        if doubt and doubt != self.doubt:
            tell(doubt)
        self.doubt = doubt
        return entries

    def unfinished(self, step: int) -> str | None:
        """Return `step 43 of 200` for a run whose training stands at `step`, before its end; None at the end."""
        try:
            options, data = self.config()["train"], self.config()["data"]
            steps = options.get("steps")
            if steps is None:
                steps = options["epochs"] * steps_per_epoch(data["train_images"], options["batch"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{self.config_file} lacks or misnames an entry: {error}") from error
        done = self.model_file.exists() or step >= steps  # the weights alone tell no step
        return None if done else f"step {step:,} of {steps:,}"

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the last checkpoint's tensors and record, or None if the run was stopped before the first one."""
        return self._loaded(self.state_file)

    def load_model(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the trained weights and their record, or None if the run has not ended."""
        return self._loaded(self.model_file)

    def _loaded(self, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not check_plain(file):
            return None
        tensors, record = checkpoint.load(file)
        check_belongs(file, record, self._config or self.config())
        return tensors, record

    def open_state(self) -> tuple[Mapping[str, Tensor], dict[str, Any]] | None:
        """As `load_state`, with tensors that are read when they are asked for; copy what you keep."""
        return self._opened(self.state_file)

    def _opened(self, file: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]] | None:
        if not check_plain(file):
            return None
        tensors, record = checkpoint.opened(file)
        check_belongs(file, record, self._config or self.config())
        return tensors, record

    def open_model(self) -> tuple[Mapping[str, Tensor], dict[str, Any]] | None:
        """As `open_state`, of the model of a run that has ended."""
        return self._opened(self.model_file)

    def metrics_until(self, step: int) -> int:
        """Return how many bytes of the metrics belong to the steps up to `step`: whole lines from the beginning on."""
        return bytes_until(self.metrics_file, step)

    def metrics_of(self, record: Mapping[str, Any]) -> int:
        """Return how many bytes of the metrics belong to a checkpoint, by its record.

        Raises:
            CheckpointError: if they were cut or changed.
        """
        return check_metrics(self.metrics_file, record)

    @contextmanager
    def metrics(self, keep: int) -> Iterator[MetricsLog]:
        """Open the metrics for appending, after cutting off whatever stands beyond the first `keep` bytes."""
        with open_metrics(self.metrics_file, keep) as log:
            yield log

    def save_state(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Commit a checkpoint: after this returns, a resumed run continues from here."""
        checkpoint.save(self.state_file, tensors, {**record, "run": identity_of(self._config)})

    def save_model(self, weights: Mapping[str, Tensor], step: int, calibration: Mapping[str, Any] | None) -> None:
        """Write the trained weights, their step and the temperatures of their readings, for use elsewhere.

        The file also says what the net is made and used by.
        """
        record = {"kind": "model", "step": step, "calibration": calibration, "run": identity_of(self._config)}
        checkpoint.save(self.model_file, weights, record)

    def calibration(self, step: int) -> Calibration | None:
        """Return the temperatures of a model trained for so many steps; None if the run has not ended there.

        Raises:
            CheckpointError: if the model's file is damaged.
        """
        found = self.open_model()
        record = found[1] if found else {}
        if record.get("step") != step or record.get("calibration") is None:
            return None
        return Calibration.of(record["calibration"])

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Write the result of a finished run, which needs the counts of its evaluation no more."""
        checkpoint.write_json(self.result_file, result, indent=2)
        try:
            self.evaluation_file.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.evaluation_file} cannot be removed: {error.strerror}") from error

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run; None where there is none, or none that is as it was written."""
        try:
            return checkpoint.read_json(self.result_file)
        except CheckpointError:
            return None


def _temporary(entry: Path) -> bool:
    """Whether something is a file that a killed writer of a run has left."""
    names = "|".join(map(re.escape, (*_FILES, *LOCK_FILES)))
    if not re.fullmatch(rf"{re.escape(checkpoint.TEMPORARY_PREFIX)}({names})\.\d+", entry.name):
        return False
    return not stat.S_ISDIR(entry.lstat().st_mode)


def _passing(entry: Path) -> bool:
    return entry.name in LOCK_FILES or _temporary(entry)
