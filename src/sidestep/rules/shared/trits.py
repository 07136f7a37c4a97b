"""From coefficients to trits, and from trits to moved weights: what is logged of seeded probes, and how it is applied.

    codec:         tau_i = sgn(alpha_i) if |alpha_i| >= median_j |alpha_j| else 0
    clamped sum:   w <- clamp(w - clamp(sum_i tau_i nu_i, -1, 1), -1, 1)
    accumulators:  e <- e + sum_i tau_i nu_i;  where |e| >= threshold:  w <- clamp(w - sgn(e), -1, 1), e <- 0

Source: Brickner, "noise_step" (2024), sections 2 and 3, for the first two.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from sidestep.errors import InputError, NonFiniteError
from sidestep.gradients.directions import directions_along, weighted_directions
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.probes import DenseProbes, Probes, RankOneProbes, SparseProbes
from sidestep.update import Seeded

__all__ = [
    "ZERO",
    "accumulate",
    "along_probes",
    "as_gradients",
    "check_finite",
    "move",
    "sign_and_median",
    "subtract",
    "with_zeros",
]

_CACHED = 1 << 17  # weights at a time, whose sums stay in a core's cache
ZERO = "net: zero alignments"


def check_finite(coefs: Tensor) -> None:
    """Raise NonFiniteError for derivatives along probes (K,) with infinities or NaNs."""
    if not bool(coefs.isfinite().all()):
        raise NonFiniteError(
            f"{int((~coefs.isfinite()).sum())} of {len(coefs)} alignments are not finite; try --precision float32, or "
            "look for extreme pixel values"
        )


def sign_and_median(coefs: Tensor) -> Tensor:
    """Return the trits of coefficients (K,), int8; the median is that of all of them, the mean of the middle two.

    >>> sign_and_median(torch.tensor([0.3, -0.1, 0.0, -2.0])).tolist()
    [1, 0, 0, -1]
    """
    sizes = coefs.abs().sort().values
    middle = (sizes[(len(sizes) - 1) // 2] + sizes[len(sizes) // 2]) / 2
    return torch.where(coefs.abs() >= middle, coefs.sign(), 0).to(torch.int8)


def along_probes(net: nn.Module, gradients: dict[str, Tensor], probes: SparseProbes) -> Tensor:
    """Return the projections `<g, nu_i>`, (K,), float32, of a gradient by parameter name on every probe."""
    flat = torch.cat(
        [gradients[name].reshape(-1).float() if name in gradients else trits.new_zeros(trits.numel()).float()
         for name, trits in ternary_parameters(net).items()]
    )  # fmt: skip
    found = probes.entries(device=flat.device)
    return flat.new_zeros(probes.count).index_add_(0, found.probe, flat[found.position] * found.sign)


def as_gradients(net: nn.Module, update: Seeded) -> dict[str, Tensor]:
    """Return the estimate `sum_i alpha_i nu_i` by parameter name, of ternary weights in float32."""
    probes = update.probes
    if isinstance(probes, DenseProbes):
        return weighted_directions(net, directions_along(probes), update.coefs, probes.names)
    parameters, coefs = ternary_parameters(net), update.coefs.float()
    if isinstance(probes, SparseProbes):
        found = probes.entries(device=coefs.device)
        flat = coefs.new_zeros(probes.weights).index_add_(0, found.position, coefs[found.probe] * found.sign)
        parts = flat.split([trits.numel() for trits in parameters.values()])
    else:
        factors = [probes.factors(layer, coefs.device) for layer in range(len(probes.shapes))]
        parts = tuple((left.float() * coefs[:, None]).T @ right.float() for left, right in factors)
    return {name: part.view(trits.shape) for (name, trits), part in zip(parameters.items(), parts, strict=True)}


def subtract(net: nn.Module, trits: Tensor, probes: Probes) -> None:
    """Apply the clamped sum, in place."""
    whole = _touched_whole(net, probes)
    if whole and isinstance(probes, RankOneProbes):
        for parameter, total in zip(whole, probes.layer_sums(trits), strict=True):
            change = total.clamp_(-1, 1).to(torch.int8)
            parameter.data.sub_(change.view(parameter.shape)).clamp_(-1, 1)
        return
    position, value = probes.weighted_sum(trits)
    move(net, position, -value.clamp_(-1, 1))


def accumulate(net: nn.Module, trits: Tensor, probes: Probes, optimizer: torch.optim.Optimizer, threshold: int) -> None:
    """Add the sum to the accumulators, which the optimiser keeps, and move the weights that reach the threshold.

    They are as wide as the threshold needs: eight bits up to 127, then sixteen, then thirty-two.
    """
    narrow = next(kind for kind in (torch.int8, torch.int16, torch.int32) if threshold <= torch.iinfo(kind).max)
    most = torch.iinfo(narrow).max
    whole = _touched_whole(net, probes) if trits.device.type == "cpu" else None
    if whole and isinstance(probes, RankOneProbes):
        for parameter, change in zip(whole, probes.layer_sums(trits), strict=True):
            _accumulate_all(parameter, change, probes.count, _evidence(parameter, optimizer, narrow), threshold)
        return
    position, value = probes.weighted_sum(trits)
    for parameter, inside, change in _by_parameter(net, position, value):
        evidence = _evidence(parameter, optimizer, narrow)
        total = (evidence[inside].to(torch.int64) + change).clamp_(-most, most)
        enough = total.abs() >= threshold
        flat = parameter.data.view(-1)
        flat[inside[enough]] = (flat[inside[enough]] - total[enough].sign()).clamp_(-1, 1).to(torch.int8)
        evidence[inside] = total.masked_fill_(enough, 0).to(narrow)


def _touched_whole(net: nn.Module, probes: Probes) -> list[Tensor] | None:
    """Return the parameters, if the probes touch every weight of each: rank-one ones, but not a part of them."""
    parameters = list(ternary_parameters(net).values())
    if type(probes) is not RankOneProbes or [p.numel() for p in parameters] != [a * b for a, b in probes.shapes]:
        return None
    return parameters


def _evidence(parameter: Tensor, optimizer: torch.optim.Optimizer, narrow: torch.dtype) -> Tensor:
    state = optimizer.state[parameter]
    if "evidence" not in state:
        state["evidence"] = torch.zeros_like(parameter, dtype=narrow)
    found: Tensor = state["evidence"].view(-1)
    return found


def _accumulate_all(parameter: Tensor, change: Tensor, count: int, evidence: Tensor, threshold: int) -> None:
    """Do the same where probes touch all weights of a parameter, on a processor: no places are listed.

    Sums need no clamping: below the threshold they fit, and beyond it they are cleared. Each pass over whole numbers of
    eight or sixteen bits is numpy's or torch's, whichever is faster.
    """
    short = torch.int16 if threshold + count < 1 << 15 else torch.int64
    parts = (each.split(_CACHED) for each in (change.view(-1), evidence, parameter.data.view(-1)))
    for more, before, weights in zip(*parts, strict=True):
        kept, total = before.numpy(), more.to(short).numpy()
        total += kept
        up, down = (total >= threshold).view(np.int8), (total <= -threshold).view(np.int8)
        np.copyto(kept, total, casting="unsafe")
        kept &= ((up | down) - np.int8(1)).astype(kept.dtype, copy=False)  # all bits, or none
        down -= up
        weights.add_(torch.from_numpy(down)).clamp_(-1, 1)


def move(net: nn.Module, position: Tensor, change: Tensor) -> None:
    """Add whole numbers to the weights at these positions, which stay in {-1, 0, 1}."""
    for parameter, inside, values in _by_parameter(net, position, change):
        flat = parameter.data.view(-1)
        flat[inside] = (flat[inside] + values).clamp_(-1, 1).to(torch.int8)


def _by_parameter(net: nn.Module, position: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Cut ascending positions in all weights into places in each parameter."""
    parameters = list(ternary_parameters(net).values())
    ends = torch.tensor([parameter.numel() for parameter in parameters]).cumsum(0)
    if position.numel() and int(position[-1]) >= int(ends[-1]):
        raise InputError(f"the update moves weight {int(position[-1])}, but the net has {int(ends[-1])}: another net?")
    cuts = torch.searchsorted(position.cpu(), ends).tolist()
    before = 0
    for parameter, end, first, last in zip(parameters, ends.tolist(), [0, *cuts], cuts, strict=False):
        if last > first:
            yield parameter, position[first:last] - before, value[first:last]
        before = end


def with_zeros(  # long: what an update has
    coefs: Tensor,
    probes: Probes,
    losses: dict[str, Tensor],
    part: tuple[Tensor, Tensor | None],
    statistics: dict[str, Tensor] | None = None,
) -> Seeded:
    """Return the update of a part of a step, with the share of its alignments that are 0 beside the losses.

    Those belong to probes that are empty, or that the loss does not depend on.

    Args:
        coefs: of the probes that the part took.
        probes: of the whole step.
        losses: of the part.
        part: what it gives of all coefficients, and which probes it took.
        statistics: new values of buffers.

    Raises:
        NonFiniteError: for coefficients with infinities or NaNs.
    """
    check_finite(coefs)
    return Seeded(part[0], probes, statistics or {}, {**losses, ZERO: (coefs == 0).float().mean()}, taken=part[1])
