"""What a rule needs that trains any module, under any loss: an estimate from a function, and steps without a door.

estimate_any -> Update -> decide_any -> Update -> step log -> apply_any
"""

from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.gradients.any_module import Losses
from sidestep.nets.trained import trained
from sidestep.noise import Noise
from sidestep.probes import DenseProbes, Distribution
from sidestep.rules.shared.dense import apply_dense
from sidestep.rules.shared.trits import as_gradients
from sidestep.update import Dense, Seeded, Update

__all__ = ["LOSS", "AnyModule", "apply_any", "as_dense", "check_unused", "decide_any", "one_unit", "seeded"]

LOSS = "net: loss"


@runtime_checkable
class AnyModule(Protocol):
    """What a rule has besides, that trains modules which it did not build: all weights at once, by their loss alone."""

    name: ClassVar[str]

    def check_any(self, net: nn.Module) -> None:
        """Raise InputError for a module, or for hyper-parameters, that it cannot do so with."""
        ...

    def optimizer_any(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make the optimiser for the weights that are not frozen."""
        ...

    def estimate_any(self, net: nn.Module, losses: Losses, noise: Noise) -> Update:
        """Estimate the update from the losses that a function gives; `noise` stands at the current step.

        Writes neither weights nor buffers, and leaves the mode of every layer as it is.
        """
        ...


def one_unit(net: nn.Module) -> dict[str, list[str]]:
    """Return the one unit: all that is trained."""
    return {"net": list(trained(net))}


def seeded(
    net: nn.Module,
    coefs: Tensor,
    noise: Noise,
    distribution: Distribution,
    statistics: dict[str, Tensor],
    loss: Tensor,
) -> Seeded:
    """Return an update along directions of all trained weights: `sum_i c_i nu_i`, with coefs (probes,)."""
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in trained(net).items())
    probes = DenseProbes(noise.stream("directions"), shapes, len(coefs), distribution)
    return Seeded(coefs.float(), probes, statistics, {LOSS: loss})


def decide_any(update: Update, optimizer: torch.optim.Optimizer) -> Update:
    """Return the update, if it is seeded with the learning rate that it is applied with."""
    return replace(update, rate=float(optimizer.param_groups[0]["lr"])) if isinstance(update, Seeded) else update


def apply_any(net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> None:
    """Take one step of the optimiser, at the update's learning rate where it has one."""
    if isinstance(update, Seeded) and update.rate is not None:
        for group in optimizer.param_groups:
            group["lr"] = update.rate
    apply_dense(net, as_dense(net, update), optimizer)


def as_dense(net: nn.Module, update: Update) -> Dense:
    """Return an update with its gradients by parameter name, in place of coefficients along directions."""
    if isinstance(update, Seeded):
        return Dense(as_gradients(net, update), update.statistics, update.losses)
    if not isinstance(update, Dense):
        raise InputError(f"an update of kind {type(update).__name__} has no gradients")
    return update


def check_unused(rule: Any, *names: str) -> None:
    """Raise InputError for hyper-parameters that a loss of the user's leaves no use for, unless at their defaults."""
    defaults = {field.name: field.default for field in fields(rule)}
    for name in names:
        value = getattr(rule, name)
        if value != defaults[name]:
            raise InputError(
                f"{name} = {value} of {rule.name} has no use where the loss is a function of yours; put it into that "
                f"function, and leave {name} at {defaults[name]}"
            )
