"""One run of a comparison, as it happens in a process of its own: training against a clock, or a step that is counted.

The clock runs while steps are taken, with the making of their batches, and stands still while anything is evaluated.
There are no checkpoints.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv2d

from sidestep.bench.comparison.entries import Entry
from sidestep.data import Split, load
from sidestep.errors import InputError
from sidestep.measure import (
    count_operations,
    peak_allocation,
    peak_memory_bytes,
    restart_peak_memory,
    update_bytes,
)
from sidestep.training.begin import begin
from sidestep.training.evaluate import accuracies
from sidestep.training.loop import Loop
from sidestep.training.state import State

__all__ = ["THRESHOLDS", "Budget", "RunPlan", "measure_counts", "measure_run"]

THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99)
_TELL = 0.2  # seconds between two words about the progress

Report = Callable[[Any], None]


@dataclass(frozen=True)
class Budget:
    """When a run ends: at whichever of these comes first."""

    epochs: int | None = None
    seconds: float | None = None  # of training
    forward_passes: float | None = None  # over the training split, or what takes as many operations
    accuracy: float | None = None  # on the validation split
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and not 1 <= self.epochs <= 1_000_000:
            raise InputError(f"--epochs must be 1 or more, got {self.epochs}")
        if self.steps is not None and not 1 <= self.steps <= 10**12:
            raise InputError(f"--steps must be 1 or more, got {self.steps}")
        for name, value in {"--seconds": self.seconds, "--forward-passes": self.forward_passes}.items():
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be above 0, got {value:g}")
        if self.accuracy is not None and not 0 < self.accuracy < 1:
            raise InputError(f"--to is a share of right answers above 0 and below 1, say 0.96, got {self.accuracy:g}")
        if {self.epochs, self.steps, self.seconds, self.forward_passes} == {None}:
            raise InputError("a run needs a budget: give --epochs, --steps, --seconds or --forward-passes")


@dataclass(frozen=True)
class RunPlan:
    """What one run is made of; passed to its process."""

    entry: Entry
    data: str
    seed: int
    budget: Budget
    common: Mapping[str, Any] = field(default_factory=dict)  # training options of all entries
    every: int | None = None  # steps between two evaluations; None for an epoch
    device: str = "auto"
    data_dir: Path | None = None
    validation: float = 0.1
    image_size: int | None = None
    forward_equivalents: float | None = None  # of a step, where the budget is in forward passes
    module: Callable[[], nn.Module] | None = None  # of the user's; what can be passed to another process
    target: str | None = None  # column of a table to be predicted

    def begin(self) -> tuple[State, Loop]:
        """Return the untrained net with its optimiser, and the loop that holds the data."""
        options = self.entry.training(self.common, epochs=self.budget.epochs, seed=self.seed, device=self.device)
        data = load(
            self.data, data_dir=self.data_dir, validation=self.validation, size=self.image_size, target=self.target
        )
        return begin(self.entry.make(), data, options, self.module)


def measure_run(plan: RunPlan, report: Report) -> dict[str, Any]:
    """Train by a plan, and return what was measured.

    Seconds are of training steps alone. The memory is the most that the process (on a GPU: torch) held during the
    steps before the first evaluation, over what it held when net, optimiser and data were there, less the optimiser's
    state, which the first step makes; with one resident unit nothing is taken off, since the state is in files.

    Args:
        plan: what to train, and how long.
        report: called with a share of the budget and a few words, now and then.
    """
    state, loop = plan.begin()
    device = loop.compute.device
    _load_kernels(device)
    before = restart_peak_memory(device)
    course = _Course(plan, state, loop, report)
    ended = course.run()
    best = loop.rule.readings[0]
    report((1.0, "testing"))
    test = _accuracy(state, loop, loop.data.test) if loop.data.has_test else None
    if state.files:
        state.files.close()
    kept = _state_bytes(state.optimizer)
    return {
        "ended_by": ended,
        "test_accuracy": test,
        "judged_images": len(loop.data.test if loop.data.has_test else loop.data.validation),
        "validation_accuracy": course.curve[-1][2],
        "reading": best,
        "steps": state.step,
        "epochs": state.step / loop.steps_per_epoch,
        "steps_per_epoch": loop.steps_per_epoch,
        "batch": loop.options.batch,
        "seconds": course.seconds,
        "seconds_per_step": statistics.median(course.took),
        "images_per_second": min(loop.options.batch, len(loop.data.train)) / statistics.median(course.took),
        "reached": course.reached(),
        "curve": course.curve,
        "peak_memory_bytes": max(0, course.peak - before - (0 if state.files else kept)),  # in files: not in memory
        "optimizer_bytes": kept,
        "device": str(device),
        "precision": loop.compute.precision,
        "threads": torch.get_num_threads(),
    }


def measure_counts(plan: RunPlan, report: Report) -> dict[str, Any]:
    """Return what is counted in a step of a rule, and does not depend on the clock.

    The operations of one estimate over those of one prediction of the same batch by the rule's default reading are its
    forward-pass equivalents. The allocation is of the second step, when the optimiser's state is there.
    """
    state, loop = plan.begin()
    rule, net, device = loop.rule, state.net, loop.compute.device
    loop.take_step(state)
    allocated = None
    if device.type in ("cpu", "cuda"):
        with peak_allocation(device) as peak:
            loop.take_step(state)
        allocated = peak.bytes
    batch, noise = loop.batch(state.step), loop.noise.stream("estimate").at(state.step)
    with count_operations() as estimated, loop.compute.autocast():
        update = rule.estimate(net, batch, noise)
    with count_operations() as forward, loop.compute.autocast():
        rule.predict(net, batch.inputs, loop.noise.stream("predict"), 0, [rule.readings[0]])
    decided = rule.decide(net, update, state.optimizer)
    sizes = [parameter.numel() for parameter in net.parameters()]
    if state.files:
        state.files.close()
    return {
        "estimate_operations": estimated.count,
        "forward_operations": forward.count,
        "forward_equivalents": estimated.count / forward.count if forward.count else None,
        "allocated_bytes": allocated,
        "estimate_kind": type(update).__name__,
        "estimate_bytes": update_bytes(update),
        "decided_kind": type(decided).__name__,
        "decided_bytes": update_bytes(decided),
        "parameters": sum(sizes),
        "units": len(rule.units(net)),
    }


class _Course:
    """The course of one training run: its clock, and what it passed."""

    def __init__(self, plan: RunPlan, state: State, loop: Loop, report: Report) -> None:
        self.plan, self.state, self.loop, self.report = plan, state, loop, report
        self.seconds, self.peak, self.told = 0.0, 0, 0.0
        self.took: list[float] = []  # seconds of every step
        self.curve: list[tuple[int, float, float]] = []  # steps, seconds, validation accuracy
        self.last = self._last_step()
        if self.last is not None:
            loop.total_steps = self.last

    def run(self) -> str:
        """Take steps until a budget is spent; return which."""
        every = self.plan.every or self.loop.steps_per_epoch
        while True:
            started = time.perf_counter()
            self.loop.take_step(self.state)
            if self.loop.compute.device.type == "cuda":
                torch.cuda.synchronize(self.loop.compute.device)
            self.took.append(time.perf_counter() - started)
            self.seconds += self.took[-1]
            self.state.sums = {}
            ended = self._ended()
            if ended or self.state.step % every == 0:
                self.peak = self.peak or peak_memory_bytes(self.loop.compute.device)  # evaluating takes memory too
                accuracy = _accuracy(self.state, self.loop, self.loop.data.validation)
                self.curve.append((self.state.step, self.seconds, accuracy))
                if self.plan.budget.accuracy is not None and accuracy >= self.plan.budget.accuracy:
                    return "accuracy"
            self._tell()
            if ended:
                return ended

    def reached(self) -> dict[str, dict[str, float] | None]:
        """Return accuracy -> the seconds and steps after which it was first measured, or None."""
        wanted = {*THRESHOLDS, *filter(None, [self.plan.budget.accuracy])}
        found: dict[str, dict[str, float] | None] = {}
        for threshold in sorted(wanted):
            first = next((point for point in self.curve if point[2] >= threshold), None)
            found[f"{threshold:g}"] = {"seconds": first[1], "steps": first[0]} if first else None
        return found

    def _last_step(self) -> int | None:
        budget = self.plan.budget
        ends = [] if budget.steps is None else [budget.steps]
        if budget.epochs is not None:
            ends.append(budget.epochs * self.loop.steps_per_epoch)
        if budget.forward_passes is not None:
            each = self.plan.forward_equivalents
            if not each:
                raise InputError("the forward passes of a step could not be counted; give --epochs or --seconds")
            ends.append(max(1, math.floor(budget.forward_passes * self.loop.steps_per_epoch / each)))
        return min(ends) if ends else None

    def _ended(self) -> str | None:
        budget = self.plan.budget
        if budget.seconds is not None and self.seconds >= budget.seconds:
            return "seconds"
        if self.last is None or self.state.step < self.last:
            return None
        if budget.epochs is not None and self.last == budget.epochs * self.loop.steps_per_epoch:
            return "epochs"
        return "steps" if self.last == budget.steps else "forward passes"

    def _tell(self) -> None:
        if time.perf_counter() - self.told < _TELL:
            return
        self.told = time.perf_counter()
        shares = [self.state.step / self.last] if self.last else []
        shares += [self.seconds / self.plan.budget.seconds] if self.plan.budget.seconds else []
        news = f", validation {self.curve[-1][2]:.2%}" if self.curve else ""
        self.report((min(1.0, max(shares)), f"step {self.state.step}{news}"))


def _accuracy(state: State, loop: Loop, split: Split) -> float:
    best = loop.rule.readings[0]
    with state.averaged() as net:
        return accuracies(loop.rule, net, split, loop.task, loop.compute, loop.noise, [best])[best]


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def _load_kernels(device: torch.device) -> None:
    """Run a convolution and a product forth and back: the libraries' own memory is none of a rule's."""
    images, kernel = torch.ones(2, 3, 8, 8, device=device), nn.Parameter(torch.ones(4, 3, 3, 3, device=device))
    weight = nn.Parameter(torch.ones(10, 4 * 36, device=device))
    (conv2d(images, kernel).flatten(1) @ weight.T).sum().backward()
