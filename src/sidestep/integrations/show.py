"""What a trained net answers on the way to its answer, for one picture: by block, by step, or by every sampler."""

import tempfile
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidestep.data import read_named_images
from sidestep.data.objective import objective_of
from sidestep.data.splits import PictureForm
from sidestep.errors import CheckpointError, InputError
from sidestep.files import check_plain
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.nets.noprop.stack_readings import ddim_course
from sidestep.nets.stages.layerwise import LayerwiseNet
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.notices import DataNotice
from sidestep.rules.shared.timed import DenoisingRule, Pointed
from sidestep.steplog import LogReader, rebuild
from sidestep.training import Run
from sidestep.training.compatibility import picture_form
from sidestep.training.folder import RunFolder
from sidestep.training.loaded import load_run

__all__ = ["Shown", "Stage"]

_MOST = 25  # steps of a walk that are shown; of more, as many evenly spaced ones
_KEPT = 4  # nets rebuilt from the log, so that the slider answers at once where it was


@dataclass(frozen=True)
class Stage:
    """An answer on the way: of one block, of the read-out after it, or of a sampler.

    name: such as `block 3`, or `step 4, t = 0.15`.
    own: what the block itself says, (classes,).
    read: what is read from the state after it, (classes,); the same where there is no such state.
    """

    name: str
    own: list[float]
    read: list[float]


class Shown:
    """A run that is shown: its answers to a picture, at its end or after any step of its log.

    Args:
        folder: of the run, on images with classes.
        module: the module that it was trained with, if it was one of the user's own.
        device: where to compute.

    Raises:
        InputError: for a run on other inputs or targets.
        CheckpointError: if the folder holds no run, or a file in it is damaged.
    """

    def __init__(self, folder: Path, module: ImagePath | None = None, device: str = "auto") -> None:
        self.folder, self._module = folder, module
        self.run = load_run(folder, module=module, device=device)
        task = self.run.task
        if self.run.table is not None or task.inputs != "image" or task.targets != "classes":
            text = task.inputs == "tokens" and task.targets == "tokens"
            raise InputError(
                f"sidestep show draws pictures and shows classes, and {folder} was trained on {task.inputs} with "
                f"{task.targets} as targets; use sidestep {'generate' if text else 'predict'}"
            )
        form = picture_form(folder) or PictureForm(1)
        self._form = replace(form, size=(task.image_shape[1], task.image_shape[2]))
        self._rebuilt: OrderedDict[int, Any] = OrderedDict()
        self._one_at_a_time = threading.Lock()
        self.steps, self.no_log = self._steps()

    def about(self) -> dict[str, Any]:
        """Return what the page says of the run, as plain values."""
        channels, height, width = self.run.task.image_shape
        return {
            "run": str(self.folder), "rule": self.run.rule.name, "classes": list(self.run.task.class_names),
            "channels": channels, "height": height, "width": width, "step": self.run.step, "steps": self.steps,
            "no_log": self.no_log, "unfinished": RunFolder(self.folder).unfinished(self.run.step),
        }  # fmt: skip

    def answer(self, picture: bytes, step: int | None = None) -> dict[str, Any]:
        """Return every stage's probabilities for one picture, at the run's end or after `step` steps of its log.

        Raises:
            DataError: if it is no picture.
            InputError: for a step that the log does not have.
        """
        with self._one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore", DataNotice)  # that a drawing is turned to grey, and the like
            images = self._read(picture)
            run, stale = self._at(step)
            stages = _stages(run, images)
        notes = [f"the weights are exact, and {stale}"] if stale else []
        return {"stages": [vars(stage) for stage in stages], "step": run.step, "notes": notes}

    def _read(self, picture: bytes) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "the picture"
            file.write_bytes(picture)
            try:
                return read_named_images([file], self.run.task.image_shape, self._form)[0]
            except InputError as error:  # without the name of a file that nobody knows
                raise type(error)(str(error).replace(str(file), "the picture")) from error

    def _steps(self) -> tuple[int, str | None]:
        """Return how many steps the log has, and why there is no slider if it has none."""
        log = RunFolder(self.folder).log_file
        if not log.exists():
            return 0, f"{self.run.rule.name} with these options leaves no step log"
        check_plain(log)
        try:
            return LogReader(log).scan(None).steps, None
        except CheckpointError as error:
            return 0, str(error)

    def _at(self, step: int | None) -> tuple[Run, str | None]:
        """Return the run with the net after that many steps, and which step its running statistics belong to."""
        if step is None:
            return self.run, None
        if not 0 <= step <= self.steps:
            raise InputError(f"the log of {self.folder} has steps from 0 to {self.steps}, got {step}")
        found = self._rebuilt.pop(step, None)
        if found is None:
            found = rebuild(
                RunFolder(self.folder).log_file, to_step=step, module=self._module, device=self.run.compute.device
            )
        self._rebuilt[step] = found
        while len(self._rebuilt) > _KEPT:
            self._rebuilt.popitem(last=False)
        stale = f"running statistics are of step {found.buffers_step}" if found.stale_buffers else None
        return replace(self.run, net=found.net, step=step, calibration=None), stale


def _stages(run: Run, images: Tensor) -> list[Stage]:
    """Go by the kind of the net: blocks, a walk in time, stages with heads, or any other, whose samplers all answer."""
    net = run.net.eval()
    ready = run.task.prepare(images.to(run.compute.device))
    with torch.no_grad(), run.compute.autocast():
        if isinstance(net, DenoisingStack):
            own, read = ddim_course(net, ready)
            return [Stage(f"block {k + 1}", _list(a), _list(b)) for k, (a, b) in enumerate(zip(own, read, strict=True))]
        if isinstance(net, Denoiser) and isinstance(run.rule, DenoisingRule):
            return _steps_of(run.rule.course(net, ready, Noise(run.seed).stream("predict")))
        if isinstance(net, LayerwiseNet) and len(net.heads) == len(net.stages):
            answers = [objective_of(net).predictions(logits) for logits in net.every_logits(ready)]
            return [Stage(f"stage {k + 1}", _list(each), _list(each)) for k, each in enumerate(answers)]
    answers_by = {name: run.predict(images, name, raw=True) for name in run.rule.readings}
    return [Stage(name, _list(each), _list(each)) for name, each in answers_by.items()]


def _steps_of(course: list[Pointed]) -> list[Stage]:
    """Return the steps of a walk, the first and the last among them."""
    count = min(_MOST, len(course))
    chosen = sorted({round(k * (len(course) - 1) / max(1, count - 1)) for k in range(count)})
    return [
        Stage(f"step {k + 1}, t = {course[k].time:.2f}", _list(course[k].own), _list(course[k].read)) for k in chosen
    ]


def _list(rows: Tensor) -> list[float]:
    return [round(value, 5) for value in rows[0].float().cpu().tolist()]
