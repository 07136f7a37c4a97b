"""Optimisers and schedules of the user's own: made by a function, tried before the first step, and kept in a run."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from sidestep import checkpoint
from sidestep.errors import CheckpointError, InputError
from sidestep.training.attached_log import fixed_options

__all__ = [
    "OptimizerFactory",
    "SchedulerFactory",
    "check_kept",
    "check_steps_along_gradients",
    "made_optimizer",
    "made_scheduler",
    "own_record",
    "restore_scheduler",
]

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], LRScheduler]


def check_steps_along_gradients(rule: Any, what: str) -> None:
    """Raise InputError for a rule whose steps an optimiser of torch's cannot take, given `what`."""
    if not rule.takes.optimizer:
        choice = rule.takes.no_optimizer_with
        which = f"{rule.name} with {choice}" if choice else rule.name
        raise InputError(
            f"{what} is for rules that step along gradients, and the steps of {which} are moves of single ternary "
            f"weights: leave {what} out, or take another {'choice or ' if choice else ''}rule (`sidestep rules`)"
        )


def made_optimizer(factory: OptimizerFactory | None, own: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser that a function makes from the parameter groups of the rule's own, or that one itself.

    Raises:
        InputError: for what is no function, or makes no optimiser of just these parameters that steps without a loss.
    """
    if factory is None:
        return own
    groups = [{"params": list(group["params"])} for group in own.param_groups]
    made = _called("optimizer", factory, groups, "groups: torch.optim.SGD(groups, lr=0.1)")
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(
            f"optimizer must make an optimiser of torch's from parameter groups, got {type(made).__name__}"
        )
    kind = type(made).__name__
    if _needs_arguments(made.step):
        raise InputError(f"{kind} asks for a loss at other weights in each step, which no update has: take another")
    if any("lr" not in group for group in made.param_groups):
        raise InputError(f"{kind} has no learning rate lr in its parameter groups: take another optimiser")
    wanted, found = ({id(p) for group in groups for p in group["params"]} for groups in _groups_of(own, made))
    if wanted != found:
        raise InputError(
            f"the optimiser is of {len(found & wanted)} of the {len(wanted)} parameters that the rule trains, and of "
            f"{len(found - wanted)} others: make it from the groups that the function is given, and freeze a weight by "
            "requires_grad_(False)"
        )
    return made


def made_scheduler(
    factory: SchedulerFactory | None, optimizer: torch.optim.Optimizer, logged: bool = False
) -> LRScheduler | None:
    """Return the schedule that a function makes for an optimiser; None without one.

    Args:
        factory: makes it.
        optimizer: that it is for.
        logged: whether a log keeps the steps, of which it has the learning rates and nothing else that may move.

    Raises:
        InputError: for what is no function, or makes no schedule that steps by itself.
    """
    if factory is None:
        return None
    fixed = fixed_options(optimizer)
    made = _called("scheduler", factory, optimizer, "optimizer: StepLR(optimizer, 1000)")
    if not isinstance(made, LRScheduler):
        raise InputError(f"scheduler must make a schedule of torch's for an optimiser, got {type(made).__name__}")
    if _needs_arguments(made.step):
        raise InputError(
            f"{type(made).__name__} waits for a score, and a schedule here is stepped after every training step, "
            "without one: take another, or end early by Options(patience=...)"
        )
    if logged and fixed_options(optimizer) != fixed:
        raise InputError(
            f"{type(made).__name__} moves other options than the learning rate, which the step log of this rule does "
            "not keep: give it cycle_momentum=False, or train without a folder (out)"
        )
    return made


def own_record(
    factory: Callable[..., Any] | None, made: torch.optim.Optimizer | LRScheduler | None
) -> dict[str, Any] | None:
    """Return what a run's configuration says of what a function has made: names, and the numbers it began with."""
    if factory is None or made is None:
        return None
    if isinstance(made, torch.optim.Optimizer):
        groups = [{key: value for key, value in group.items() if key != "params"} for group in made.param_groups]
        same = all(group == groups[0] for group in groups)
        found = groups[0] if same else {key: [group.get(key) for group in groups] for key in groups[0]}
    else:
        found = {key: value for key, value in made.state_dict().items() if not key.startswith("_")}
    numbers = {str(key): _plain(value) for key, value in found.items()}
    return {"name": getattr(factory, "__qualname__", type(factory).__qualname__), "class": type(made).__name__,
            **{key: value for key, value in numbers.items() if value is not None}}  # fmt: skip


def check_kept(factory: OptimizerFactory | None, own: torch.optim.Optimizer, scheduler: LRScheduler | None) -> None:
    """Raise InputError for an optimiser or a schedule whose memory no checkpoint could give back.

    The optimiser is tried on parameters of two numbers a side, before anything is written: it takes a step, and what it
    remembers is written and put back.
    """
    if factory is not None:
        groups = [{"params": [_small(p) for p in group["params"]]} for group in own.param_groups]
        trial = factory(groups)
        for group in groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        with torch.no_grad():
            trial.step()
        try:
            tensors, record = checkpoint.optimizer_tensors(trial)
            checkpoint.restore_optimizer(trial, tensors, json.loads(json.dumps(record)))
        except (TypeError, ValueError, CheckpointError) as error:
            raise InputError(
                f"what {type(trial).__name__} remembers cannot be kept in a checkpoint ({error}): take another "
                "optimiser, or train without a folder (out)"
            ) from error
    if scheduler is not None:
        state = scheduler.state_dict()
        try:
            same = bool(_as_now(json.loads(json.dumps(state)), state) == state)
        except (TypeError, ValueError):
            same = False
        if not same:
            raise InputError(
                f"what {type(scheduler).__name__} remembers cannot be kept in a checkpoint: take another schedule, or "
                "train without a folder (out)"
            )


def restore_scheduler(scheduler: LRScheduler | None, state: Mapping[str, Any] | None, step: int) -> None:
    """Bring a schedule to where it stood: by what a checkpoint holds, or, without it, by as many steps."""
    if scheduler is None:
        return
    if state is not None:
        scheduler.load_state_dict(_as_now(state, scheduler.state_dict()))
        return
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate  # a replayed log has left the rate of its last step
    for _ in range(step):
        scheduler.step()


def _called(what: str, factory: Any, given: Any, example: str) -> Any:
    if not callable(factory) or isinstance(factory, torch.optim.Optimizer | LRScheduler):
        raise InputError(f"{what} must be a function, {what}=lambda {example}, got {type(factory).__name__}")
    return factory(given)


def _groups_of(*optimizers: torch.optim.Optimizer) -> list[list[dict[str, Any]]]:
    return [optimizer.param_groups for optimizer in optimizers]


def _needs_arguments(step: Callable[..., Any]) -> bool:
    given = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(step).parameters.values()
    return any(p.default is inspect.Parameter.empty and p.kind in given for p in parameters)


def _small(parameter: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().new_zeros([min(2, size) for size in parameter.shape]))


def _plain(value: Any) -> Any:
    """A value as TOML has it; None for what it has not."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        found = [_plain(each) for each in value]
        return None if any(each is None for each in found) else found
    return None


def _as_now(saved: Any, now: Any) -> Any:
    """What JSON made of a value, in the kinds that a fresh one has: numbers as keys, tuples, counters."""
    if isinstance(now, Mapping) and isinstance(saved, Mapping):
        keys = {str(key): key for key in now}
        found = {keys.get(key, key): _as_now(value, now.get(keys.get(key, key))) for key, value in saved.items()}
        return type(now)(found) if isinstance(now, dict) else found
    if isinstance(now, list | tuple) and isinstance(saved, list) and len(now) == len(saved):
        return type(now)(_as_now(one, other) for one, other in zip(saved, now, strict=True))
    return saved
