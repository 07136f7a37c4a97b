"""Which parameters a rule may move: all but those that are frozen (`requires_grad` False).

Trits and the whole numbers of quantised layers (unless these were frozen) count as trained, since whole numbers cannot
require a gradient. A parameter that stands in a net several times is one parameter, under the first of its names.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidestep.errors import InputError

__all__ = [
    "check_own_weights",
    "check_unshared",
    "device_of",
    "first_names",
    "frozen",
    "parameters_of",
    "set_training",
    "trained",
]


def parameters_of(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter, as `dict(net.named_parameters())` does, in a third of its time.

    A step of a small net takes half a millisecond, and asks for its parameters several times.

    >>> list(parameters_of(nn.Sequential(nn.Linear(3, 2))))
    ['0.weight', '0.bias']
    """
    found: dict[str, nn.Parameter] = {}
    _collect(net, "", found, set())
    return found


def _collect(net: nn.Module, prefix: str, found: dict[str, nn.Parameter], seen: set[int]) -> None:
    seen.add(id(net))
    for key, parameter in net._parameters.items():
        if parameter is not None and id(parameter) not in seen:
            seen.add(id(parameter))
            found[prefix + key] = parameter
    for name, part in net._modules.items():
        if part is None or id(part) in seen:
            continue
        if part._modules:
            _collect(part, f"{prefix}{name}.", found, seen)
        elif part._parameters:  # a layer, as most are: here, since a call takes longer than its work
            seen.add(id(part))
            for key, parameter in part._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    found[f"{prefix}{name}.{key}"] = parameter


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a net's first parameter, as `next(net.parameters()).device` does, in less time.

    >>> device_of(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    device(type='cpu')
    """
    found = _first(net)
    return next(net.parameters()).device if found is None else found.device  # without any, as torch says it


def _first(net: nn.Module) -> nn.Parameter | None:
    for parameter in net._parameters.values():
        if parameter is not None:
            return parameter
    for part in net._modules.values():
        found = None if part is None else _first(part)
        if found is not None:
            return found
    return None


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter of what is trained, in the order of the net.

    >>> layer = nn.Linear(3, 2)
    >>> _ = layer.weight.requires_grad_(False)
    >>> list(trained(layer))
    ['bias']
    """
    parameters = parameters_of(net)
    if all(p.requires_grad for p in parameters.values()):  # nearly always, and the rest takes its time
        return parameters
    moving = (layer for layer in net.modules() if hasattr(layer, "trits") or getattr(layer, "moves", False))
    whole = {id(p) for layer in moving for p in layer.parameters(recurse=False) if not p.is_floating_point()}
    return {name: p for name, p in parameters.items() if p.requires_grad or id(p) in whole}


def set_training(net: nn.Module) -> None:
    """Put every layer into training mode, as `net.train()` does, and at once where all of them are, as in most steps.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.Dropout().eval())
    >>> set_training(net)
    >>> net[1].training
    True
    """
    if not _all_train(net):
        net.train()


def _all_train(net: nn.Module) -> bool:
    if not net.training or type(net).train is not nn.Module.train:  # one that does more than that
        return False
    for part in net._modules.values():  # noqa: SIM110  (a small net feels a generator)
        if part is not None and not _all_train(part):
            return False
    return True


def frozen(net: nn.Module) -> dict[str, Tensor]:
    """Return name -> parameter of what is not."""
    moving = trained(net)
    return {name: parameter for name, parameter in net.named_parameters() if name not in moving}


def first_names(net: nn.Module) -> dict[int, str]:
    """Return id -> name of every parameter; a shared one has the name that `named_parameters` gives it."""
    return {id(parameter): name for name, parameter in net.named_parameters()}


def check_own_weights(stages: Sequence[nn.Module]) -> None:
    """Raise InputError for stages that share a trained parameter: the loss of one would move the others."""
    seen: dict[int, int] = {}
    for number, stage in enumerate(stages, start=1):
        for name, parameter in trained(stage).items():
            if seen.setdefault(id(parameter), number) != number:
                raise InputError(
                    f"stages {seen[id(parameter)]} and {number} of the module share the parameter {name}, and each has "
                    "a loss of its own, so one would undo what the other learns; give each stage weights of its own, "
                    "or train the module by a rule with one loss for all"
                )


def check_unshared(net: nn.Module, again: bool, instead: str) -> None:
    """Raise InputError for a trained parameter of two layers, or, unless `again`, of one layer that stands twice.

    Args:
        net: whose layers get directions of their own, by name.
        again: whether one and the same layer may be used a second time.
        instead: the option that takes such nets.
    """
    seen: dict[int, tuple[str, Tensor | nn.Module]] = {}
    for name, layer in net.named_modules(remove_duplicate=False):
        for own, parameter in layer.named_parameters(recurse=False):
            first, owner = seen.setdefault(id(parameter), (name, layer))
            if parameter.requires_grad and first != name and not (again and owner is layer):
                raise InputError(
                    f"layers {first} and {name} share their {own}, and a direction belongs to one layer; use {instead}"
                )
