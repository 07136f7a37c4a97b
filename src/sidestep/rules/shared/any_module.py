"""What a rule needs that trains any module, under any loss: an estimate from a function, and steps without a door.

estimate_any -> Update -> decide_any -> Update -> step log -> apply_any
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sidestep.data.share import WHOLE, Share
from sidestep.errors import InputError
from sidestep.gradients.any_module import Losses
from sidestep.gradients.directions import WeightedDirection, directions_along
from sidestep.gradients.step_search import damped_rate
from sidestep.nets.quantized import quantized_weights
from sidestep.nets.trained import trained
from sidestep.noise import Noise
from sidestep.probes import DenseProbes, Distribution
from sidestep.rules.shared import optimizers
from sidestep.rules.shared.dense import apply_dense
from sidestep.rules.shared.error_feedback import WINDOW, move_whole_numbers
from sidestep.rules.shared.trits import as_gradients
from sidestep.update import Dense, Seeded, Update

__all__ = [
    "CURVATURE",
    "LOSS",
    "SLOPE",
    "STEP_SIZE",
    "AnyModule",
    "Asked",
    "OwnSteps",
    "apply_any",
    "apply_by",
    "as_dense",
    "check_unused",
    "decide_any",
    "decide_by",
    "dense_probes",
    "of_examples",
    "of_share",
    "one_unit",
    "seeded",
    "trains_any",
]

LOSS, STEP_SIZE, SLOPE, CURVATURE = "net: loss", "net: step size", "net: slope", "net: curvature"
_MEANS = "slope and curvature"  # running means in the memory of the optimiser, of its first parameter
_PART = 1 << 16  # elements of the gradient that a step has in memory at a time
# Optimisers in which no parameter's step depends on another parameter: torch's, and the same without its compiler.
_NAMES = [name for name in optimizers.__all__ if name != "WithoutCompiler"]
_ALONE = frozenset(getattr(place, name) for place in (optimizers, torch.optim) for name in _NAMES)


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

    def estimate_any(self, net: nn.Module, losses: Losses, noise: Noise, share: Share = WHOLE) -> Update:
        """Estimate the update from the losses that a function gives; `noise` stands at the current step.

        `share` is the part of the step that these losses are of, or the probes that are to be tried (`Rule.divides`).

        Writes neither weights nor buffers, and leaves the mode of every layer as it is.
        """
        ...


@runtime_checkable
class OwnSteps(Protocol):
    """What such a rule has besides, whose steps are not an optimiser's along gradients: what it logs and applies."""

    def check_weights(self, net: nn.Module) -> None:
        """Raise InputError for weights that such steps cannot move."""
        ...

    def decide_any(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Turn an estimate into what is logged and applied; writes no weights."""
        ...

    def apply_any(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Write the update into the net; deterministic."""
        ...


def trains_any(rule: Any) -> bool:
    """Say whether a rule, with its hyper-parameters, trains any module by its loss alone (`by_loss` says otherwise)."""
    return isinstance(rule, AnyModule) and getattr(rule, "by_loss", True)


@runtime_checkable
class Asked(Protocol):
    """What a rule has besides, which can be told the losses of shifted nets in place of calling them itself."""

    def trials(self) -> list[tuple[int, float]]:
        """Return the number of the direction and the size of the noise, of either sign, of every net that is tried."""
        ...

    def probes(self, net: nn.Module, noise: Noise) -> DenseProbes:
        """Return the directions of a step."""
        ...

    def from_trials(self, net: nn.Module, losses: Tensor, noise: Noise) -> Update:
        """Return the update from the losses of the `trials`, (trials,)."""
        ...


def one_unit(net: nn.Module) -> dict[str, list[str]]:
    """Return the one unit: all that is trained."""
    return {"net": list(trained(net))}


def dense_probes(net: nn.Module, noise: Noise, count: int, distribution: Distribution) -> DenseProbes:
    """Return directions of all trained weights, of the step that `noise` stands at."""
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in trained(net).items())
    return DenseProbes(noise.stream("directions"), shapes, count, distribution)


def seeded(
    net: nn.Module,
    coefs: Tensor,
    noise: Noise,
    distribution: Distribution,
    statistics: dict[str, Tensor],
    loss: Tensor,
) -> Seeded:
    """Return an update along directions of all trained weights: `sum_i c_i nu_i`, with coefs (probes,)."""
    probes = dense_probes(net, noise, len(coefs), distribution)
    return Seeded(coefs.float(), probes, statistics, {LOSS: loss})


def of_share(coefs: Tensor, taken: range, total: int, share: Share) -> tuple[Tensor, Tensor | None]:
    """Return what a part of a step gives of all coefficients, (total,), and which of them it took (`Seeded.taken`).

    Args:
        coefs: of the probes that the part took.
        taken: their numbers.
        total: how many probes the step has.
        share: the part. Where it is one of the batch, every coefficient is a mean over some of the examples.
    """
    if len(taken) == total:
        return (coefs if share.weight == 1 else coefs * share.weight), None
    whole, chosen = coefs.new_zeros(total), torch.zeros(total, dtype=torch.bool)
    whole[taken.start : taken.stop : taken.step] = coefs
    chosen[taken.start : taken.stop : taken.step] = True
    return whole, chosen


