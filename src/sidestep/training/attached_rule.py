"""The two ways in which a rule is attached to a model: by its loss alone, or to the stages of a chain."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sidestep.data.objective import CLASSES, OBJECTIVES, Objective
from sidestep.data.share import WHOLE, Share
from sidestep.data.task import Batch
from sidestep.errors import InputError
from sidestep.gradients.any_module import Losses, called
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule
from sidestep.rules.shared.any_module import AnyModule, apply_by, as_dense, decide_by
from sidestep.rules.shared.chain import ChainOfStages, HasFormOnStages
from sidestep.rules.shared.dense import apply_dense
from sidestep.rules.shared.flips import flips_of_part
from sidestep.training.attached_batch import check_batch, check_outputs, check_rows, explained
from sidestep.training.own_optimizer import OptimizerFactory, check_steps_along_gradients, made_optimizer
from sidestep.update import Flips, Seeded, Update

__all__ = ["Attached", "Built", "Chain", "Whole", "as_objective", "take_update"]


class Attached(Protocol):
    """A rule on a net that has the model's parameters: all of them, or those of the stages."""

    net: nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def common_noise(self) -> bool:
        """Whether all parts of a divided batch draw the same noise."""
        ...

    def estimate(self, arguments: tuple[Any, ...], noise: Noise, share: Share = WHOLE) -> Update:
        """Return the update, or a part of it, from what a step was called with."""
        ...

    def decide(self, update: Update) -> Update:
        """Return what is logged and applied."""
        ...

    def apply(self, update: Update) -> None:
        """Take the optimiser's step."""
        ...

    def logged(self, update: Update) -> Update:
        """Return what a log of the model keeps of a decided update."""
        ...


class Built:
    """A rule on a net that it built: what `train` steps; `own` if the optimiser is one of the user's."""

    def __init__(self, rule: Rule, net: nn.Module, optimizer: torch.optim.Optimizer, own: bool = False) -> None:
        self.rule, self.net, self.optimizer, self._own = rule, net, optimizer, own

    @property
    def common_noise(self) -> bool:
        """As the rule has it."""
        return self.rule.common_noise

    def estimate(self, arguments: tuple[Any, ...], noise: Noise, share: Share = WHOLE) -> Update:
        """Return the update from a batch, which knows its share."""
        return self.rule.estimate(self.net, arguments[0], noise)

    def decide(self, update: Update) -> Update:
        """Return what the rule makes of the update; an optimiser of the user's has learning rates of its own."""
        decided = self.rule.decide(self.net, update, self.optimizer)
        return replace(decided, rate=None) if self._own and isinstance(decided, Seeded) else decided

    def apply(self, update: Update) -> None:
        """Take the optimiser's step."""
        self.rule.apply(self.net, update, self.optimizer)

    def logged(self, update: Update) -> Update:
        """Return the update."""
        return update


class Whole:
    """A rule that takes any module: the loss is all that it sees."""

    common_noise = True  # all parts of a step have the same directions

    def __init__(
        self, model: nn.Module, rule: AnyModule, objective: Objective, factory: OptimizerFactory | None
    ) -> None:
        rule.check_any(model)
        if factory is not None:
            check_steps_along_gradients(rule, "optimizer")
        self.net, self._rule, self._objective, self._factory = model, rule, objective, factory
        self.optimizer = made_optimizer(factory, rule.optimizer_any(model))

    def estimate(self, arguments: tuple[Any, ...], noise: Noise, share: Share = WHOLE) -> Update:
        """Return the update from a function of losses, or from inputs and targets."""
        try:
            return self._rule.estimate_any(self.net, self._losses(arguments), noise, share)
        except RuntimeError as error:
            _explain_backward(error)
            raise

    def decide(self, update: Update) -> Update:
        """Return the update, with the learning rate that it is applied with where a replay needs it."""
        return update if self._factory else decide_by(self._rule, self.net, update, self.optimizer)

    def apply(self, update: Update) -> None:
        """Take the optimiser's step; one of the user's has learning rates of its own."""
        if self._factory:
            apply_dense(self.net, as_dense(self.net, update), self.optimizer)
        else:
            apply_by(self._rule, self.net, update, self.optimizer)

    def logged(self, update: Update) -> Update:
        """Return the update."""
        return update

    def _losses(self, arguments: tuple[Any, ...]) -> Losses:
        if len(arguments) == 1 and callable(arguments[0]):
            return arguments[0]
        inputs, targets = _pair(arguments)
        check_batch(inputs, targets)  # once for all forward passes of the step
        return lambda: _loss(self._objective, self.net, inputs, targets)


