"""Direct flips: momentum picks the few weights that move one step, and no float weight exists.

    v <- beta v - g / rms(g)                    per parameter
    the largest share p of |v|, among the weights that can still move in the direction of v:
    w <- w + sgn(v),  v <- 0 there

What is logged are the flips themselves, so the log can be replayed without data, whatever the gradient came from.
"""

import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sidestep.errors import NonFiniteError
from sidestep.nets.ternary import ternary_parameters
from sidestep.update import Flips

__all__ = ["TernaryOptimizer", "choose_flips"]


class TernaryOptimizer(torch.optim.Optimizer):
    """Holds what ternary rules remember of each parameter (momentum, or evidence), and the share that flips as `lr`.

    It has no step of its own: rules change trits through their updates.
    """

    def __init__(self, shares: list[tuple[list[Tensor], float]]) -> None:
        super().__init__([{"params": parameters, "lr": share} for parameters, share in shares], {"lr": 0.0})

    def step(self, closure: Any = None) -> NoReturn:
        """Refuse: there is nothing that this could do without an update."""
        raise NotImplementedError("ternary weights move through a rule's updates, not through step()")


def choose_flips(
    net: nn.Module, gradients: dict[str, Tensor], optimizer: torch.optim.Optimizer, beta: float, **rest: Any
) -> Flips:
    """Advance the momentum by one gradient, and return the flips it asks for; `rest` goes on to the Flips.

    Raises:
        NonFiniteError: naming the parameter, for a gradient with infinities or NaNs.
    """
    shares = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    positions, moves, offset = [], [], 0
    for name, trits in ternary_parameters(net).items():
        if name in gradients:
            state = optimizer.state[trits]
            momentum = _momentum(name, state, trits, gradients[name], beta)
            inside = _largest(momentum, trits, _count(state, shares[id(trits)] * trits.numel()))
            positions.append(inside + offset)
            moves.append(momentum.view(-1)[inside].sign().to(torch.int8))
            momentum.view(-1)[inside] = 0
        offset += trits.numel()
    device = next(iter(gradients.values())).device
    empty = torch.empty(0, dtype=torch.int64, device=device)
    return Flips(torch.cat([empty, *positions]), torch.cat([empty.to(torch.int8), *moves]), **rest)


def _momentum(name: str, state: dict[str, Any], trits: Tensor, gradient: Tensor, beta: float) -> Tensor:
    gradient = gradient.float()
    largest = gradient.abs().max().clamp_min_(torch.finfo(torch.float32).tiny)  # squares could overflow
    size = (gradient / largest).square_().mean().sqrt_().mul_(largest)
    if not bool(size.isfinite()):
        raise NonFiniteError(
            f"the gradient of {name} is not finite; try --precision float32, or look for extreme pixel values and for "
            "functions in your module without a derivative at 0"
        )
    size.clamp_min_(torch.finfo(torch.float32).tiny)
    if "momentum" not in state:
        state["momentum"] = torch.zeros(trits.shape, dtype=torch.float32, device=trits.device)
    return state["momentum"].mul_(beta).sub_(gradient / size)


def _count(state: dict[str, Any], wanted: float) -> int:
    """Return a whole number of flips, and owe the rest to later steps: a small layer flips less than one a step."""
    owed = state.get("owed", 0.0) + wanted
    state["owed"] = owed - math.floor(owed)
    return math.floor(owed)


def _largest(momentum: Tensor, trits: Tensor, count: int) -> Tensor:
    """Return the ascending places of the largest |v| that can move; ties go as torch.topk has them."""
    flat, weights = momentum.view(-1), trits.view(-1)
    if not count:
        return torch.empty(0, dtype=torch.int64, device=flat.device)
    largest = flat.abs().masked_fill_(flat * weights > 0, 0).topk(min(count, flat.numel()))
    return largest.indices[largest.values > 0].sort().values
