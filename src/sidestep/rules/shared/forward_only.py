"""What the rules share that estimate gradients by forward passes: nets, optimisers, objectives and fitness."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.data.objective import CLASSES, Objective
from sidestep.errors import InputError
from sidestep.nets.stages.staged import StagedNet, check_layers, staged_mlp, staged_own
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import OutputRule, Task, Update
from sidestep.rules.shared import optimizers
from sidestep.rules.shared.any_module import apply_any, decide_any, one_unit
from sidestep.rules.shared.dense import parameter_groups

__all__ = [
    "LOGGED",
    "OBJECTIVES",
    "OPTIMIZERS",
    "Fitness",
    "ForwardOnlyRule",
    "check_named",
    "fitness_of",
    "losses_under",
    "make_net",
    "make_optimizer",
]

Fitness = Literal["raw", "z-score", "ranks"]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _errors(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=1) != labels).to(logits.dtype)


# (logits (n, classes), labels (n,)) -> (n,), to be made small; need not be differentiable. Add your own by name.
OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross-entropy": _cross_entropy, "accuracy": _errors}


# (parameter groups, lr, weight_decay) -> optimiser: those of torch.optim that step along a gradient, for weights of any
# shape. Add your own by name.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(optimizers.AdamW, fused=True),
    "adam": partial(optimizers.Adam, fused=True),
    "sgd": partial(optimizers.SGD, momentum=0.9),
    "plain-sgd": optimizers.SGD,
    "rmsprop": optimizers.RMSprop,
    "adagrad": optimizers.Adagrad,
    "adadelta": optimizers.Adadelta,
    "adafactor": optimizers.Adafactor,
    "adamax": optimizers.Adamax,
    "nadam": optimizers.NAdam,
    "radam": optimizers.RAdam,
    "asgd": optimizers.ASGD,
}

# What these do follows from gradients, learning rate and their own memory alone, so a step log can replay them. Of an
# optimiser that is added later nobody knows that.
LOGGED = frozenset(OPTIMIZERS)


def check_named(objective: str, optimizer_kind: str) -> None:
    """Raise InputError for the name of an objective or optimiser that is not there."""
    for field, given, known in (
        ("objective", objective, OBJECTIVES),
        ("optimizer_kind", optimizer_kind, OPTIMIZERS),
    ):
        if given not in known:
            raise InputError(f"{field} must be one of {', '.join(known)}, got {given!r}")


def losses_under(objective: str, logits: Tensor, labels: Tensor, own: Objective = CLASSES) -> Tensor:
    """Return one loss per example, (n,), or raise InputError if the objective gives another shape.

    Args:
        objective: a name among OBJECTIVES, which are for classes; cross-entropy stands for `own`.
        logits: outputs of the net.
        labels: their targets.
        own: what the batch is judged by.
    """
    if own is not CLASSES:
        if objective != "cross-entropy":
            raise InputError(f"objective {objective!r} is for classes, and the loss here is {own.name!r}; leave it out")
        return own.each(logits, labels)
    losses = OBJECTIVES[objective](logits, labels)
    if not isinstance(losses, Tensor) or losses.shape != labels.shape:
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise InputError(
            f"objective {objective!r} must give one loss per example, shape {tuple(labels.shape)}, got {shape}; "
            "leave out the mean over the batch"
        )
    return losses.to(logits.dtype)  # counts and comparisons are no floats yet


def fitness_of(losses: Tensor, kind: Fitness) -> Tensor:
    """Return the members' losses as they are, with mean 0 and variance 1, or as ranks from -1/2 to 1/2.

    Members with equal losses share the mean of their ranks, so any increasing function of the loss gives the same.

    >>> fitness_of(torch.tensor([[3.0, 100.0], [1.0, 3.0]]), "ranks").tolist()
    [[0.0, 0.5], [-0.5, 0.0]]
    """
    if kind == "z-score":
        return (losses - losses.mean()) / losses.std(correction=0).clamp_min(1e-12)
    if kind == "ranks":
        _, place, counts = losses.unique(return_inverse=True, return_counts=True)
        middle = counts.cumsum(0) - (counts + 1) / 2  # mean rank of equal losses, from 0
        return (middle / max(1, losses.numel() - 1) - 0.5)[place].to(losses.dtype)
    return losses


def make_net(
    task: Task, hidden: tuple[int, ...], norm: bool, noise: Noise, module: ImagePath | None, groups: int = 0
) -> StagedNet:
    """Make the MLP, or a net around a module of the user's; with `groups` above 0 the stages have local heads."""
    if module is not None:
        net = staged_own(module, task.shape, task.classes, groups > 0, noise.stream("own"))
    else:
        with noise.stream("layers").torch_seeded():
            net = staged_mlp(task.shape, hidden, task.classes, norm, groups)
    check_layers(net)
    return net


def make_optimizer(
    kind: str, net: nn.Module, units: Mapping[str, list[str]], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Make the optimiser of that name, with one parameter group per unit."""
    return OPTIMIZERS[kind](parameter_groups(net, units), lr=learning_rate, weight_decay=weight_decay)


class ForwardOnlyRule(OutputRule[StagedNet]):
    """What rules on a staged net have in common whose optimiser is chosen by name."""

    objective: str = "cross-entropy"
    optimizer_kind: str
    learning_rate: Any
    weight_decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_named(self.objective, self.optimizer_kind)

    @property
    def first_rate(self) -> float:
        """What the optimiser's learning rate is before the first step."""
        return float(self.learning_rate)

    def optimizer(self, net: StagedNet) -> torch.optim.Optimizer:
        """Make the optimiser, with one parameter group per unit."""
        return make_optimizer(self.optimizer_kind, net, self.units(net), self.first_rate, self.weight_decay)

    def optimizer_any(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make the optimiser for any module."""
        return make_optimizer(self.optimizer_kind, net, one_unit(net), self.first_rate, self.weight_decay)

    def decide(self, net: StagedNet, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Return the update, with the learning rate that a replay needs where it is one number per direction."""
        return decide_any(update, optimizer) if self.optimizer_kind in LOGGED else update

    def apply(self, net: StagedNet, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take one step of the optimiser, at the update's learning rate where it has one."""
        apply_any(net, update, optimizer)
