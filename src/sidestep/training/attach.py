"""A rule inside a loop of the user's own: one object that takes a step whenever it is called with a loss.

estimate(model, loss, noise of this step) -> decide -> step log -> apply         one call, one step
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import InputError, NonFiniteError
from sidestep.nets.any_module import Losses
from sidestep.noise import Noise
from sidestep.rules.any_module import AnyModule, apply_any, as_dense, decide_any
from sidestep.rules.dense import apply_dense
from sidestep.rules.protocol import Rule
from sidestep.steplog.header import Header
from sidestep.training.attached_files import load_attached, save_attached
from sidestep.training.attached_log import AttachedLog, fixed_options
from sidestep.update import Seeded, Update
from sidestep.wording import counted

__all__ = ["Estimate", "OptimizerFactory", "Step", "attach"]

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def attach(  # long: what a step can be given
    model: nn.Module,
    rule: Rule,
    *,
    seed: int = 0,
    optimizer: OptimizerFactory | None = None,
    log: str | Path | None = None,
    resume: str | Path | None = None,
) -> "Step":
    """Return a rule that trains `model`, in place, one step for every call from a loop of your own.

    Args:
        model: any module, with its weights as they are; what is frozen (`requires_grad` False) stays as it is.
        rule: spsa, evolution, forward-gradient or backprop, for instance `rules.SPSA(learning_rate=1e-6)`.
        seed: where the rule's random directions come from, and what dropout draws.
        optimizer: makes an optimiser from parameter groups, in place of the rule's own:
            `lambda groups: torch.optim.SGD(groups, lr=0.1)`.
        log: file to write the step log to, for rules that tell a step by one number per direction.
        resume: folder that `Step.save` wrote; the loop goes on from there.

    Raises:
        InputError: for a rule or a module that cannot be used so.
        CheckpointError: if `resume` is of another model or rule, or the log cannot be written.

    >>> from sidestep import attach, rules
    >>> from torch.nn.functional import mse_loss
    >>> model = nn.Linear(3, 1)
    >>> step = attach(model, rules.Backprop(learning_rate=0.1))
    >>> inputs = torch.eye(3)
    >>> losses = [float(step(lambda: mse_loss(model(inputs), torch.ones(3, 1)))) for _ in range(50)]
    >>> losses[-1] < 0.1 * losses[0]
    True
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"attach trains an nn.Module, got {type(model).__name__}")
    if not isinstance(rule, AnyModule):
        raise InputError(
            f"{getattr(rule, 'name', type(rule).__name__)} does not train a module that it has not built, by its loss "
            "alone; take a rule that needs nothing but the loss, or train(rule, data, module=...)"
        )
    if optimizer is not None and log is not None:
        raise InputError("a log can be replayed with the rule's own optimiser alone; leave log or optimizer out")
    rule.check_any(model)
    step = Step(model, rule, Noise(seed), optimizer)
    if resume is not None:
        step.load(resume, log)
    elif log is not None:
        step.begin_log(Path(log))
    return step


