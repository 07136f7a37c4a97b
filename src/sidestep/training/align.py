"""`align`: how well a rule's estimates point along the true gradient, for an untrained net or a trained run."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidestep.checks import check_whole
from sidestep.data import DataSet
from sidestep.errors import CheckpointError, InputError
from sidestep.files import check_plain, read_plain
from sidestep.keywords import known_keywords
from sidestep.measure import WHOLE, Alignment
from sidestep.nets.ternary.layers import unpack_layers
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule, Task
from sidestep.rules.untrained import untrained
from sidestep.training.alignment_watch import MEASURES, SPLIT, check_measurable, compare, held_batch
from sidestep.training.compatibility import check_cut, check_task
from sidestep.training.evaluate import check_rule
from sidestep.training.folder import RunFolder
from sidestep.training.given import given_data, given_options
from sidestep.training.options import Compute, Options
from sidestep.training.trained import Run

__all__ = ["Aligned", "align", "alignment_curves"]


@dataclass(frozen=True)
class Aligned:
    """A rule's estimates beside the true gradient of one batch."""

    rule: str
    data: str
    seed: int
    step: int
    """Training steps that the net has behind it."""
    images: int
    """Size of the batch."""
    estimates: int
    """How many estimates were made of it, each with noise of its own."""
    tensors: dict[str, Alignment]
    """By parameter name, for the parameters that have both an estimate and a true gradient."""
    whole: Alignment
    """All of these as one vector."""
    left_out: tuple[str, ...]
    """Parameters that the loss of the net's default reading does not depend on, or that the rule does not estimate."""

    def record(self) -> dict[str, Any]:
        """Return everything for JSON, with None in place of numbers that are infinite or do not exist."""

        def finite(found: Alignment) -> dict[str, float | None]:
            return {key: value if math.isfinite(value) else None for key, value in asdict(found).items()}

        tensors = {name: finite(found) for name, found in self.tensors.items()}
        return {**asdict(self), "tensors": tensors, "whole": finite(self.whole), "left_out": list(self.left_out)}


@known_keywords(Options)
def align(
    what: Rule | Run,
    data: DataSet | str | os.PathLike[str] = "digits",
    options: Options | None = None,
    *,
    estimates: int = 8,
    module: ImagePath | None = None,
) -> Aligned:
    """Measure how well a rule's estimates point along the true gradient on a batch of validation images.

    The true gradient is that of the mean cross-entropy of the net's default reading, end to end, by reverse mode. It
    and all estimates are of the same images, so that what is measured is the rule and not the choice of the batch;
    back-propagation of a net without noise has a cosine of exactly 1.

    Args:
        what: a rule, whose untrained net is measured, or a run, whose net is measured as it stands.
        data: a data set, or the name of or the path to one; for a run, the one that it was trained on, cut as it was.
        options: batch, and for a rule seed, device and precision; the rest is not used.
        estimates: how many to make of the one batch, each with noise of its own.
        module: for a rule, an image path of your own, as in `train`.

    Raises:
        InputError: for a rule without a true gradient, too few images or estimates, or data of another kind than a run
            was trained on; for a run in a folder, also for data that are cut into splits in another way.

    >>> from sidestep import align, rules
    >>> align(rules.Backprop(net="mlp"), "digits", estimates=1).whole.cosine > 0.99  # 1, but for bfloat16's rounding
    True
    """
    options = given_options(options)
    check_whole(1, 1_000_000, estimates=estimates)
    data = given_data(data)
    rule = what.rule if isinstance(what, Run) else what
    check_rule(rule)
    check_measurable(rule)
    run = _as_trained(what, data) if isinstance(what, Run) else _untrained(what, data, options, module)
    rule, net, seed, step = run.rule, run.net, run.seed, run.step
    batch = held_batch(rule, data.validation, run.task, options.batch, run.compute)
    compared = compare(rule, net, batch, Noise(seed).stream("alignment").at(step), estimates, run.compute)
    found = compared.result()
    if not found:
        raise InputError(f"{rule.name} estimates nothing that the loss of its net depends on")
    left_out = tuple(name for name, _ in net.named_parameters() if name not in found)
    whole = found.pop(WHOLE)
    return Aligned(rule.name, data.name, seed, step, len(batch.targets), estimates, found, whole, left_out)


def _as_trained(run: Run, data: DataSet) -> Run:
    """The run, its layers unpacked, if these are the data that it was trained on."""
    check_task(run.task, data)
    if run.folder:
        instead = "bring the data back as they were, since images that were trained on do not do"
        check_cut(run.folder, data, instead)
    unpack_layers(run.net)
    return run


def _untrained(rule: Rule, data: DataSet, options: Options, module: ImagePath | None) -> Run:
    """What a run is before its first step."""
    task, compute = Task.of(data), Compute.find(options.device, options.precision)
    net = untrained(rule, task, options.seed, data.train, module).to(compute.device)
    return Run(rule, net, task, compute, options.seed, 0, {})


def alignment_curves(folder: Path, measure: str = "cosine") -> dict[str, list[tuple[int, float]]]:
    """Return tensor -> (step, value) over the training of a run that was started with `align`, or nothing.

    Args:
        folder: the run's.
        measure: a field of `Alignment` but `elements`, or its name in the metrics: signal_to_noise, signal to noise.

    Raises:
        CheckpointError: if the run's metrics cannot be read.
        InputError: for a measure that there is not.
    """
    measure = MEASURES.get(measure, measure)
    if measure not in MEASURES.values():
        raise InputError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}")
    curves: dict[str, list[tuple[int, float]]] = {}
    found = RunFolder(folder)
    file, state = found.metrics_file, found.open_state()
    if not check_plain(file):
        return curves
    if state:
        found.metrics_of(state[1])
    try:
        for line in map(json.loads, read_plain(file).decode().splitlines()):
            tensor, _, name = line["name"].rpartition(": ")
            if line["split"] == SPLIT and name == measure:
                curves.setdefault(tensor, []).append((int(line["step"]), float(line["value"])))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    return curves