class Chain(Built):
    """A rule that trains stages: of the model's own parts and weights, with what the rule adds to them."""

    def __init__(  # long: what the net is made from
        self,
        model: nn.Module,
        rule: ChainOfStages,
        objective: Objective,
        factory: OptimizerFactory | None,
        example: Any,
        noise: Noise,
    ) -> None:
        check_rows(rule.name, example)
        if factory is not None:
            check_steps_along_gradients(rule, "optimizer")
        own = for_objective(rule, objective)
        check_batch(example, None)
        with explained(example, None):
            net = rule.adopt(model, example, noise)
        own = own.on_stages() if isinstance(own, HasFormOnStages) else own
        super().__init__(own, net, made_optimizer(factory, own.optimizer(net)), factory is not None)
        self._objective, self._model = objective, model

    def logged(self, update: Update) -> Update:
        """Return what an update does to the model's own weights, by their places in it: heads are made again."""
        if not isinstance(update, Flips) or update.statistics:
            raise InputError(
                f"the steps of {self.rule.name} on these stages are more than single moves of the model's own weights, "
                "which is what a log keeps; leave log out"
            )
        return flips_of_part(update, self.net, self._model)

    def estimate(self, arguments: tuple[Any, ...], noise: Noise, share: Share = WHOLE) -> Update:
        """Return the update from inputs and targets."""
        if len(arguments) == 1 and callable(arguments[0]):
            raise InputError(
                f"{self.rule.name} has to see what its stages give: call step(inputs, targets), with the loss as "
                "attach(..., objective=loss_function)"
            )
        inputs, targets = _pair(arguments)
        check_batch(inputs, targets)
        check_rows(self.rule.name, inputs)
        with explained(inputs, targets):
            return super().estimate((Batch(inputs, targets, self._objective, share),), noise)


def take_update(attached: Attached, update: Update, record: Callable[[Update], None] | None) -> None:
    """Take one step along an estimate: decide, record, apply. `train` and a loop of the user's own go through here."""
    decided = attached.decide(update)
    if record:
        record(decided)
    attached.apply(decided)


def as_objective(given: Any) -> Objective:
    """Return an objective from a function of outputs and targets, the name of a kind of targets, one, or None.

    >>> as_objective("values").name, as_objective(None).name
    ('squared error', 'cross-entropy')
    """
    if given is None:
        return CLASSES
    if isinstance(given, str) and given in OBJECTIVES:
        return OBJECTIVES[given]
    if isinstance(given, Objective):
        return given
    if callable(given):
        return Objective(getattr(given, "__name__", "loss").strip("<>"), given)
    raise InputError(
        f"objective must be a function of outputs and targets that returns one loss per example, or one of "
        f"{', '.join(OBJECTIVES)}, got {given!r:.80}"
    )


def for_objective(rule: Any, objective: Objective) -> Any:
    """Return a rule without its default label smoothing where the loss is not of classes."""
    smoothing = next((field for field in fields(rule) if field.name == "label_smoothing"), None)
    if smoothing is None or objective.kind == "classes" or rule.label_smoothing != smoothing.default:
        return rule
    return replace(rule, label_smoothing=0.0)


def _pair(arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return inputs and targets, or raise InputError that says what a step is called with."""
    if len(arguments) == 2 and arguments[1] is not None:
        return arguments[0], arguments[1]
    given = ", ".join(type(each).__name__ for each in arguments) or "nothing"
    missing = ": the targets are missing" if arguments and isinstance(arguments[0], Tensor | Mapping) else ""
    raise InputError(
        f"a step takes a function that returns the loss, or inputs and targets, got {given}{missing}; "
        "call step(lambda: loss_function(model(inputs), targets)), or step(inputs, targets)"
    )


def _explain_backward(error: RuntimeError) -> None:
    """Say that the function calls no backward(), in place of what torch says of a graph that is not there, or gone."""
    if any(words in str(error) for words in ("does not require grad", "backward through the graph a second")):
        raise InputError(
            "the function that step(...) is given returns the loss and calls no backward(), since the rule takes its "
            "derivatives, if it needs any, itself; leave backward() out, and let the loss depend on the model"
        ) from error


def _loss(objective: Objective, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
    with explained(inputs, targets):
        outputs = called(model, inputs, "call step(lambda: ...) with a function that takes the loss from it")
        check_outputs(outputs, targets)
        return objective.mean(outputs, targets)