@dataclass(frozen=True)
class Estimate:
    """What one step would do, before it is done: for clipping, or for an optimiser of your own.

    update: the rule's own form of it.
    loss: mean loss of the batch, shape ().
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

    model: what is trained.
    optimizer: the optimiser that steps along the estimates, for learning-rate schedulers of torch's.
    steps: how many steps were taken.
    """

    def __init__(
        self, model: nn.Module, rule: AnyModule, noise: Noise, optimizer: OptimizerFactory | None = None
    ) -> None:
        self.model, self.rule, self.steps = model, rule, 0
        self._noise, self._factory = noise, optimizer
        own = rule.optimizer_any(model)
        self.optimizer = optimizer(_groups(own)) if optimizer else own
        self._table = _table(model)
        self._fixed = fixed_options(self.optimizer)
        self._log: AttachedLog | None = None

    def __call__(self, losses: Losses) -> Tensor:
        """Take one step, and return the mean loss that it was estimated from, shape (), without derivatives.

        Args:
            losses: function without arguments that calls the model and returns the loss, one number or one per example.
                It may be called several times for one step, so it must do the same each time: take the next batch
                outside of it. It does not call backward().

        Raises:
            InputError: for a loss of another form, or a model that has changed.
            NonFiniteError: if the loss is not a finite number; the model is then as it was before the step.
        """
        found = self.estimate(losses)
        update = found.update if self._factory else decide_any(found.update, self.optimizer)
        if self._log:
            self._log.record(self.steps, update, self.optimizer)
        if self._factory:
            apply_dense(self.model, as_dense(self.model, update), self.optimizer)
        else:
            apply_any(self.model, update, self.optimizer)
        self.steps += 1
        return found.loss

    def estimate(self, losses: Losses) -> Estimate:
        """Return what the next step would do, without doing it; see `__call__` for the argument and errors."""
        self._check_same()
        if not callable(losses):
            raise InputError(
                f"a step needs a function that returns the loss, got {type(losses).__name__}; write "
                "step(lambda: loss_function(model(inputs), targets))"
            )
        update = self.rule.estimate_any(self.model, losses, self._noise.stream("estimate").at(self.steps))
        loss = next(iter(update.losses.values()))
        _check_finite(update, loss, self.steps)
        return Estimate(update, loss, self)

    def to_grad(self, estimate: Estimate) -> Tensor:
        """See `Estimate.to_grad`."""
        if self._log:
            raise InputError(
                "steps of another optimiser cannot be replayed; leave log out of attach, or call step(...)"
            )
        dense = as_dense(self.model, estimate.update)
        parameters, buffers = dict(self.model.named_parameters()), dict(self.model.named_buffers())
        with torch.no_grad():
            for name, gradient in dense.gradients.items():
                own = parameters[name]
                own.grad = gradient.to(own.dtype) if own.grad is None else own.grad + gradient
            for name, value in dense.statistics.items():
                buffers[name].copy_(value)
        self.steps += 1
        return estimate.loss

    def begin_log(self, path: Path) -> None:
        """Begin the step log; `attach(log=...)` calls it."""
        header = Header.attached_to(self.model, self._record()["rule"], self._noise.seed)
        self._log = AttachedLog.begin(path, header, self._fixed)
        weakref.finalize(self, self._log.close)  # also when the program ends: no step that was taken is lost

    def save(self, folder: str | Path, extra: Mapping[str, Any] | None = None) -> None:
        """Write model, optimiser, position and log so that the loop can go on from here: `FOLDER/state.safetensors`.

        Args:
            folder: made if it is not there.
            extra: plain JSON to keep with it, such as `{"scheduler": scheduler.state_dict(), "epoch": 3}`.

        Raises:
            CheckpointError: if it cannot be written; what was there stays.
            InputError: for extra values that are no JSON.
        """
        logged = self._log.commit() if self._log else {}
        record = {**self._record(), "step": self.steps, **logged, "extra": dict(extra or {})}
        save_attached(Path(folder), record, self.model, self.optimizer)

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
        record = load_attached(Path(folder), self._record(), self.model, self.optimizer)
        self.steps = int(record["step"])
        path = Path(log) if log is not None else self._log.path if self._log else None
        if path is not None:
            if self._log:
                self._log.close()
            self._log = AttachedLog.resume(path, record, self._fixed)
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

    def _record(self) -> dict[str, Any]:
        options = {field.name: getattr(self.rule, field.name) for field in fields(self.rule)}  # type: ignore[arg-type]
        return {"rule": {"name": self.rule.name, **options}, "seed": self._noise.seed}

    def _check_same(self) -> None:
        now = _table(self.model)
        if now == self._table:
            return
        names = [name for name, _ in self.model.named_parameters()]
        raise InputError(
            f"the model has changed since attach: {_difference(self._table, now, names)}; attach the rule again after "
            "parameters were added, replaced, frozen or unfrozen"
        )


def _groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{"params": group["params"]} for group in optimizer.param_groups]


def _table(model: nn.Module) -> list[tuple[int, bool, torch.Size]]:
    return [(id(parameter), parameter.requires_grad, parameter.shape) for parameter in model.parameters()]


def _check_finite(update: Update, loss: Tensor, step: int) -> None:
    """Raise NonFiniteError for a loss, or coefficients, that are no finite numbers."""
    numbers = torch.cat([loss.reshape(1), update.coefs.to(loss.dtype)]) if isinstance(update, Seeded) else loss
    if not bool(numbers.isfinite().all()):
        raise NonFiniteError(
            f"the loss is {float(loss)} at step {step}, or not finite nearby; the model is as it was before this step; "
            "try a smaller learning rate, or look for extreme inputs"
        )


def _difference(before: list[Any], now: list[Any], names: list[str]) -> str:
    """Say what happened to the first parameter that is not as it was."""
    if len(before) != len(now):
        return f"it had {counted(len(before), 'parameter')}, and has {len(now)}"
    place = next(index for index, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
    (own, trains, shape), (other, trains_now, shape_now) = before[place], now[place]
    if own != other:
        return f"the parameter {names[place]} is another one"
    if trains != trains_now:
        return f"the parameter {names[place]} was {'un' * trains_now}frozen"
    return f"the parameter {names[place]} had the shape {tuple(shape)}, and has {tuple(shape_now)}"
