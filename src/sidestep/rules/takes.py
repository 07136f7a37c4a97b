"""What a rule can train, as data: the table of `sidestep rules` and the errors come from it, and a test tries it."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from sidestep.data.task import Task
from sidestep.errors import InputError
from sidestep.nets.quantized import quantized_weights

__all__ = ["MODULES", "InputKind", "ModuleKind", "Takes", "TargetKind", "check_quantized", "check_takes", "set_takes"]

ModuleKind = Literal["any", "stages", "residual", "blocks", "none"]
InputKind = Literal["image", "features", "tokens", "mapping"]
TargetKind = Literal["classes", "labels", "values", "tokens", "own"]

MODULES: dict[str, str] = {
    "any": "any module",
    "stages": "a chain of stages",
    "residual": "a chain of residual blocks",
    "blocks": "in each block",
    "none": "no",
}


@dataclass(frozen=True)
class Takes:
    """What a rule can train, by some choice of its hyper-parameters; what is not said, it cannot.

    Of `log` and `optimizer` a rule's class says how they are by default, and the rule how they are with its own
    hyper-parameters (`set_takes`).

    module: what a module of the user's can be: any; an nn.Sequential of stages; one of residual blocks; the path of the
        inputs in each block; or none.
    inputs: image, features (rows of a table), tokens, or mapping (several tensors by name).
    targets: classes, labels (several for an example), values (real numbers), tokens (the next ones), or own: a loss of
        the user's, of whatever targets.
    log: whether steps are written to a step log that replays them: yes, no, or in a loop of the user's own alone.
    log_with: with which option runs leave one that otherwise do not, such as "solver = noise-step".
    frozen: whether parameters with `requires_grad` False keep their values, while the others train.
    optimizer: whether it steps along gradients, so that optimisers and schedules of torch's by factory can take them.
    no_optimizer_with: with which option it does not, where it does otherwise.
    no_attach: why no model of the user's can be attached to it, to be read after "cannot be attached to a model: ".
    rounded: whether it trains the whole numbers of quantised layers (`sidestep.nets.quantize`).
    no_module: why there is no place for a module of the user's, to be read after "has no place for a module of your
        own: ".
    """

    module: ModuleKind = "none"
    inputs: tuple[InputKind, ...] = ("image", "features")
    targets: tuple[TargetKind, ...] = ("classes",)
    log: Literal["yes", "own loop", "no"] = "no"
    log_with: str = ""
    frozen: bool = True
    optimizer: bool = True
    no_optimizer_with: str = ""
    rounded: bool = False
    no_attach: str = "it trains only nets that it builds itself"
    no_module: str = "its `takes` names none"


def set_takes(rule: Any, **found: Any) -> None:
    """Let a rule say what follows from its hyper-parameters, in place of what its class says of all."""
    object.__setattr__(rule, "takes", replace(type(rule).takes, **found))


def check_quantized(rule: Any, net: nn.Module) -> None:
    """Raise InputError for quantised layers that a rule would train as if they were something else."""
    weights = () if getattr(getattr(rule, "takes", None), "rounded", False) else quantized_weights(net)
    if weights:
        raise InputError(
            f"{getattr(rule, 'name', type(rule).__name__)} does not train the whole numbers of quantised layers, such "
            f"as {next(iter(weights))}; spsa does, or freeze the layer before quantize, requires_grad_(False)"
        )


def check_takes(rule: Any, task: Task, module: Any = None) -> None:
    """Raise InputError for data, or a module of the user's, that a rule cannot train whatever its hyper-parameters."""
    takes: Takes = rule.takes
    if task.inputs not in takes.inputs:
        raise InputError(
            f"{rule.name} takes inputs that are {' or '.join(takes.inputs)}, but the data have {task.inputs}; "
            f"{_others('inputs', task.inputs)}"
        )
    if task.targets not in takes.targets:
        known = [kind for kind in takes.targets if kind != "own"]
        raise InputError(
            f"{rule.name} takes targets that are {' or '.join(known)}, but the data have {task.targets}; "
            f"{_others('targets', task.targets)}"
        )
    if task.own is not None and "own" not in takes.targets:
        raise InputError(
            f"{rule.name} trains on losses of its own and takes no other, got objective = {task.own.name}; leave it "
            "out, or take a rule that trains on a loss of yours: `sidestep rules` shows which (own)"
        )
    if module is not None and takes.module == "none":
        raise InputError(
            f"{rule.name} has no place for a module of your own: {takes.no_module}; use --net and --hidden, or train "
            "the module by local losses, or another rule that takes modules (`sidestep rules`)"
        )


def _others(part: str, kind: str) -> str:
    if kind in ("tokens", "mapping"):
        return (
            "take another rule, or give a whole model of your own, train(rule, data, model=make_model), to one that "
            "trains any module: `sidestep rules` shows which"
        )
    return f"take another rule: `sidestep rules` shows which {part} each takes ({kind})"
