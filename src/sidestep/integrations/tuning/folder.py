"""The folder of a fine-tune: what it was asked, where it stands, and what came out; weights of what was trained alone.

tune.json               the question, sealed: recipe, rule, options, what the data were
metrics.jsonl           a line for every look at the validation texts
state.safetensors       where the run stands, the one file that going on needs beside tune.json and the log
steps.steplog           the fine-tune as its log, of rules that leave one
model.safetensors       the trained weights, at the end
result.json             what came out, sealed
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sidestep import checkpoint
from sidestep.errors import CheckpointError, InputError
from sidestep.files import check_plain, make_folder, read_json, write_json, write_text
from sidestep.integrations.tuning.recipe import Recipe
from sidestep.nets.trained import trained
from sidestep.steplog.header import digest_of
from sidestep.training.lock import only_writer

__all__ = ["KIND", "TuneFolder", "is_tuned", "options_record", "save_weights"]

KIND = "tuned"
_MARK = "tune.json"
_FILES = (_MARK, "metrics.jsonl", "state.safetensors", "steps.steplog", "model.safetensors", "result.json")
_MAY_CHANGE = ("out", "resume", "overwrite", "device", "data")


class TuneFolder:
    """The files of one fine-tune."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = (path / name for name in _FILES)
        self.config_file, self.metrics_file, self.state_file, self.log_file, self.model_file, self.result_file = files

    @contextmanager
    def writing(self, resume: bool, overwrite: bool) -> Iterator[bool]:
        """Be the only writer of the folder, and say whether there is a run to go on with.

        A folder that was made here and is left without a run, as by a refusal of what is asked, is removed again.

        Raises InputError where a run is there and neither going on nor replacing it was asked for, or something else.
        """
        for name in _FILES:
            check_plain(self.path / name)
        there = self.config_file.exists()
        if not there and self.path.exists() and (not self.path.is_dir() or any(self._others())):
            raise InputError(
                f"{self.path} is not the folder of a fine-tune, so nothing in it is touched; choose another"
            )
        if there and not (resume or overwrite):
            raise InputError(
                f"{self.path} holds a fine-tune already; go on with --resume, replace it with --overwrite, or choose "
                "another --out"
            )
        new = not self.path.exists()
        try:
            make_folder(self.path)
        except OSError as error:
            raise InputError(f"the folder {self.path} cannot be made: {error.strerror}") from error
        try:
            with only_writer(self.path):
                yield there and resume
        finally:
            if new and not self.config_file.exists():
                with suppress(OSError):  # of a folder in which something else is by now
                    self.path.rmdir()

    def _others(self) -> Iterator[Path]:
        return (entry for entry in self.path.iterdir() if not entry.name.startswith("."))

    def begin(self, config: Mapping[str, Any]) -> None:
        """Write what the run was asked, in place of all that an earlier run has left."""
        make_folder(self.path)  # where files cannot be locked, one that was refused may have removed it
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        write_json(self.config_file, {"kind": KIND, **config}, indent=1)

    def config(self) -> dict[str, Any]:
        """Return what the run was asked; raises CheckpointError if there is none, or it was changed."""
        found = read_json(self.config_file)
        if found.get("kind") != KIND:
            raise CheckpointError(f"{self.config_file} was not written by sidestep tune")
        return found

    def result(self) -> dict[str, Any] | None:
        """Return what came out; None of a run that is not finished. Raises CheckpointError if it was changed."""
        return read_json(self.result_file) if self.result_file.exists() else None

    def recipe(self) -> Recipe:
        """Return how the net is made."""
        return Recipe.of(self.config().get("recipe"), self.config_file)

    def check_same(self, config: Mapping[str, Any]) -> None:
        """Raise InputError unless a run that goes on was asked the same."""
        saved, now = self.config(), json.loads(json.dumps(config))
        for part in ("rule", "data", "options", "start"):
            there, here = saved.get(part), now[part]
            if there == here:
                continue
            if not (isinstance(there, dict) and isinstance(here, dict)):
                raise InputError(f"{self.path} was begun from another base model; go on with the one it was begun with")
            name = next((key for key in here if there.get(key) != here[key]), None)
            if name is None:  # an option that has gone, or came later and is not used
                continue
            if part == "data":
                raise InputError(
                    f"{self.path} was begun with other texts or labels than --data has now; go on with those that it "
                    "was begun with, or choose another --out"
                )
            raise InputError(
                f"{self.path} was begun with {name} = {there.get(name)}, and now it is {here[name]}; go on with what "
                "it was begun with, or choose another --out"
            )

    def write_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write all looks at the validation texts so far."""
        write_text(self.metrics_file, "".join(json.dumps(line) + "\n" for line in lines))

    def write_result(self, net: nn.Module, result: Mapping[str, Any]) -> None:
        """Write the trained weights and the result of a finished run."""
        save_weights(self.model_file, net, int(result["steps"]), self.config()["start"])
        write_json(self.result_file, result, indent=1)

    def load_weights(self, net: nn.Module) -> int:
        """Put the trained weights into the net of the run's recipe, and return their step.

        Raises CheckpointError if the net is not the one that the run started from, or there are no weights.
        """
        if digest_of(net) != self.config().get("start"):
            raise CheckpointError(
                f"{self.path} was tuned from another base model than {self.recipe().base} is now: bring that back, or "
                "give it with --base"
            )
        file, prefix = (self.model_file, "") if self.model_file.exists() else (self.state_file, "net/")
        if not file.exists():
            raise CheckpointError(f"{self.path} has no weights yet; let it train on with --resume")
        tensors, record = checkpoint.load(file)
        with torch.no_grad():
            for name, weight in trained(net).items():
                if prefix + name not in tensors or tensors[prefix + name].shape != weight.shape:
                    raise CheckpointError(f"{file} is of another net: it has no {name} of shape {tuple(weight.shape)}")
                weight.copy_(tensors[prefix + name])
        return int(record["step"])


def is_tuned(path: Path) -> bool:
    """Whether a folder is that of a fine-tune."""
    return (path / _MARK).is_file()


def save_weights(file: Path, net: nn.Module, step: int, start: str) -> None:
    """Write the trained weights of a net, and which start they belong to."""
    weights = {name: weight.detach() for name, weight in trained(net).items()}
    checkpoint.save(file, weights, {"kind": KIND, "step": step, "start": start})


def options_record(options: Any) -> dict[str, Any]:
    """Return the options that a run which goes on must have again, as plain values."""
    values = vars(options)
    return {name: value for name, value in values.items() if name not in _MAY_CHANGE}