def of_examples(coefs: Tensor, own: range, total: int) -> tuple[Tensor, Tensor | None]:
    """As `of_share`, where every example has probes of its own: `coefs` are those of the examples `own` in each pass.

    Args:
        coefs: (passes x examples here,), one pass after another.
        own: the numbers of these examples.
        total: how many examples the whole batch has.
    """
    if len(own) == total:
        return coefs, None
    passes = coefs.view(-1, len(own))
    whole, chosen = coefs.new_zeros(len(passes), total), torch.zeros(len(passes), total, dtype=torch.bool)
    whole[:, own.start : own.stop], chosen[:, own.start : own.stop] = passes, True
    return whole.flatten(), chosen.flatten()


def decide_by(rule: Any, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> Update:
    """Return what is logged and applied of an update of any module: the rule's own choice, or `decide_any`."""
    if _takes_own_steps(rule.__class__):
        decided: Update = rule.decide_any(net, update, optimizer)
        return decided
    return decide_any(update, optimizer)


def apply_by(rule: Any, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> None:
    """Write an update into any module: in the rule's own way, or by `apply_any`."""
    (rule.apply_any if _takes_own_steps(rule.__class__) else apply_any)(net, update, optimizer)


@cache  # since a look at a protocol takes as long as a tenth of a small net's forward pass
def _takes_own_steps(kind: type) -> bool:
    return issubclass(kind, OwnSteps)


def decide_any(update: Update, optimizer: torch.optim.Optimizer) -> Update:
    """Return the update, if it is seeded with the learning rate that it is applied with.

    Where the estimate has found a step size, the coefficients are multiplied by it, and the learning rate is a factor
    to it: 1, or what a schedule makes of that.
    """
    if not isinstance(update, Seeded):
        return update
    return replace(_sized(update, optimizer), rate=float(optimizer.param_groups[0]["lr"]))


def _sized(update: Seeded, optimizer: torch.optim.Optimizer | None = None) -> Seeded:
    """Return an update that was not decided yet with its coefficients times the step size, if one was found.

    With SGD, whose memory has what earlier batches said, they say how much of it other batches share; other optimisers
    take a parameter with any memory for one that had a step, and get the largest step size.
    """
    if update.rate is not None or STEP_SIZE not in update.losses:
        return update
    losses = dict(update.losses)
    if isinstance(optimizer, torch.optim.SGD) and SLOPE in losses:
        memory = optimizer.state[optimizer.param_groups[0]["params"][0]]
        numbers = (float(losses[STEP_SIZE]), float(losses.pop(SLOPE)), float(losses.pop(CURVATURE)))
        length = math.sqrt(float(update.coefs.double().square().sum()))
        size = damped_rate(memory.setdefault(_MEANS, []), *numbers, length)
        losses[STEP_SIZE] = losses[STEP_SIZE].new_tensor(size)
    return replace(update, coefs=update.coefs * losses[STEP_SIZE].to(update.coefs), losses=losses)


def apply_any(net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> None:
    """Take one step of the optimiser, at the update's learning rate where it has one.

    A sum of dense directions is made and applied for a few weights at a time: torch's own optimisers treat every
    parameter alone, so the bits are those of a step with the whole gradient.
    """
    if isinstance(update, Seeded) and update.rate is not None:
        for group in optimizer.param_groups:
            group["lr"] = update.rate
    if not (isinstance(update, Seeded) and isinstance(update.probes, DenseProbes) and type(optimizer) in _ALONE):
        apply_dense(net, as_dense(net, update), optimizer)
        return
    probes, update = update.probes, _sized(update)
    wanted, parameters = set(probes.names), trained(net)  # looked up once: a large net has parts by the dozen
    if WINDOW in optimizer.param_groups[0]:
        wanted -= move_whole_numbers(net, update, float(optimizer.param_groups[0]["lr"]), optimizer)
    along = WeightedDirection(directions_along(probes), update.coefs, keep=False)
    for names in _in_parts([entry for entry in probes.parameters if entry[0] in wanted]):
        part = (name for name in names if name in parameters)  # unnamed, so that it is gone before the next is drawn
        apply_dense(net, Dense({name: along.of(name, parameters[name]) for name in part}), optimizer, parameters)
    apply_dense(net, Dense({}, update.statistics), optimizer)


def _in_parts(parameters: Sequence[tuple[str, tuple[int, ...]]]) -> Iterator[list[str]]:
    """Cut a table of parameters into parts of at most _PART elements, or of one parameter."""
    names: list[str] = []
    size = 0
    for name, shape in parameters:
        if names and size + math.prod(shape) > _PART:
            yield names
            names, size = [], 0
        names.append(name)
        size += math.prod(shape)
    yield names


def as_dense(net: nn.Module, update: Update) -> Dense:
    """Return an update with its gradients by parameter name, in place of coefficients along directions."""
    if isinstance(update, Seeded):
        if quantized_weights(net):
            raise InputError(
                "the weights of quantised layers take no gradients, which an optimiser of your own, to_grad and "
                "alignment need: leave those out"
            )
        return Dense(as_gradients(net, _sized(update)), update.statistics, update.losses)
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
