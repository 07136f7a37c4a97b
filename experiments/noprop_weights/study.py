"""Why a loss's weight on times fails: which times own the gradient, on the nets that several losses have trained."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from experiments.noprop_weights.gradient_by_time import (
    accuracy_at_times,
    bin_centres,
    effective_share,
    nearest_accuracy_at_times,
    squared_gradients,
)
from sidestep.data import DataSet, Split
from sidestep.data.task import Task
from sidestep.errors import InputError
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.noprop.time_schedules import Schedule
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule
from sidestep.rules.record import hyper_parameters
from sidestep.training import Compute, Options
from sidestep.training.begin import begin
from sidestep.training.evaluate import accuracies
from sidestep.training.loop import Loop
from sidestep.training.state import State

__all__ = ["PLAIN", "WeightStudy", "study_weights"]

PLAIN = 0.95  # z_t alone, without the image, gives the label that often
_OFTEN = 50  # looks at the embeddings while training


@dataclass(frozen=True)
class WeightStudy:
    """How the nets are looked at."""

    bins: int = 32
    """Equal intervals of time; the gradient is taken at their centres."""
    images: int = 256
    """Images of the validation split (of the training split where there is none), with one draw of noise for all."""
    eta: float = 1.0
    """Weight of the denoising loss (the paper's eta)."""
    largest_weight: float = 5.0
    """The most that the weight eta/2 SNR'(t) can be with loss = clipped."""
    readings: tuple[str, ...] = ()
    """Readings of the rules that accuracies are counted by."""

    def __post_init__(self) -> None:
        bin_centres(self.bins)
        if not 2 <= self.images <= 10_000:
            raise InputError(f"images must lie between 2 and 10,000, got {self.images}; 256 give a steady gradient")
        for name in ("eta", "largest_weight"):
            if not 0 < getattr(self, name) <= 1e6:
                raise InputError(f"{name} must be above 0 and at most 1e+06, got {getattr(self, name)}")

    def at(self, rule: Rule, net: nn.Module, data: DataSet, options: Options) -> dict[str, Any]:
        """Return shares of the gradient, weights and accuracies by time, and accuracies without the label."""
        if not isinstance(net, Denoiser) or net.schedule is None:
            raise InputError(f"the rule {rule.name} makes a net without a schedule in time; the study needs one with")
        schedule, noise = cast("Schedule", net.schedule), Noise(options.seed).stream("study")
        compute, held = Compute.find(options.device, options.precision), self.held(data, noise)
        task = Task.of(data)
        images = task.prepare(held.images[:].to(compute.device))
        labels, times = held.targets.to(compute.device), bin_centres(self.bins).to(compute.device)
        normal = noise.stream("noise").normal(len(labels) * net.dimension, device=compute.device)
        normal = normal.view(len(labels), net.dimension)
        net.eval()
        squares = squared_gradients(net, schedule, images, labels, normal, times, self.eta, self.largest_weight)
        with torch.no_grad():
            weight, level = self.eta / 2 * schedule.snr_slope(times), schedule.alpha_bar(times)
        alone = nearest_accuracy_at_times(net, schedule, labels, normal, times)
        shares = {name: _shares(values) for name, values in squares.items()}
        return {
            "gradient_share": shares,
            "gradient_norm": {name: math.sqrt(float(values.sum())) for name, values in squares.items()},
            "times_that_own_90_percent": {name: effective_share(values) for name, values in squares.items()},
            "gradient_share_where_z_is_plain": {
                name: sum(part for part, right in zip(values, alone, strict=True) if right >= PLAIN)
                for name, values in shares.items()
            },
            "weight": weight.tolist(),
            "alpha_bar": level.tolist(),
            "accuracy_given_true_z": accuracy_at_times(net, schedule, images, labels, normal, times),
            "accuracy_of_z_alone": alone,
            "accuracy": accuracies(rule, net, held, task, compute, noise, self.readings),
            "watched": rule.diagnostics(net),
        }

    def held(self, data: DataSet, noise: Noise) -> Split:
        """Return the images that are looked at."""
        split = data.validation if len(data.validation) else data.train
        rows = noise.stream("images").permutation(len(split))[: self.images].to(split.labels.device)
        return split.part(rows)


def study_weights(  # long: what is trained, and how it is looked at
    rules: Mapping[str, Rule],
    data: DataSet,
    options: Options,
    steps: int,
    look: WeightStudy,
    report: Callable[[str, int], None],
) -> dict[str, Any]:
    """Train a net by each rule for some steps, and look at the gradient of every loss on each net, time by time.

    Args:
        rules: name -> a rule that makes a Denoiser with a schedule; the first one's untrained net is looked at too.
        data: a data set; no test image is read.
        options: batch, seed, device and precision.
        steps: training steps; 0 looks at the untrained net only.
        look: how.
        report: called with the name of a rule and the steps that its net has taken, now and then.

    Raises:
        InputError: for numbers that cannot work, or a rule whose net has no schedule in time.
    """
    if not 0 <= steps <= 1_000_000:
        raise InputError(f"steps must be 0 (only the untrained net) or more, got {steps}")
    nets: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for name, rule in rules.items():
        state, loop = begin(rule, data, options)
        if not nets:
            nets["untrained"] = look.at(rule, state.net, data, options)
        if steps:
            training[name] = _train(loop, state, steps, partial(report, name))
            nets[name] = look.at(rule, state.net, data, options)
    return {
        "data": data.name, "train_images": len(data.train), "seed": options.seed, "batch": options.batch,
        "steps": steps, "eta": look.eta, "largest_weight": look.largest_weight,
        "images": min(look.images, len(data.validation) or len(data.train)),
        "split": "validation" if len(data.validation) else "training",
        "rules": {name: hyper_parameters(rule) for name, rule in rules.items()},
        "times": bin_centres(look.bins).tolist(), "nets": nets, "training": training,
    }  # fmt: skip


def _train(loop: Loop, state: State, steps: int, report: Callable[[int], None]) -> dict[str, Any]:
    """Take the steps; return every step's losses by name, and what the rule watches now and then."""
    losses: dict[str, list[float]] = {}
    watched: dict[str, list[float]] = {}
    watched_at: list[int] = []
    for step in range(steps + 1):
        if step % max(1, steps // _OFTEN) == 0 or step == steps:
            watched_at.append(step)
            for name, number in loop.rule.diagnostics(state.net).items():
                watched.setdefault(name, []).append(number)
            report(step)
        if step < steps:
            state.sums = {}
            loop.take_step(state)
            for name, value in state.sums.items():
                losses.setdefault(name, []).append(float(value))
    return {"losses": losses, "watched_at": watched_at, "watched": watched}


def _shares(squares: Tensor) -> list[float]:
    total = float(squares.sum())
    return [float(value) / total if total else 0.0 for value in squares]
