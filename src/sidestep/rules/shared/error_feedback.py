"""Steps of whole-numbered weights: what is too small for a step is kept in no memory, but made again from the seeds.

    S_t  = - sum_(k = t0)^t rate_k sum_i c_ki nu_ki / s_r        the wish since the window began, in steps of the grid
    q   <- clamp(q + floor(S_t + d) - floor(S_(t-1) + d), -limit, limit)         d: uniform in [0, 1), a window's own
    t0   = t - t mod window

Within a window the errors of rounding are fed back: what was moved never differs from the wish by a whole step. From
one window to the next nothing is kept, and nothing is lost on average, since `E_d floor(S + d) = S`. With `window` = 1
this is stochastic rounding of every step. S_t and S_(t-1) are summed up a tile at a time, from the seeds and the
coefficients of the window's steps, so that no weight has a float beside it.

The idea of rebuilding the residual from seeds is that of Xu et al., "Quantized evolution strategies" (2026), which
has a decaying residual and rounds to the nearest in place of d.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.gradients.directions import Directions, directions_along
from sidestep.nets.quantized import quantized_weights, tiles
from sidestep.noise import Noise
from sidestep.probes import DenseProbes
from sidestep.update import Seeded

__all__ = ["WINDOW", "check_rounding", "move_whole_numbers"]

WINDOW = "window"  # the entry of a parameter group that says how many steps a window has
_STEPS = "steps of the window"  # in the memory of the optimiser, of its first weight of whole numbers
_TILE = 1 << 16  # weights, for which a step has four floats each
_LEAST = 2.0**-24  # of a step of the grid: what d does not resolve


def check_rounding(net: nn.Module, distribution: str, optimizer_kind: str, weight_decay: float) -> bool:
    """Return whether a net has whole-numbered weights to train; raise InputError for what cannot train those."""
    weights = quantized_weights(net)
    if not weights:
        return False
    for name, (_, scale, _) in weights.items():
        if not bool(((scale > 0) & scale.isfinite()).all()):
            raise InputError(
                f"the distance between two values of {name} is 0 or infinite in {scale.dtype}, so that nothing could "
                "be learned; take float32, or quantize after the move to another precision"
            )
    if distribution != "signs":
        raise InputError(
            f"quantised weights are shifted a tile at a time, which takes distribution = signs, got {distribution}"
        )
    if optimizer_kind != "plain-sgd" or weight_decay:
        raise InputError(
            "quantised weights step by plain-sgd without weight decay, since a moment would be a float for every "
            f"weight, got {optimizer_kind} and weight_decay = {weight_decay:g}; leave both out"
        )
    return True


def move_whole_numbers(net: nn.Module, update: Seeded, rate: float, optimizer: torch.optim.Optimizer) -> set[str]:
    """Take one step of the quantised weights that an update is about, in place, and return all of their names.

    Raises:
        InputError: if the first step of all is too small for any weight to feel it.
    """
    weights, probes = quantized_weights(net), update.probes
    if not isinstance(probes, DenseProbes):
        raise InputError("quantised weights move along dense directions alone")
    steps = _window(weights, update, rate, optimizer)
    along = [(directions_along(replace(probes, noise=probes.noise.at(step))), coefs) for step, coefs in steps]
    size = int(optimizer.param_groups[0][WINDOW])
    first = steps[-1][0] // size * size
    with torch.no_grad():
        for name in [name for name in probes.names if name in weights]:
            weight, scale, limit = weights[name]
            rounding = probes.noise.stream("rounding").stream(name).at(first)
            for rows in tiles(weight, _TILE):
                change = _change(name, weight, scale, rows, along, rounding)
                moved = weight.data[rows].to(torch.int32).add_(change)
                weight.data[rows] = moved.clamp_(-limit, limit).to(torch.int8)
    return set(weights)


def _window(
    weights: Mapping[str, tuple[nn.Parameter, nn.Parameter, int]],
    update: Seeded,
    rate: float,
    optimizer: torch.optim.Optimizer,
) -> list[list[Any]]:
    """Return number and coefficients, times the rate, of every step of the window, with this one as its last."""
    steps: list[list[Any]] = optimizer.state[next(iter(weights.values()))[0]].setdefault(_STEPS, [])
    step, size = update.probes.noise.step, int(optimizer.param_groups[0][WINDOW])
    coefs = [rate * coef for coef in update.coefs.tolist()]
    if not steps and step == 0:
        _check_size(weights, coefs, rate)
    if steps and steps[0][0] // size != step // size:
        steps.clear()
    steps.append([step, coefs])
    return steps


def _change(  # long: a tile, and what moves it
    name: str,
    weight: Tensor,
    scale: Tensor,
    rows: slice,
    along: Sequence[tuple[Directions, list[float]]],
    rounding: Noise,
) -> Tensor:
    """Return by how many steps of the grid each weight of some rows moves, int32."""
    wide = weight[0].numel()
    place = range(rows.start * wide, rows.stop * wide)
    dither = rounding.uniform(len(place), place.start, weight.device).view(-1, wide)
    wish = torch.zeros_like(dither)
    own = scale.detach()[rows, None].to(wish.dtype)
    for directions, coefs in along[:-1]:
        wish.view(-1).add_(directions.elements(name, coefs, 0, weight, place))
    before = (dither - wish / own).floor_()
    directions, coefs = along[-1]
    wish.view(-1).add_(directions.elements(name, coefs, 0, weight, place))
    after = (dither - wish / own).floor_()
    return after.sub_(before).to(torch.int32).view_as(weight[rows])


def _check_size(
    weights: Mapping[str, tuple[nn.Parameter, nn.Parameter, int]], coefs: Sequence[float], rate: float
) -> None:
    finest = min(float(scale.detach().min()) for _, scale, _ in weights.values())
    most = sum(map(abs, coefs)) / finest
    if 0 < most < _LEAST:
        raise InputError(
            f"the step is too small for the precision: with a learning rate of {rate:g} no quantised weight would move "
            f"by more than {most:.1e} of the distance between two of its values; {rate * 1e-3 / most:.0e} would move "
            "some by a thousandth of it"
        )
