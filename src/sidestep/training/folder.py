"""The folder of a run: what is written when, so that a kill at any instant leaves something to resume from."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w
from torch import Tensor

from sidestep import checkpoint
from sidestep.data import steps_per_epoch
from sidestep.errors import CheckpointError, InputError
from sidestep.rules import RULES
from sidestep.training.calibration import Calibration
from sidestep.training.unit_files import remove_left_units

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    trained net is evaluated, and says how far that has come.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        files = (path / name for name in _FILES)
        self.config_file, self.metrics_file, self.model_file, self.state_file, self.result_file, *others = files
        self.log_file, self.evaluation_file = others

    def prepare(self, config: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        """Make the folder ready for a run with this configuration, new or resumed.

        Raises:
            InputError: if there is a run and neither `resume` nor `overwrite` was asked for, if the folder holds
                something else, or if the run to resume was started with other options.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; choose another --out")
        if self.config_file.exists():
            if resume:
                self._check_same(config)
                remove_left_units(self.path)
                return
            if not overwrite:
                raise InputError(
                    f"{self.path} holds a run already; continue it with --resume, replace it with --overwrite, "
                    "or choose another --out"
                )
        elif resume and self.log_file.exists():
            return  # the log alone: its header, not config.toml, tells whether it is of this run
        elif self.path.exists() and any(not _temporary(entry) for entry in self.path.iterdir()):
            raise InputError(
                f"{self.path} is not empty and not a run's folder (it has no config.toml); choose another --out"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in _FILES[1:]:  # not config.toml, which says that the other files are ours
                (self.path / name).unlink(missing_ok=True)
            remove_left_units(self.path)
        except OSError as error:
            raise InputError(f"the folder {self.path} cannot be made or emptied: {error.strerror}") from error
        self._write_config(config)

    def take_over(self, config: Mapping[str, Any], finished: bool) -> None:
        """Note that the run goes on under this configuration (more epochs, say), once it is known that it can.

        Args:
            config: the new configuration.
            finished: whether there is nothing left to train; otherwise the earlier end's results are removed.
        """
        for entry in filter(_temporary, list(self.path.iterdir())):
            entry.unlink(missing_ok=True)
        if not finished:
            self.model_file.unlink(missing_ok=True)
            self.result_file.unlink(missing_ok=True)
            self.evaluation_file.unlink(missing_ok=True)
        self._write_config(config)

    def _write_config(self, config: Mapping[str, Any]) -> None:
        checkpoint.write_text(self.config_file, tomli_w.dumps(_without_none(config)))

    def config(self) -> dict[str, Any]:
        """Return the configuration.

        Raises:
            CheckpointError: if there is none, or it cannot be read.
        """
        if not self.config_file.exists():
            raise CheckpointError(f"{self.path} is not the folder of a run: it has no config.toml")
        try:
            return tomllib.loads(self.config_file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise CheckpointError(f"{self.config_file} is damaged: {error}") from error

    def unfinished(self, step: int) -> str | None:
        """Return `step 43 of 200` for a run whose training stands at `step`, before its end; None at the end."""
        try:
            options, data = self.config()["train"], self.config()["data"]
            steps = options["epochs"] * steps_per_epoch(data["train_images"], options["batch"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{self.config_file} lacks or misnames an entry: {error}") from error
        done = self.model_file.exists() or step >= steps  # the weights alone tell no step
        return None if done else f"step {step:,} of {steps:,}"

    def _check_same(self, config: Mapping[str, Any]) -> None:
        saved, given = _flat(self.config()), _flat(_without_none(config))
        kind = RULES.get(str(saved.get("rule.name")))
        for field in dataclasses.fields(kind) if kind else ():  # a run from before an option was there had its default
            if f"rule.{field.name}" not in saved and given.get(f"rule.{field.name}") == field.default:
                saved[f"rule.{field.name}"] = field.default
        free = {"train.epochs", "train.checkpoint_seconds", "train.device", "train.precision", "data.data_dir"}
        free |= {"versions.sidestep", "versions.torch", "versions.threads"}  # other bits, but the run can go on
        free |= {"train.align", "train.units"}  # the one changes nothing but the metrics, the other the rounding
        free |= {"data.pictures.stretched"}  # follows from the data, of which the images' shape is compared
        free |= {"data.validation"}  # what counts is how many images it left, which is compared
        if given.get("train.decay") != "none" or given.get("train.warmup"):
            free -= {"train.epochs"}  # the learning rate follows from it, at every step
        different = sorted(
            key for key in saved.keys() | given.keys() if saved.get(key) != given.get(key) and key not in free
        )
        if different:
            lines = "; ".join(
                f"{key}: was {saved.get(key, 'absent')}, given {given.get(key, 'absent')}" for key in different
            )
            raise InputError(
                f"{self.path} was started otherwise ({lines}); resume it with the same options, or start "
                "another run with another --out"
                + ("; with --decay or --warmup the learning rate depends on --epochs" * ("train.epochs" in different))
            )

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the last checkpoint's tensors and record, or None if the run was stopped before the first one."""
        return checkpoint.load(self.state_file) if self.state_file.exists() else None

    def open_state(self) -> tuple[Mapping[str, Tensor], dict[str, Any]] | None:
        """As `load_state`, with tensors that are read when they are asked for; copy what you keep."""
        return checkpoint.opened(self.state_file) if self.state_file.exists() else None

    def metrics_until(self, step: int) -> int:
        """Return how many bytes of the metrics belong to the steps up to `step`: whole lines from the beginning on."""
        kept = 0
        for line in self.metrics_file.read_bytes().splitlines(keepends=True) if self.metrics_file.exists() else ():
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, LookupError, TypeError):
                break
            kept += len(line)
        return kept

    @contextmanager
    def metrics(self, keep: int) -> Iterator["MetricsLog"]:
        """Open the metrics for appending, after cutting off whatever stands beyond the first `keep` bytes."""
        try:
            self.metrics_file.touch()
            size = self.metrics_file.stat().st_size
            if size < keep:
                raise CheckpointError(
                    f"{self.metrics_file} has {size} bytes, but the checkpoint counts on {keep}: it was changed or "
                    "cut; start again with --overwrite"
                )
            with self.metrics_file.open("r+b") as handle:
                handle.truncate(keep)
                handle.seek(keep)
                yield MetricsLog(handle)
        except OSError as error:  # what else writes to disk in here raises CheckpointError itself
            raise CheckpointError(
                f"{self.metrics_file} could not be written: {error.strerror}; the last checkpoint is kept, "
                "continue with --resume"
            ) from error

    def save_state(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Commit a checkpoint: after this returns, a resumed run continues from here."""
        checkpoint.save(self.state_file, tensors, record)

    def save_model(self, weights: Mapping[str, Tensor], step: int, calibration: Mapping[str, Any] | None) -> None:
        """Write the trained weights, with their step and the temperatures of their readings, for use elsewhere."""
        checkpoint.save(self.model_file, weights, {"kind": "model", "step": step, "calibration": calibration})

    def calibration(self, step: int) -> Calibration | None:
        """Return the temperatures of a model trained for so many steps; None if the run has not ended there.

        Raises:
            CheckpointError: if the model's file is damaged.
        """
        record = checkpoint.opened(self.model_file)[1] if self.model_file.exists() else {}
        if record.get("step") != step or record.get("calibration") is None:
            return None
        return Calibration.of(record["calibration"])

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Write the result of a finished run, which needs the counts of its evaluation no more."""
        checkpoint.write_text(self.result_file, json.dumps(result, indent=2) + "\n")
        self.evaluation_file.unlink(missing_ok=True)


class MetricsLog:
    """Appends one JSON object a line; `bytes` after `commit` is what a checkpoint may count on."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def write(self, step: int, split: str, name: str, value: float, seconds: float) -> None:
        """Append one line."""
        line = {"step": step, "split": split, "name": name, "value": value, "seconds": round(seconds, 3)}
        self._handle.write((json.dumps(line) + "\n").encode())
        self._handle.flush()

    def commit(self) -> int:
        """Make sure that all lines are on disk, and return their size in bytes."""
        os.fsync(self._handle.fileno())
        return int(self._handle.tell())


def _temporary(entry: Path) -> bool:
    return entry.name.startswith(checkpoint.TEMPORARY_PREFIX)


def _without_none(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if value is not None
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
