"""What a step of the user's own loop is held to: the same model as before, and losses that are numbers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import InputError, NonFiniteError
from sidestep.nets.trained import parameters_of
from sidestep.notices import tell
from sidestep.update import Dense, Seeded, Update, loss_values
from sidestep.wording import counted

__all__ = ["Table", "check_finite", "check_same", "table", "tell_of_no_effect"]

Table = list[tuple[int, bool, torch.Size]]


def check_same(model: nn.Module, before: Table) -> None:
    """Raise InputError unless a model has the parameters that it had, and trains the same ones."""
    now = table(model)
    if now == before:
        return
    names = [name for name, _ in model.named_parameters()]
    raise InputError(
        f"the model has changed since attach: {_difference(before, now, names)}; attach the rule again after "
        "parameters were added, replaced, frozen or unfrozen"
    )


def table(model: nn.Module) -> Table:
    """Return what tells a model's parameters apart."""
    return [(id(parameter), parameter.requires_grad, parameter.shape) for parameter in parameters_of(model).values()]


def check_finite(update: Update, step: int, batch: Sequence[Any]) -> None:
    """Raise NonFiniteError for losses, or numbers along directions, one of which is no finite number."""
    names, numbers = list(update.losses), loss_values(update)
    if isinstance(update, Seeded):
        names, numbers = [*names, *["along a direction"] * len(update.coefs)], [*numbers, *update.coefs.tolist()]
    if not all(map(math.isfinite, numbers)):
        name, value = next((n, v) for n, v in zip(names, numbers, strict=True) if not math.isfinite(v))
        raise NonFiniteError(
            f"the loss is {value} at step {step} ({name}); the model is as it was before this step; {_cause(batch)}"
        )


def tell_of_no_effect(update: Update) -> None:
    """Warn of a loss that the model's weights do not move, along any direction or by their gradients."""
    if isinstance(update, Dense):
        numbers = list(update.gradients.values())
        words = (
            "the gradients of the first step are all zero: the loss does not come from the model that was attached, or "
            "from none of the weights that are trained; compute it by the model that was given to attach"
        )
    elif isinstance(update, Seeded):
        numbers = [update.coefs]
        words = (
            "the loss is the same along all directions of the first step, so its estimate is zero: the loss does not "
            "come from the model that was attached, or the noise is too small to change it (take a larger eps, if the "
            "rule has one)"
        )
    else:
        return
    if not any(bool(each.any()) for each in numbers):
        tell(words)


def _cause(batch: Sequence[Any]) -> str:
    """Return what may have made a loss infinite or nan."""
    inputs = batch[0] if batch and isinstance(batch[0], Tensor) else None
    bad = 0 if inputs is None else int((~inputs.isfinite()).sum())
    if inputs is not None and bad:
        return f"{bad:,} of the {inputs.numel():,} numbers of the inputs are infinite or nan: take these examples out"
    return "try a smaller learning rate, or look for extreme inputs"


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
