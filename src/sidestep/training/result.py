"""The end of a run: temperatures fitted, the model kept, all splits evaluated, in pieces that a stop does not lose."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from sidestep.data import Split
from sidestep.measure import peak_memory_bytes
from sidestep.rules.record import hyper_parameters
from sidestep.rules.shared.variant import variant_of
from sidestep.training.calibration import (
    FIT_SUMS,
    Calibration,
    Quality,
    calibration_images,
    fit_sums,
)
from sidestep.training.compatibility import pixels_digest
from sidestep.training.evaluate import accuracies
from sidestep.training.evaluation_progress import Count, EvaluationProgress, checksum
from sidestep.training.likelihood import added_up, bits_of, quality_of
from sidestep.training.loop import Loop
from sidestep.training.progress import Progress
from sidestep.training.state import State
from sidestep.training.stopping import StopRequest, stop_on_signals
from sidestep.training.unit_ranks import UnitRanks

__all__ = ["finish"]

_MOST_TRAIN = 10_000  # images on which the train accuracy is counted

Measured = dict[str, dict[str, Quality] | None]  # split -> reading -> how good it is; None without that split
More = Callable[[str, Tensor, Tensor], Tensor]


def finish(
    loop: Loop, state: State, progress: Progress, readings: Sequence[str] | None
) -> tuple[dict[str, Any], Calibration | None]:
    """Fit the readings' temperatures, keep the model with them, and evaluate it on all splits.

    The test split is read last, for the first time: the model is kept before, since it may turn out to be damaged, and
    temperatures follow from validation images alone. The train split, and the validation split where there is a test
    split, are read by the rule's first reading alone.

    Args:
        loop: with the rule, the data and the folder.
        state: of the end of the training.
        progress: told of splits and images.
        readings: which of the rule's readings are counted on the test split, the first one always; by default those
            of `rule.at_end`, which a rule of the user's may lack, or else all.

    Returns:
        The result, and the temperatures; None without validation images enough.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, when what was counted is saved.
    """
    rule, folder, compute = loop.rule, loop.folder, loop.compute
    best, wanted = rule.readings[0], readings or getattr(rule, "at_end", ()) or rule.readings
    found, calibration = _measured(loop, state, progress, list(dict.fromkeys([best, *wanted])))
    score = loop.task.objective.score_name
    read, kind = found["test"] or found["validation"], "accuracy" if score == "accuracy" else "score"
    result = {
        "rule": rule.name,
        "variant": variant_of(rule),
        "data": loop.data.name,
        "seed": loop.options.seed,
        "steps": state.step,
        "epochs": state.step / loop.steps_per_epoch,
        **({} if state.kept_step is None else {"kept_step": state.kept_step}),  # whose weights these are
        "seconds": round(state.seconds, 3),
        "parameters": sum(parameter.numel() for parameter in state.net.parameters()),
        "peak_memory_bytes": peak_memory_bytes(compute.device),
        **{f"{name}_{kind}": each[best].accuracy if each else None for name, each in found.items()},
        **({} if kind == "accuracy" else {"score": score}),
        **{f"test_{name}": getattr(found["test"][best], name) if found["test"] else None for name in ("nll", "ece")},
        **_bits(loop, found, best),
        "readings": {name: quality.accuracy for name, quality in read.items()} if read else None,
        "qualities": {name: quality.record(score) for name, quality in read.items()} if read else None,
        "calibration_images": calibration.images if calibration else 0,
        "test_pixels": pixels_digest(loop.data.test) if found["test"] else None,  # to know them again
        "device": str(compute.device),
        "precision": compute.precision,
        "run": str(folder.path) if folder else None,
    }
    return result, calibration


def _bits(loop: Loop, found: Measured, best: str) -> dict[str, float | None]:
    if loop.task.targets != "tokens":
        return {}
    return {f"{split}_bits_per_token": bits_of(each[best]) if each else None for split, each in found.items()}


def _measured(
    loop: Loop, state: State, progress: Progress, readings: Sequence[str]
) -> tuple[Measured, Calibration | None]:
    data, only = loop.data, loop.rule.readings[:1]
    with stop_on_signals() as stop:
        evaluation = _Evaluation(loop, state, progress, stop)
        calibration = evaluation.calibrate(readings)
        if loop.folder:
            loop.folder.save_model(state.weights(), state.step, calibration.record() if calibration else None)
        train = data.train.part(slice(0, 0 if data.feed else _MOST_TRAIN))  # of a loader there is one batch only
        found: Measured = {"train": evaluation.measure("train", train, only)}
        found["validation"] = evaluation.measure("validation", data.validation, only if data.has_test else readings)
        found["test"] = None  # own data may come without a test split
        if data.has_test:
            found["test"] = evaluation.measure("test", data.test, readings)
    return found, calibration


class _Evaluation:
    """Passes over splits that go on where an earlier process stopped: first `calibrate`, then `measure`."""

    def __init__(self, loop: Loop, state: State, progress: Progress, stop: StopRequest) -> None:
        self._loop, self._state, self._progress = loop, state, progress
        file = loop.folder.evaluation_file if loop.folder else None
        self._asked, self._ranks = stop, loop.parts if isinstance(loop.parts, UnitRanks) else None
        self._stop = StopRequest() if self._ranks else stop  # of ranks that predict together, one that all have heard
        self._tally = EvaluationProgress(file, _setting(loop, state), loop.options.checkpoint_seconds, self._stop)
        self._calibration: Calibration | None = None

    def calibrate(self, readings: Sequence[str]) -> Calibration | None:
        """Fit the readings' temperatures on validation images; None without images enough."""
        loop = self._loop
        if not loop.task.likely:
            return None
        images = calibration_images(loop.data.validation, loop.noise)
        if len(images):
            count = self._count("calibration", images, readings, lambda _, p, labels: fit_sums(p, labels),
                                FIT_SUMS)  # fmt: skip
            self._calibration = Calibration.fitted(loop.rule, count.sums, len(images))
        return self._calibration

    def measure(self, name: str, split: Split, readings: Sequence[str]) -> dict[str, Quality] | None:
        """Return how good the readings are on a split, with their temperatures; None without images."""
        if not len(split):
            return None
        rule, calibration = self._loop.rule, self._calibration
        temperatures = {each: calibration.temperature(rule, each) if calibration else None for each in readings}
        task = self._loop.task
        count = self._count(name, split, readings, *added_up(task, temperatures))
        return {
            each: quality_of(task, count.right[each] / count.images, count.sums.get(each, []), temperatures[each])
            for each in readings
        }

    def _count(self, name: str, split: Split, readings: Sequence[str], more: More | None, numbers: int) -> Count:
        loop, progress = self._loop, self._progress
        progress.evaluating(name)
        count = self._tally.of(
            name, split, readings, lambda images: progress.evaluating(f"{name}: {images / len(split):.0%}"), numbers
        )
        net, ranks = self._state.net, self._ranks
        with ranks.counting(net, count, self._asked, self._stop) if ranks else nullcontext():
            accuracies(loop.rule, net, split, loop.task, loop.compute, loop.noise, readings, count, more)
        return count


def _setting(loop: Loop, state: State) -> dict[str, Any]:
    """Return what an accuracy depends on beside the images: counts of another setting are not to be continued."""
    rule = {name: str(value) for name, value in hyper_parameters(loop.rule).items()}
    return {
        "steps": state.step, "weights": checksum(state.weights().values()), "rule": rule,
        "seed": loop.options.seed, "device": loop.compute.device.type, "precision": loop.compute.precision,
    }  # fmt: skip
