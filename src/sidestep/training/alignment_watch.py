"""Measuring a rule's estimates against the true gradient, on one held batch, at a bounded share of training's time."""

import math
import time
from collections.abc import Callable
from dataclasses import fields

from torch import nn

from sidestep.data import DataSet, Split
from sidestep.errors import InputError
from sidestep.measure import Alignment, Comparison
from sidestep.noise import Noise
from sidestep.rules import RULES
from sidestep.rules.protocol import Batch, HasBatchMultiple, HasTrueGradient, Rule, Task
from sidestep.rules.shared.any_module import as_dense
from sidestep.training.observers import Begin, StepEnd
from sidestep.training.options import Compute, Options

__all__ = [
    "MEASURES",
    "SPLIT",
    "AlignmentMonitor",
    "TimeBudget",
    "check_alignment_options",
    "check_measurable",
    "compare",
    "held_batch",
]

SPLIT = "alignment"  # under which split the numbers stand in a run's metrics
SHARE = "share of the time"
MEASURES = {field.name: field.name.replace("_", " ") for field in fields(Alignment) if field.name != "elements"}
_ESTIMATES = 2  # in one look during training: the least that tells noise from signal
_FIRST = 2 * (_ESTIMATES + 2)  # steps that the first look is taken to cost, before one has been timed


def check_measurable(rule: Rule) -> HasTrueGradient:
    """Return the rule as one whose estimates can be measured.

    Raises:
        InputError: if it has no true gradient; says why, and which rules have one.
    """
    if isinstance(rule, HasTrueGradient):
        return rule
    why = getattr(rule, "no_true_gradient", "it has no method true_gradients (see sidestep.rules.HasTrueGradient)")
    known = ", ".join(name for name, kind in RULES.items() if issubclass(kind, HasTrueGradient))
    raise InputError(f"{rule.name} cannot be compared with the true gradient: {why}; the rules that can: {known}")


def held_size(rule: Rule, split: Split, size: int) -> int:
    """Return how many images of a validation split a rule's held batch has, at most `size`.

    Raises:
        InputError: if there are fewer than two, or than the rule divides a batch into.
    """
    name, multiple = rule.batch_multiple if isinstance(rule, HasBatchMultiple) else ("", 1)
    most = min(size, len(split))
    found = most - most % multiple  # a validation split has the size it has: only training's batch must divide exactly
    if found < 2:
        least = max(2, multiple)
        why = f", for {name} = {multiple}" if multiple > 1 else ""
        raise InputError(
            f"measuring alignment needs a batch of at least {least} {split.example}s that are not trained on{why}, "
            f"got {most}; keep some aside with --validation 0.1, and take a --batch of {least} or more"
        )
    return found


def held_batch(rule: Rule, split: Split, task: Task, size: int, compute: Compute) -> Batch:
    """Return the first images of a validation split, at most `size`, which training never sees.

    Raises:
        InputError: if there are fewer than two, or than the rule divides a batch into.
    """
    size = held_size(rule, split, size)
    inputs = task.prepare(split.images[:size].to(compute.device))
    return Batch(inputs, split.labels[:size].to(compute.device), task.objective)


def compare(  # long: what an estimate depends on
    rule: Rule, net: nn.Module, batch: Batch, noise: Noise, estimates: int, compute: Compute
) -> Comparison:
    """Return how several estimates from one batch, each with noise of its own, agree with that batch's true gradient.

    The net is left bitwise as it was. Estimates are those before `decide`, in the precision of training; the gradient
    is in float32.
    """
    compared = Comparison(check_measurable(rule).true_gradients(net, batch))
    for index in range(estimates):
        with compute.autocast():
            update = rule.estimate(net, batch, noise.stream(f"estimate {index}"))
        compared.add(as_dense(net, update).gradients)
    return compared


class TimeBudget:
    """Lets looks happen only while all of them together have taken at most a share of the time.

    A look is allowed if it can be paid for from the time since the last one, and all together from the time since the
    beginning, at the price of the dearest so far (the first one: of `guess` steps). So looks are spread over the run,
    and the share is kept at every moment, unless a look costs more than any before it; that is then made up for.
    """

    def __init__(self, share: float, guess: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share, self.guess, self.clock = share, guess, clock
        self.started = self.last = clock()
        self.steps, self.spent, self.dearest = 0, 0.0, 0.0

    def allows(self) -> bool:
        """Count one step, and say whether a look may follow it."""
        self.steps += 1
        now = self.clock()
        gone = now - self.started
        price = self.dearest or self.guess * (gone - self.spent) / self.steps
        return price <= self.share * (now - self.last) and self.spent + price <= self.share * gone

    @property
    def taken(self) -> float:
        """The share of the time so far that looks have taken."""
        return self.spent / max(1e-9, self.clock() - self.started)

    def pay(self, seconds: float) -> None:
        """Note what a look has taken."""
        self.spent += seconds
        self.dearest = max(self.dearest, seconds)
        self.last = self.clock()


def check_alignment_options(rule: Rule, data: DataSet, options: Options) -> None:
    """Raise InputError if alignment is to be measured while training, and cannot be."""
    if not options.align:
        return
    check_measurable(rule)
    held_size(rule, data.validation, options.batch)
    if options.units != "together":
        raise InputError(
            f"align makes estimates and gradients of all units at once, which units = {options.units} is to avoid; use "
            "units = together, or leave align out"
        )
    if options.out is None:
        raise InputError("align writes its numbers to the metrics.jsonl of a run's folder: give one (out), or align=0")


class AlignmentMonitor:
    """Writes the alignment of a run's estimates to its metrics, now and then, and leaves training's bits alone.

    Args:
        rule: the rule, which must be measurable.
        data: where the held batch comes from: the validation split.
        options: batch, seed, and the share of the time.
        compute: device and precision.
    """

    only_looks = True  # it never ends a run

    def __init__(self, rule: Rule, data: DataSet, options: Options, compute: Compute) -> None:
        self.rule, self.compute = rule, compute
        self.batch = held_batch(rule, data.validation, Task.of(data), options.batch, compute)
        self.noise = Noise(options.seed).stream("alignment")
        self.share = options.align

    def on_begin(self, event: Begin) -> None:
        """Start the clock."""
        self.allowance = TimeBudget(self.share, _FIRST)

    def on_step(self, event: StepEnd) -> None:
        """Measure, and write the numbers, if time allows."""
        if not self.allowance.allows():
            return
        started = self.allowance.clock()
        compared = compare(self.rule, event.net, self.batch, self.noise.at(event.step), _ESTIMATES, self.compute)
        for tensor, alignment in compared.result().items():
            for field, name in MEASURES.items():
                value = getattr(alignment, field)
                if math.isfinite(value):
                    event.write(SPLIT, f"{tensor}: {name}", value)
        self.allowance.pay(self.allowance.clock() - started)
        event.write(SPLIT, SHARE, self.allowance.taken)
