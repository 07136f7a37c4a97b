"""The object that `attach` makes: one training step of a rule for every call."""

import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.data.objective import Objective
from sidestep.errors import InputError
from sidestep.gradients.any_module import check_trainable
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule
from sidestep.rules.record import rule_record
from sidestep.rules.shared.any_module import LOSS, AnyModule, OwnSteps, as_dense, trains_any
from sidestep.rules.shared.chain import ChainOfStages
from sidestep.rules.takes import check_quantized
from sidestep.steplog.header import Header
from sidestep.training.attached_checks import check_finite, check_same, table, tell_of_no_effect
from sidestep.training.attached_files import load_attached, opened, save_attached, saved_example
from sidestep.training.attached_log import AttachedLog, Fixed, fixed_options
from sidestep.training.attached_ranks import AttachedRanks
from sidestep.training.attached_rule import Attached, Chain, Whole, take_update
from sidestep.training.attached_schedule import AttachedSchedule, begun
from sidestep.training.own_optimizer import OptimizerFactory, check_steps_along_gradients
from sidestep.update import Update

__all__ = ["Estimate", "Step"]


@dataclass(frozen=True)
class Estimate:
    """What one step would do, before it is done: for clipping, or for an optimiser of your own.

    update: the rule's own form of it; loss: mean loss of the batch, shape ().
    """

    update: Update
    loss: Tensor
    step: "Step"

    def to_grad(self) -> Tensor:
        """Add the estimated gradient to `.grad` of the parameters, as `loss.backward()` does, and return the loss.

        The step counts as taken, and running statistics are written. An optimiser has to follow: `step.optimizer`, or
        one of your own.
        """
        return self.step.to_grad(self)


