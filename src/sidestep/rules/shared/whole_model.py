"""A rule on a whole model of the user's, which takes the inputs as they are and gives what the objective judges."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sidestep.data import Split
from sidestep.data.objective import answers
from sidestep.data.share import Division
from sidestep.data.task import Batch, Task
from sidestep.errors import InputError
from sidestep.gradients.any_module import called
from sidestep.nets.precision import at_least_float32
from sidestep.nets.trained import set_training
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule
from sidestep.rules.shared.any_module import apply_by, decide_by, trains_any
from sidestep.rules.shared.chain import ChainOfStages
from sidestep.rules.takes import Takes
from sidestep.update import Update

__all__ = ["OnWholeModel", "WholeNet", "on_whole_model"]


class WholeNet(nn.Module):
    """A model of the user's: (batch, ...) -> outputs; inputs that are a mapping are given by name.

    width: how many outputs the data ask for.
    """

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model, self.width = model, width

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return the model's outputs; raises InputError unless they are one tensor."""
        instead = (
            "wrap it in a module that returns the outputs alone, or train it in a loop of your own (sidestep.attach) "
            "by its own loss"
        )
        return at_least_float32(called(self.model, inputs, instead))


_PARTS = {
    "any": "a module for its hidden layers, module=",
    "stages": "a module for its hidden layers, module=",
    "residual": "a chain of residual blocks, as many as it has groups or more, module=",
    "blocks": "a module for the path of the inputs in its blocks, module=",
}


def _instead(rule: Any) -> str:
    """What of the user's a rule does take, or which rules take a whole model."""
    parts = _PARTS.get(rule.takes.module)
    found = [f"give it {parts}"] if parts else []
    if isinstance(rule, ChainOfStages):
        found.append("give an nn.Sequential of stages to sidestep.attach, for a loop of your own")
    if given := getattr(rule, "by_loss_with", ""):
        found.append(f"take it with {given}, on what sidestep.nets.ternarize makes of the model")
    return ", or ".join([*found, "take a rule that trains any module by its loss (`sidestep rules` shows which)"])


@dataclass(frozen=True)
class OnWholeModel(Rule[WholeNet]):
    """What a rule for any module does to a whole model: it sees the model's loss, and moves all that is not frozen.

    rule: spsa, evolution, forward-gradient, backprop or noise-step with weight probes, with its hyper-parameters.
    """

    rule: Any

    takes: ClassVar[Takes] = Takes(
        "any",
        inputs=("image", "features", "tokens", "mapping"),
        targets=("classes", "labels", "values", "tokens", "own"),
        log="yes",
    )

    @property
    def name(self) -> str:  # type: ignore[override]
        """The rule's name."""
        return str(self.rule.name)

    @property
    def summary(self) -> str:  # type: ignore[override]
        """The rule's summary."""
        return str(self.rule.summary)

    def __post_init__(self) -> None:
        if not trains_any(self.rule):
            raise InputError(f"{self.rule.name} trains no whole model; {_instead(self.rule)}")
        own = replace(type(self).takes, optimizer=self.rule.takes.optimizer, rounded=self.rule.takes.rounded)
        object.__setattr__(self, "takes", own)

    @property
    def divides(self) -> Mapping[Division, int]:
        """What the rule divides, the batch by default."""
        own: Mapping[Division, int] = self.rule.divides
        return dict(sorted(own.items(), key=lambda entry: entry[0] != "batch"))

    @property
    def common_noise(self) -> bool:
        """All parts of a step have the same directions."""
        return True

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> WholeNet:
        """Make the model, with the weights that it comes with; `module` is a function or class that makes it."""
        if module is None:
            raise InputError("a whole model has to be given: train(rule, data, model=make_model)")
        with noise.stream("own").torch_seeded():
            model = module if isinstance(module, nn.Module) else _made_by(module)
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module or make one, got {type(model).__name__}")
        self.rule.check_any(model)
        return WholeNet(model, task.classes)

    def optimizer(self, net: WholeNet) -> torch.optim.Optimizer:
        """Make the rule's optimiser for the weights that are not frozen."""
        made: torch.optim.Optimizer = self.rule.optimizer_any(net)
        return made

    def estimate(self, net: WholeNet, batch: Batch, noise: Noise) -> Update:
        """Estimate the update from the batch's loss."""
        set_training(net)

        def loss() -> Tensor:
            outputs = net(batch.inputs)
            if batch.objective.kind != "own" and (outputs.ndim < 2 or outputs.shape[-1] != net.width):
                raise InputError(
                    f"the model gives outputs of shape {tuple(outputs.shape)}, but the last dimension must be "
                    f"{net.width}, one for each of the data's {batch.objective.kind}; change the model's last layer"
                )
            return batch.objective.mean(outputs, batch.targets)

        found: Update = self.rule.estimate_any(net, loss, noise, batch.share)
        return found

    def decide(self, net: WholeNet, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Return the update, with the learning rate that it is applied with where a replay needs it."""
        return decide_by(self.rule, net, update, optimizer)

    def apply(self, net: WholeNet, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimiser's step."""
        apply_by(self.rule, net, update, optimizer)

    def predict(
        self, net: WholeNet, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the one reading `forward`: what the objective makes of the outputs."""
        return {"forward": answers(net, images)}


def on_whole_model(rule: Any, module: object = None) -> OnWholeModel:
    """Return the rule on a whole model; raises InputError for one that trains no such model."""
    if module is not None:
        raise InputError("give model, the whole of it, or module, a part of the rule's own net, not both")
    return OnWholeModel(rule)


def _made_by(make: Callable[[], nn.Module]) -> nn.Module:
    """Return what a function or class makes; raises InputError if it cannot be called without arguments."""
    try:
        return make()
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # from inside of the user's code, whose traceback says more
        name = getattr(make, "__name__", "model")
        raise InputError(
            f"the model {name} cannot be made ({error}); it is called without arguments: give a function that fills "
            f"them in, model=lambda: {name}(...)"
        ) from error
