"""A trained net as a file that other programs run: ONNX, or torch's own exported program (.pt2).

What is written takes raw inputs, in the dtype and the units of the training data and in batches of any size, and gives
what `Run.predict` gives: standardisation, the reading and its temperature are part of the file.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.files import check_plain
from sidestep.keywords import known_keywords
from sidestep.nets.ternary.layers import unpack_layers
from sidestep.noise import Noise
from sidestep.training.evaluate import check_readings
from sidestep.training.options import Compute
from sidestep.training.trained import Run

__all__ = ["CHECKED", "Exported", "Predictor", "export"]

CHECKED = (1, 7, 128)  # batch sizes that --check compares
_OLDEST_OPSET, _OPSET = 18, 18
Form = Literal["onnx", "pt2"]


class Predictor(nn.Module):
    """Raw inputs (n, ...) to probabilities (n, classes), or values in their own units, as `Run.predict` gives them.

    Args:
        run: a trained net.
        reading: one of its rule's readings that draws no noise; the first by default.
    """

    def __init__(self, run: Run, reading: str | None = None) -> None:
        super().__init__()
        self.reading = reading or run.rule.readings[0]
        check_readings(run.rule, [self.reading])
        self.net, self._rule, self._task = unpack_layers(copy.deepcopy(run.net)), run.rule, run.task
        self._temperature = run.temperature(self.reading)
        self._noise = Noise(run.seed).stream("predict")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the answers."""
        found = self._rule.predict(self.net, self._task.prepare(inputs), self._noise, 0, [self.reading])[self.reading]
        scores = found.float()
        if self._temperature is None:
            return scores
        return (scores.clamp_min(torch.finfo(torch.float32).tiny).log() / self._temperature).softmax(dim=1)


@dataclass(frozen=True)
class Exported:
    """What was written.

    path: of the file.
    form: onnx or pt2.
    reading: what answers are read by.
    dtype, shape: of one input, raw.
    difference: the largest difference of an answer to `Run.predict` in float32, over batches of 1, 7 and 128; None if
        it was not asked for.
    """

    path: Path
    form: Form
    reading: str
    dtype: str
    shape: tuple[int, ...]
    difference: float | None


@known_keywords()
def export(
    run: Run, path: Path | str, reading: str | None = None, *, check: bool = False, opset: int = _OPSET,
    overwrite: bool = False,
) -> Exported:  # fmt: skip
    """Write a trained net as one file for other programs, its form by the name's end: `.onnx` or `.pt2`.

    Args:
        run: a trained net.
        path: of the file.
        reading: one of the rule's readings that draws no noise; the first by default.
        check: run the file (an ONNX file by onnxruntime) on made-up inputs and compare.
        opset: of ONNX.
        overwrite: replace a file that is there.

    Raises:
        InputError: for another end of the name, a file that is there, a reading that draws noise or that no graph can
            hold, an opset that is too old, or a library that is not installed.
    """
    path = Path(path)
    form = _form(path)
    if opset < _OLDEST_OPSET:
        raise InputError(f"opset must be {_OLDEST_OPSET} or more, got {opset}: older ones lack operators of these nets")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}")
    if check_plain(path) and not overwrite:
        raise InputError(f"{path} exists; give another name, or say to overwrite it (--overwrite, overwrite=True)")
    if form == "onnx":
        _need("onnxscript", "to write ONNX files")
        if check:
            _need("onnxruntime", "to check ONNX files")
    predictor = Predictor(run, reading).cpu().eval()
    with torch.no_grad():
        predictor(
            _made_up(run, 1)
        )  # else what is kept of a data set, such as its mean, would be made of traced tensors
    with _quiet():
        program = _program(predictor, run)
    beside = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        with _quiet():
            _write(program, beside, form, opset)
        worst = _difference(run, predictor.reading, beside, form) if check else None
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return Exported(path, form, predictor.reading, run.task.pixels, run.task.shape, worst)


def _write(program: Any, path: Path, form: Form, opset: int) -> None:
    if form == "pt2":
        torch.export.save(program, path)
        return
    torch.onnx.export(
        program, f=path, opset_version=opset, dynamo=True, external_data=False, verbose=False,
        input_names=["inputs"], output_names=["answers"],
    )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch says while it writes (of libraries that are not needed, of its own changes) off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _form(path: Path) -> Form:
    form = path.suffix.lower().removeprefix(".")
    if form not in ("onnx", "pt2"):
        raise InputError(f"the name must end in .onnx or .pt2, which says what is written, got {path.name}")
    return "onnx" if form == "onnx" else "pt2"


def _need(module: str, what: str) -> None:
    try:
        __import__(module)
    except ImportError as error:
        raise InputError(f"{what} needs {module}, which is not installed: pip install 'sidestep[onnx]'") from error


def _made_up(run: Run, size: int) -> Tensor:
    """Raw inputs as the net takes them: over the whole range of bytes, or about the mean of the training data."""
    task, noise = run.task, Noise(0).stream("export").sub(size)
    count = size * torch.Size(task.shape).numel()
    if task.pixels == "uint8":
        return noise.integers(count, 256).to(torch.uint8).view(size, *task.shape)
    if task.inputs == "tokens":
        raise InputError("nets on token ids cannot be exported yet; save the run, and predict with this library")
    ones = [1] * (len(task.shape) - 1)
    mean, std = (torch.tensor(values).view(1, -1, *ones) for values in (task.mean, task.std))
    return (noise.normal(count).view(size, *task.shape) * std + mean).float()


def _graph(predictor: Predictor, run: Run) -> Any:
    batch = torch.export.Dim("batch", min=1)
    made_up = _made_up(run, 5)
    with torch.no_grad():
        return torch.export.export(predictor, (made_up,), dynamic_shapes=({0: batch},), strict=False)


def _has_graph(run: Run, reading: str) -> bool:
    """Whether a reading can be written, which shows only when it is tried."""
    try:
        _graph(Predictor(run, reading).cpu().eval(), run)
    except Exception:  # as above
        return False
    return True


def _program(predictor: Predictor, run: Run) -> Any:
    try:
        return _graph(predictor, run)
    except InputError:
        raise
    except Exception as error:  # torch gives no one kind of error for what a graph cannot hold
        others = [name for name in run.rule.readings if name != predictor.reading and _has_graph(run, name)]
        raise InputError(
            f"the reading {predictor.reading!r} of {run.rule.name} cannot be written as one graph for batches of any "
            f"size ({type(error).__name__}): it draws noise, or a solver of another library takes its steps"
            f"{'; readings that can be are ' + ', '.join(others) if others else ''}"
        ) from error


def _difference(run: Run, reading: str, path: Path, form: Form) -> float:
    """Return the largest difference between the file's answers and those of `Run.predict`."""
    if form == "pt2":
        module = torch.export.load(path).module()
        answer = lambda inputs: module(inputs)  # noqa: E731
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        answer = lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])  # noqa: E731
    worst, exact = 0.0, replace(run, compute=Compute.find("cpu", "float32"))
    with torch.no_grad():
        for size in CHECKED:
            inputs = _made_up(run, size)
            worst = max(worst, float((answer(inputs) - exact.predict(inputs, reading)).abs().max()))
    return worst
