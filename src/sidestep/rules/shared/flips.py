"""Direct flips: momentum picks the few weights that move one step, and no float weight exists.

    flips:  v <- beta v - g / rms(g)                    per parameter; g may be scaled by rows and columns, too
            the largest share p of |v|, among the weights that can still move in the direction of v:
            w <- w + sgn(v),  v <- 0 there
    bop:    m <- (1 - gamma) m + gamma g
            where |m| > tau, and w can still move against m:    w <- w - sgn(m)

    sets:   v as in the first; of 256 sets of n moves that a seed draws, the one that the momentum wants most, by the
            sum of move v over the moves that can be made, again and again until the share p is drawn; v <- 0 where a
            move went the way of v

The second is Bop, from which the idea comes: Helwegen et al., "Latent weights do not exist: rethinking binarized
neural network optimization" (2019), algorithm 1. There a weight is -1 or 1 and changes its sign where `sgn m = sgn w`;
a ternary weight takes one step where `m w >= 0`: one of 1 passes 0 on its way to -1. As there, g is not normalised, tau
is one number for all layers, m is not cleared by a flip, and gamma is what falls over a run.

What is logged are the flips themselves, or the numbers of the sets, so the log can be replayed without data, whatever
the gradient came from.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from sidestep.errors import NonFiniteError
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.rules.shared.flip_scaling import FlipScaling, by_rows_and_columns
from sidestep.rules.shared.optimizers import WithoutCompiler
from sidestep.seeded_sets import ChosenSets, best_sets, moves_of_sets
from sidestep.update import Flips

__all__ = ["TernaryOptimizer", "choose_by_threshold", "choose_flips", "choose_sets", "flips_of_part"]

_MANY = 20_000  # elements, from which on a bound pays
Chosen = tuple[Tensor, Tensor]  # ascending places in a parameter, and the step of each: -1 or 1


class TernaryOptimizer(WithoutCompiler):
    """Holds what ternary rules remember of each parameter (momentum, or evidence), and as `lr` the share that flips
    (of Bop: gamma).

    It has no step of its own: rules change trits through their updates.
    """

    def __init__(self, shares: list[tuple[list[Tensor], float]]) -> None:
        super().__init__([{"params": parameters, "lr": share} for parameters, share in shares], {"lr": 0.0})

    def step(self, closure: Any = None) -> NoReturn:
        """Refuse: there is nothing that this could do without an update."""
        raise NotImplementedError("ternary weights move through a rule's updates, not through step()")


def choose_flips(  # long: what is chosen by
    net: nn.Module,
    gradients: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    beta: float,
    scaling: FlipScaling = "layer",
    **rest: Any,
) -> Flips:
    """Advance the momentum by one gradient, and return the flips it asks for; `rest` goes on to the Flips.

    Raises:
        NonFiniteError: naming the parameter, for a gradient with infinities or NaNs.
    """

    def choose(name: str, trits: Tensor, gradient: Tensor, share: float) -> Chosen:
        state = optimizer.state[trits]
        momentum = _advanced(state, name, trits, gradient, beta, scaling)
        inside = _largest(momentum, trits, _count(state, share * trits.numel()))
        moves = momentum[inside].sign()
        momentum[inside] = 0
        return inside, moves

    return _flips(net, gradients, optimizer, choose, rest)


def choose_sets(  # long: what is chosen by
    net: nn.Module,
    gradients: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    beta: float,
    scaling: FlipScaling,
    members: int,
    **rest: Any,
) -> Flips:
    """Advance the momentum by one gradient, and return the moves of the seeded sets it wants most; `rest` goes on to
    the Flips.

    Raises:
        NonFiniteError: naming the parameter, for a gradient with infinities or NaNs.
    """
    parameters = ternary_parameters(net)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    step = int(optimizer.state[next(iter(parameters.values()))].get("step", 0))
    counts, numbers = [], []
    for index, (name, trits) in enumerate(parameters.items()):
        state = optimizer.state[trits]
        state["step"] = step + 1
        count = 0
        if name in gradients:
            momentum = _advanced(state, name, trits, gradients[name], beta, scaling)
            count = _count(state, rates[id(trits)] * trits.numel() / members)
            numbers.append(best_sets(_gains(momentum, trits), count, members, index, step))
        counts.append(count)
    sets = ChosenSets(members, step, tuple(counts), torch.cat(numbers).cpu())
    positions, moves = moves_of_sets(sets, [trits.numel() for trits in parameters.values()])
    device = next(iter(gradients.values())).device
    found = Flips(positions.to(device), moves.to(device), sets=sets, **rest)
    before = 0
    for trits in parameters.values():
        inside = (found.positions >= before) & (found.positions < before + trits.numel())
        places = found.positions[inside] - before
        momentum = _momentum(optimizer.state[trits], trits).view(-1)
        momentum[places[momentum[places] * found.moves[inside] > 0]] = 0
        before += trits.numel()
    return found


def choose_by_threshold(
    net: nn.Module, gradients: dict[str, Tensor], optimizer: torch.optim.Optimizer, threshold: float, **rest: Any
) -> Flips:
    """Advance the averages by one gradient, and return a flip of every weight whose average is above the threshold.

    Raises:
        NonFiniteError: naming the parameter, for a gradient with infinities or NaNs.
    """

    def choose(name: str, trits: Tensor, gradient: Tensor, rate: float) -> Chosen:
        _check_finite(name, gradient.abs().max())
        mean = _momentum(optimizer.state[trits], trits).lerp_(gradient.float(), rate).view(-1)
        inside = ((mean.abs() > threshold) & (mean * trits.view(-1) >= 0)).nonzero()[:, 0]
        return inside, -mean[inside].sign()

    return _flips(net, gradients, optimizer, choose, rest)


def flips_of_part(update: Flips, net: nn.Module, part: nn.Module) -> Flips:
    """Return what flips of a net do to the parameters that a part has, too, counted over the part's own weights."""
    starts, at = {}, 0
    for trits in ternary_parameters(part).values():
        starts[id(trits)] = at
        at += trits.numel()
    table, at = [], 0  # of each parameter of the net: its end, and how far its places move, or None
    for trits in ternary_parameters(net).values():
        shift = starts[id(trits)] - at if id(trits) in starts else None
        at += trits.numel()
        table.append((at, shift))
    device = update.positions.device
    ends = torch.tensor([end for end, _ in table], device=device)
    shifts = torch.tensor([shift or 0 for _, shift in table], device=device)
    kept = torch.tensor([shift is not None for _, shift in table], device=device)
    owner = torch.bucketize(update.positions, ends, right=True)
    inside = kept[owner]
    places = (update.positions + shifts[owner])[inside]
    order = places.argsort()
    return replace(update, positions=places[order], moves=update.moves[inside][order])