class Step:
    """Takes one training step of a rule for every call; `attach` makes it.

    model: what is trained; steps: how many steps were taken.
    """

    def __init__(  # long: what `attach` was given, and the ranks that it found
        self,
        model: nn.Module,
        rule: Rule,
        objective: Objective,
        noise: Noise,
        optimizer: OptimizerFactory | None = None,
        ranks: AttachedRanks | None = None,
        schedule: AttachedSchedule | None = None,
    ) -> None:
        self.model, self.rule, self.steps = model, rule, 0
        self._ranks, self._schedule = ranks, schedule
        self._objective, self._noise, self._factory = objective, noise, optimizer
        self._stream = noise.stream("estimate")
        check_quantized(rule, model)
        if isinstance(rule, OwnSteps):  # whose weights need not be floats
            rule.check_weights(model)
        else:
            check_trainable(model, rounded=True)
        self._table = table(model)
        self._attached: Attached | None = None
        self._example: tuple[list[int], str] | None = None  # shape and dtype that what the rule added was made for
        self._log: AttachedLog | None = None
        if isinstance(rule, AnyModule) and trains_any(rule):
            self._attached = begun(Whole(model, rule, objective, optimizer), schedule)
        elif not isinstance(rule, ChainOfStages):
            why = getattr(getattr(rule, "takes", None), "no_attach", "it is no rule of sidestep.rules")
            raise InputError(
                f"{getattr(rule, 'name', type(rule).__name__)} cannot be attached to a model: {why}; or attach a rule "
                "that takes any module or a chain of stages (`sidestep rules`)"
            )

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that steps along the estimates, for learning-rate schedulers of torch's."""
        return self._ready().optimizer

    @property
    def net(self) -> nn.Module:
        """The model, or the net of its stages with the heads and feedback that the rule added."""
        return self._ready().net

    def begin(self, example: Tensor) -> None:
        """Make what the rule adds to a chain of stages, which is done by the first step otherwise."""
        if self._attached is None and isinstance(self.rule, ChainOfStages):
            noise = self._noise.stream("build")
            chain = Chain(self.model, self.rule, self._objective, self._factory, example, noise)
            self._attached = begun(chain, self._schedule)
            self._example = list(example.shape), str(example.dtype).removeprefix("torch.")

    def __call__(self, *batch: Any) -> Tensor:
        """Take one step, and return the mean loss that it was estimated from, shape (), without derivatives.

        Args:
            batch: inputs and targets; or, for rules that take any module, a function without arguments that calls the
                model and returns the loss, one number or one per example. It may be called several times for one step,
                so it must do the same each time: take the next batch outside of it. It does not call backward(). Of
                several ranks each gives the rows, or the functions, of its own parts (`rows`).

        Raises:
            InputError: for a batch that the model cannot take, a loss of another form, or a model that has changed.
            NonFiniteError: if the loss is not a finite number; the model is then as it was before the step.
        """
        found = self.estimate(*batch)
        self._take(found.update)
        return found.loss

    @property
    def noise(self) -> Noise:
        """The noise that the next step is estimated with."""
        return self._stream.at(self.steps)

    def take(self, update: Update) -> None:
        """Take a step along an estimate that the rule has made with `noise`."""
        check_same(self.model, self._table)
        self._take(update)

    def _take(self, update: Update) -> None:
        with self._together():
            if self._schedule:
                self._schedule.set(self.optimizer, self.steps)
            take_update(self._ready(), update, self._record_step if self._log else None)
        self.steps += 1

    def estimate(self, *batch: Any) -> Estimate:
        """Return what the next step would do, without doing it; see `__call__` for the argument and errors."""
        check_same(self.model, self._table)
        if self._attached is None and len(batch) == 2:
            self.begin(batch[0])
        if self._attached is None:
            raise InputError(
                f"{self.rule.name} has to see what its stages give: call step(inputs, targets), with the loss as "
                "attach(..., objective=loss_function)"
            )
        with self._together():
            if self._ranks:
                update = self._ranks.estimate(self._attached, batch, self.noise)
            else:
                update = self._attached.estimate(batch, self.noise)
            check_finite(update, self.steps, batch)
        if self.steps == 0 and len(batch) == 1:
            tell_of_no_effect(update)
        of_outputs = [name for name in update.losses if name.endswith(f": {self._objective.name}")]
        last = LOSS if LOSS in update.losses else list(update.losses)[-1]
        return Estimate(update, update.losses[of_outputs[-1] if of_outputs else last], self)

    def to_grad(self, estimate: Estimate) -> Tensor:
        """See `Estimate.to_grad`."""
        if self._log:
            raise InputError(
                "steps of another optimiser cannot be replayed; leave log out of attach, or call step(...)"
            )
        check_steps_along_gradients(self.rule, "to_grad")
        net = self._ready().net
        dense = as_dense(net, estimate.update)
        parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
        with torch.no_grad():
            for name, gradient in dense.gradients.items():
                own = parameters[name]
                own.grad = gradient.to(own.dtype) if own.grad is None else own.grad + gradient
            for name, value in dense.statistics.items():
                buffers[name].copy_(value)
        self.steps += 1
        return estimate.loss

    def begin_log(self, path: Path, training: Mapping[str, Any] | None = None, seconds: float = 30.0) -> None:
        """Begin the log, with `training` in its header and steps in memory for `seconds`; `attach(log=...)` does."""
        if self._attached is None and not isinstance(self.rule, OwnSteps):
            raise InputError(f"the steps of {self.rule.name} are whole gradients, which no log keeps; leave log out")
        known = {**(self._schedule.record if self._schedule else {}), **(training or {})}
        header = Header.attached_to(self.model, self._record()["rule"], self._noise.seed, known)
        if self._leads:
            self._log = AttachedLog.begin(path, header, self._fixed(), seconds)
            weakref.finalize(self, self._log.close)  # also when the program ends: no step that was taken is lost

    def save(self, folder: str | Path, extra: Mapping[str, Any] | None = None, frozen: bool = True) -> None:
        """Write model, optimiser, position and log so that the loop can go on from here: `FOLDER/state.safetensors`.

        Args:
            folder: made if it is not there.
            extra: plain JSON to keep with it, such as `{"scheduler": scheduler.state_dict(), "epoch": 3}`.
            frozen: whether frozen weights are written, too; without them, load into a model that has them.

        Raises:
            CheckpointError: if it cannot be written; what was there stays.
            InputError: for extra values that are no JSON.
        """
        attached = self._ready()
        logged = self._log.commit() if self._log else {}
        record = {**self._record(), "step": self.steps, "example": self._example, **logged, "extra": dict(extra or {})}
        record |= {} if frozen else {"frozen": False}
        if self._leads:
            with self._together():
                save_attached(Path(folder), record, attached.net, attached.optimizer)

    def load(self, folder: str | Path, log: str | Path | None = None) -> dict[str, Any]:
        """Go on where `save` was called, to the same bits; return what `extra` was.

        A scheduler of torch's is made before, since making it sets the learning rate; then
        `scheduler.load_state_dict(extra["scheduler"])`.

        Args:
            folder: that `save` wrote.
            log: the step log to go on with, if there is one; what it holds beyond the saved step is cut off.

        Raises:
            CheckpointError: if there is none, or it is damaged, or of another model or rule.
        """
        with self._together():
            place, own = Path(folder), self._record()
            saved = self._ranks.opened(place, own) if self._ranks else opened(place, own)
        if self._attached is None:
            self.begin(saved_example(saved).to(next(self.model.parameters()).device))
        attached = self._ready()
        record = load_attached(Path(folder), saved, attached.net, attached.optimizer)
        self.steps, self._example = int(record["step"]), record["example"]
        path = Path(log) if log is not None else self._log.path if self._log else None
        if path is not None and self._leads:
            if self._log:
                self._log.close()
            self._log = AttachedLog.resume(path, record, self._fixed())
            weakref.finalize(self, self._log.close)
        return dict(record["extra"])

    def close(self) -> None:
        """Write what is left of the log and close it."""
        if self._log:
            self._log.close()

    def __enter__(self) -> "Step":
        """Return itself; the log is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the log."""
        self.close()

    def rows(self, total: int) -> Tensor:
        """Return the numbers of the rows that this process takes of a batch of so many, int64: all, of one process.

        `step(inputs[rows], targets[rows])`, where every rank has the whole batch.
        """
        return self._ranks.rows(total) if self._ranks else torch.arange(total)

    def check_ranks(self) -> None:
        """Refuse ranks that train another model, by another rule, or from another seed; `attach` calls it."""
        if self._ranks:
            self._ranks.check_same(self.model, self._record())

    @property
    def _leads(self) -> bool:
        return self._ranks is None or self._ranks.world.leads

    def _together(self) -> AbstractContextManager[None]:
        """Tell the other ranks, if there are any, of an error in the block."""
        return self._ranks.together() if self._ranks else nullcontext()

    def _ready(self) -> Attached:
        if self._attached is None:
            raise InputError(
                f"what {self.rule.name} adds to the stages is made for the first batch; take a step before, or give "
                "attach(..., example=inputs)"
            )
        return self._attached

    def _record_step(self, update: Update) -> None:
        if self._log:
            self._log.record(self.steps, self._ready().logged(update), self.optimizer)

    def _fixed(self) -> Fixed | None:
        """What of the optimiser a log does not keep, so that it has to stay; of steps of the rule's own, nothing."""
        if isinstance(self.rule, OwnSteps) or not isinstance(self.rule, AnyModule):
            return None
        return fixed_options(self.rule.optimizer_any(self.model))

    def _record(self) -> dict[str, Any]:
        return {"rule": rule_record(self.rule), "seed": self._noise.seed}
