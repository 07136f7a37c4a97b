"""The evaluation at the end of a run: all splits, in pieces that a stop does not lose."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sidestep.data import Split
from sidestep.measure import peak_memory_bytes
from sidestep.training.evaluate import accuracies
from sidestep.training.loop import Loop
from sidestep.training.progress import Progress
from sidestep.training.state import State
from sidestep.training.stopping import stop_on_signals
from sidestep.training.tally import Tally, checksum

__all__ = ["final_result"]

_MOST_TRAIN = 10_000  # images on which the train accuracy is counted


Shares = dict[str, dict[str, float] | None]  # split -> reading -> share of right answers; None without that split


def final_result(loop: Loop, state: State, progress: Progress, readings: Sequence[str]) -> dict[str, Any]:
    """Evaluate a trained net on all splits; the test split is read here, for the first time.

    The train split, and the validation split where there is a test split, are read by the rule's first reading alone.

    Args:
        loop: with the rule, the data and the folder.
        state: of the end of the training.
        progress: told of splits and images.
        readings: which of the rule's readings are counted on the test split; the first one always is.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, when what was counted is saved.
    """
    rule, folder, compute = loop.rule, loop.folder, loop.compute
    best = rule.predictors[0]
    shares = _shares(loop, state, progress, list(dict.fromkeys([best, *readings])))
    return {
        "rule": rule.name,
        "data": loop.data.name,
        "seed": loop.options.seed,
        "steps": state.step,
        "epochs": state.step / loop.steps_per_epoch,
        "seconds": round(state.seconds, 3),
        "parameters": sum(parameter.numel() for parameter in state.net.parameters()),
        "peak_memory_bytes": peak_memory_bytes(compute.device),
        **{f"{name}_accuracy": found[best] if found else None for name, found in shares.items()},
        "readings": shares["test"] or shares["validation"],
        "device": str(compute.device),
        "precision": compute.precision,
        "run": str(folder.path) if folder else None,
    }


def _shares(loop: Loop, state: State, progress: Progress, readings: Sequence[str]) -> Shares:
    rule, data, folder, compute = loop.rule, loop.data, loop.folder, loop.compute
    best, key = rule.predictors[0], _setting(loop, state)
    with stop_on_signals() as stop:
        tally = Tally(folder.evaluation_file if folder else None, key, loop.options.checkpoint_seconds, stop)

        def share(name: str, split: Split, names: Sequence[str]) -> dict[str, float] | None:
            if not len(split):
                return None
            progress.evaluating(name)
            count = tally.of(
                name, split, names, lambda images: progress.evaluating(f"{name}: {images / len(split):.0%}")
            )
            return accuracies(rule, state.net, split, data, compute, loop.noise, names, count)

        train = Split(data.train.images[:_MOST_TRAIN], data.train.labels[:_MOST_TRAIN])
        shares: Shares = {"train": share("train", train, [best])}
        shares["validation"] = share("validation", data.validation, [best] if data.has_test else readings)
        shares["test"] = share("test", data.test, readings) if data.has_test else None  # own data may come without one
    return shares


def _setting(loop: Loop, state: State) -> dict[str, Any]:
    """Return what an accuracy depends on beside the images: counts of another setting are not to be gone on with."""
    rule = {field.name: str(getattr(loop.rule, field.name)) for field in dataclasses.fields(loop.rule)}
    return {
        "steps": state.step, "weights": checksum(state.net.state_dict().values()), "rule": rule,
        "seed": loop.options.seed, "device": loop.compute.device.type, "precision": loop.compute.precision,
    }  # fmt: skip