def _flips(
    net: nn.Module,
    gradients: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    choose: Callable[[str, Tensor, Tensor, float], Chosen],
    rest: dict[str, Any],
) -> Flips:
    """Ask `choose(name, trits, gradient, lr)` for every parameter, and count positions over all of them."""
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    device = next(iter(gradients.values())).device
    positions = [torch.empty(0, dtype=torch.int64, device=device)]
    moves, offset = [positions[0].to(torch.int8)], 0
    for name, trits in ternary_parameters(net).items():
        if name in gradients:
            inside, steps = choose(name, trits, gradients[name], rates[id(trits)])
            positions.append(inside + offset)
            moves.append(steps.to(torch.int8))
        offset += trits.numel()
    return Flips(torch.cat(positions), torch.cat(moves), **rest)


def _advanced(  # long: what the momentum follows from
    state: dict[str, Any], name: str, trits: Tensor, gradient: Tensor, beta: float, scaling: FlipScaling
) -> Tensor:
    """Return the momentum, flat, after one gradient more."""
    gradient = gradient.float()
    largest = gradient.abs().max().clamp_min_(torch.finfo(torch.float32).tiny)  # squares could overflow
    size = (gradient / largest).square_().mean().sqrt_().mul_(largest)
    _check_finite(name, size)
    size.clamp_min_(torch.finfo(torch.float32).tiny)
    gradient = gradient / size
    if scaling == "rows-and-columns":
        gradient = by_rows_and_columns(state, gradient)
    return _momentum(state, trits).mul_(beta).sub_(gradient).view(-1)


def _gains(momentum: Tensor, trits: Tensor) -> Tensor:
    """Return what the momentum gives for a move down and for one up of each weight, (weights, 2); 0 past -1 or 1."""
    weights = trits.view(-1)
    down = torch.where(weights > -1, -momentum, 0.0)
    return torch.stack([down, torch.where(weights < 1, momentum, 0.0)], dim=1)


def _check_finite(name: str, size: Tensor) -> None:
    if not bool(size.isfinite()):
        raise NonFiniteError(
            f"the gradient of {name} is not finite; try --precision float32, or look for extreme pixel values and for "
            "functions in your module without a derivative at 0"
        )


def _momentum(state: dict[str, Any], trits: Tensor) -> Tensor:
    if "momentum" not in state:
        state["momentum"] = torch.zeros(trits.shape, dtype=torch.float32, device=trits.device)
    found: Tensor = state["momentum"]
    return found


def _count(state: dict[str, Any], wanted: float) -> int:
    """Return a whole number of flips, and owe the rest to later steps: a small layer flips less than one a step."""
    owed = state.get("owed", 0.0) + wanted
    state["owed"] = owed - math.floor(owed)
    return math.floor(owed)


def _largest(momentum: Tensor, trits: Tensor, count: int) -> Tensor:
    """Return the ascending places of the largest |v| that can move; ties go as torch.topk has them."""
    flat = momentum.view(-1)
    count = min(count, flat.numel())
    if not count:
        return torch.empty(0, dtype=torch.int64, device=flat.device)
    # |v| - relu(v w) is 0 exactly where v pushes a weight past -1 or 1, and costs an eighth of a mask
    size = flat.abs().sub_((flat * trits.view(-1)).relu_())
    places = _above_a_bound(size, count) if size.device.type == "cpu" and size.numel() >= _MANY else None
    return _largest_of_all(size, count) if places is None else places


def _largest_of_all(size: Tensor, count: int) -> Tensor:
    largest = size.topk(count)
    return largest.indices[largest.values > 0].sort().values


def _above_a_bound(size: Tensor, count: int) -> Tensor | None:
    """Return the same from those elements alone that can be among the largest; None if ties, or too few, need topk.

    The elements are cut into pieces, at least three for each one wanted: the count-th largest of the pieces' maxima is
    a bound that the count-th largest element reaches, and that few others do.
    """
    width = size.numel() // (3 * count)
    if width < 8:
        return None
    pieces = size.numel() // width
    bound = size[: pieces * width].view(pieces, width).amax(dim=1).topk(count, sorted=False).values.min().item()
    places = torch.from_numpy(np.flatnonzero(size.numpy() >= np.float32(bound)))
    found = size[places]
    if len(places) > count:
        places = places[found >= found.topk(count, sorted=False).values.min()]
    return places if bound > 0 and len(places) == count else None
