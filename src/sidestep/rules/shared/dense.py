"""What the rules with dense gradients share: named gradients in, one optimiser step out."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.trained import parameters_of, trained
from sidestep.rules.shared import optimizers
from sidestep.update import Dense, Update, side_by_side

__all__ = [
    "OPTIMIZERS",
    "adam",
    "adamw",
    "apply_dense",
    "local_units",
    "merged",
    "numbered_units",
    "parameter_groups",
    "stage_units",
]


def merged(parts: Iterable[tuple[str, Dense]]) -> Dense:
    """Return one update of all units, from each unit's own."""
    each = [part for _, part in parts]
    return Dense(
        side_by_side("gradients", [part.gradients for part in each]),
        side_by_side("statistics", [part.statistics for part in each]),
        side_by_side("losses", [part.losses for part in each]),
    )


def numbered_units(net: nn.Module, stages: int) -> dict[str, dict[str, nn.Parameter]]:
    """Return one unit for each stage of a net, with its head: name -> parameter, of those that are not frozen.

    The number of the stage is the second part of each name: `stages.0.weight`, `heads.0.weight`.
    """
    found: dict[str, dict[str, nn.Parameter]] = {f"stage {index}": {} for index in range(stages)}
    for name, parameter in trained(net).items():
        found[f"stage {name.split('.')[1]}"][name] = parameter
    return found


def stage_units(net: nn.Module, stages: int) -> dict[str, list[str]]:
    """Return one unit for each stage of a net, and one for the read-out, with the parameters that are not frozen."""
    names = list(trained(net))
    found = {f"stage {i}": [n for n in names if n.startswith(f"stages.{i}.")] for i in range(stages)}
    return {**found, "readout": [n for n in names if n.startswith("readout.")]}


def local_units(net: nn.Module) -> dict[str, list[str]]:
    """Return one unit for each stage of a net, with its heads, and one for the read-out, of what is not frozen."""
    units: dict[str, list[str]] = {}
    for name in trained(net):
        part, number = name.split(".")[:2]
        units.setdefault("read-out" if part == "readout" else f"stage {number}", []).append(name)
    return units


def parameter_groups(net: nn.Module, units: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Return one parameter group per unit for an optimiser.

    Raises:
        InputError: if all parameters are frozen.
    """
    parameters = dict(net.named_parameters())
    if not any(units.values()):
        raise InputError(
            f"nothing is left to train: all {len(parameters)} parameters of the net are frozen (requires_grad is "
            "False); unfreeze some, parameter.requires_grad_(True)"
        )
    return [{"params": [parameters[name] for name in names]} for names in units.values()]


def adamw(
    net: nn.Module, units: Mapping[str, list[str]], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return fused AdamW with one parameter group per unit: its arithmetic is elementwise, so units stay apart."""
    return optimizers.AdamW(parameter_groups(net, units), lr=learning_rate, weight_decay=weight_decay, fused=True)


def adam(
    net: nn.Module, units: Mapping[str, list[str]], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return fused Adam with one parameter group per unit; its weight decay is part of the gradient (L2)."""
    return optimizers.Adam(parameter_groups(net, units), lr=learning_rate, weight_decay=weight_decay, fused=True)


OPTIMIZERS = {"adam": adam, "adamw": adamw}


def apply_dense(
    net: nn.Module,
    update: Update,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter] | None = None,
) -> None:
    """Take one optimiser step along the update's gradients and write its statistics into the net's buffers.

    parameters: those of the net by name, from a caller that has them.
    """
    if not isinstance(update, Dense):
        raise InputError(f"this rule applies named gradients (Dense), got {type(update).__name__}")
    parameters = parameters_of(net) if parameters is None else parameters
    buffers: dict[str, Tensor] = dict(net.named_buffers()) if update.statistics else {}
    with torch.no_grad():
        for name, gradient in update.gradients.items():
            parameter = parameters[name]
            if not parameter.requires_grad:  # frozen
                continue
            if gradient.stride() != parameter.stride() or gradient.dtype != parameter.dtype:
                # fused optimisers walk both in memory order, and are silently wrong where the orders differ
                gradient = torch.empty_like(parameter).copy_(gradient)
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for dtype in {value.dtype for value in update.statistics.values()}:  # one operation for all of a kind
            same = {name: value for name, value in update.statistics.items() if value.dtype == dtype}
            torch._foreach_copy_([buffers[name] for name in same], list(same.values()))
