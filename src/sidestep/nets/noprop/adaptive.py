"""Walks with adaptive steps: embedded Runge-Kutta pairs, with steps of its own for every example of a batch.

One step of a pair takes z to `z + h sum_i b_i k_i` with stages `k_i = f(z + h sum_(j<i) a_ij k_j, t + c_i h)`, and
estimates its error as `h sum_i e_i k_i` (Hairer, Norsett, Wanner, "Solving ordinary differential equations I", 1993,
section II.4). A solver that chooses one step for the whole batch, by the norm of all errors, gives an example another
answer in other company. Here each example has its own time, step, acceptance and end.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sidestep.errors import InputError

__all__ = ["ADAPTIVE", "AdaptiveVelocity", "adaptive_walk"]

# (z, t, rows) -> dz/dt: (n, dimension), (n,), the places of these n examples in the batch -> (n, dimension)
AdaptiveVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]

_TICKS, _FIRST = 2**14, 2**7  # in a walk, and in its first step
_SAFETY = 0.9  # how far below the best guess the next step stays
_MOST = 6  # the most powers of sqrt(2) by which a step is larger or smaller than the last


class _Pair(NamedTuple):
    """An embedded pair of formulas."""

    order: int  # of the one that the walk goes on with
    nodes: tuple[float, ...]  # c_i of the stages after the first
    stages: tuple[tuple[float, ...], ...]  # a_ij of the stages after the first
    weights: tuple[float, ...]  # b_i
    errors: tuple[float, ...]  # e_i = b_i less the weights of the other formula

    @property
    def last_is_first(self) -> bool:
        """Whether the last stage is the rate at the step's end, with which the next step begins."""
        return self.weights[-1] == 0 and self.weights[:-1] == self.stages[-1]


_PAIRS = {
    "dopri5": _Pair(  # Dormand, Prince 1980
        5,
        (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
        # Shampine's choice of the other formula
        (35 / 384 - 1951 / 21600, 0, 500 / 1113 - 22642 / 50085, 125 / 192 - 451 / 720, -2187 / 6784 + 12231 / 42400,
         11 / 84 - 649 / 6300, -1 / 60),
    ),
    "dopri8": _Pair(  # Prince, Dormand 1981, RK8(7)13M
        8,
        (1 / 18, 1 / 12, 1 / 8, 5 / 16, 3 / 8, 59 / 400, 93 / 200, 5490023248 / 9719169821, 13 / 20,
         1201146811 / 1299019798, 1, 1, 1),
        (
            (1 / 18,),
            (1 / 48, 1 / 16),
            (1 / 32, 0, 3 / 32),
            (5 / 16, 0, -75 / 64, 75 / 64),
            (3 / 80, 0, 0, 3 / 16, 3 / 20),
            (29443841 / 614563906, 0, 0, 77736538 / 692538347, -28693883 / 1125000000, 23124283 / 1800000000),
            (16016141 / 946692911, 0, 0, 61564180 / 158732637, 22789713 / 633445777, 545815736 / 2771057229,
             -180193667 / 1043307555),
            (39632708 / 573591083, 0, 0, -433636366 / 683701615, -421739975 / 2616292301, 100302831 / 723423059,
             790204164 / 839813087, 800635310 / 3783071287),
            (246121993 / 1340847787, 0, 0, -37695042795 / 15268766246, -309121744 / 1061227803, -12992083 / 490766935,
             6005943493 / 2108947869, 393006217 / 1396673457, 123872331 / 1001029789),
            (-1028468189 / 846180014, 0, 0, 8478235783 / 508512852, 1311729495 / 1432422823, -10304129995 / 1701304382,
             -48777925059 / 3047939560, 15336726248 / 1032824649, -45442868181 / 3398467696, 3065993473 / 597172653),
            (185892177 / 718116043, 0, 0, -3185094517 / 667107341, -477755414 / 1098053517, -703635378 / 230739211,
             5731566787 / 1027545527, 5232866602 / 850066563, -4093664535 / 808688257, 3962137247 / 1805957418,
             65686358 / 487910083),
            (403863854 / 491063109, 0, 0, -5068492393 / 434740067, -411421997 / 543043805, 652783627 / 914296604,
             11173962825 / 925320556, -13158990841 / 6184727034, 3936647629 / 1978049680, -160528059 / 685178525,
             248638103 / 1413531060, 0),
            (14005451 / 335480064, 0, 0, 0, 0, -59238493 / 1068277825, 181606767 / 758867731, 561292985 / 797845732,
             -1041891430 / 1371343529, 760417239 / 1151165299, 118820643 / 751138087, -528747749 / 2220607170, 1 / 4),
        ),
        (14005451 / 335480064, 0, 0, 0, 0, -59238493 / 1068277825, 181606767 / 758867731, 561292985 / 797845732,
         -1041891430 / 1371343529, 760417239 / 1151165299, 118820643 / 751138087, -528747749 / 2220607170, 1 / 4, 0),
        (14005451 / 335480064 - 13451932 / 455176623, 0, 0, 0, 0, -59238493 / 1068277825 + 808719846 / 976000145,
         181606767 / 758867731 - 1757004468 / 5645159321, 561292985 / 797845732 - 656045339 / 265891186,
         -1041891430 / 1371343529 + 3867574721 / 1518517206, 760417239 / 1151165299 - 465885868 / 322736535,
         118820643 / 751138087 - 53011238 / 667516719, -528747749 / 2220607170 - 2 / 45, 1 / 4, 0),
    ),
    "bosh3": _Pair(  # Bogacki, Shampine 1989
        3,
        (1 / 2, 3 / 4, 1),
        ((1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (2 / 9, 1 / 3, 4 / 9, 0),
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    ),
    "fehlberg2": _Pair(  # Fehlberg 1969, RK1(2)
        2, (1 / 2, 1), ((1 / 2,), (1 / 256, 255 / 256)), (1 / 512, 255 / 256, 1 / 512), (-1 / 512, 0, 1 / 512)
    ),
    "adaptive_heun": _Pair(2, (1,), ((1,),), (1 / 2, 1 / 2), (1 / 2, -1 / 2)),
}  # fmt: skip
ADAPTIVE: tuple[str, ...] = tuple(_PAIRS)


class _Walk(NamedTuple):
    """The examples that are under way. Ticks are whole numbers, of which the walk has _TICKS."""

    rows: Tensor  # (n,), their places in the batch
    tick: Tensor  # (n,), of their times
    size: Tensor  # (n,), of the next step, in ticks
    latent: Tensor  # (n, dimension)
    rate: Tensor  # (n, dimension), dz/dt there

    def only(self, wanted: Tensor) -> "_Walk":
        return _Walk(*(tensor[wanted] for tensor in self))


def adaptive_walk(
    velocity: AdaptiveVelocity, ends: Sequence[float], latent: Tensor, method: str = "dopri5", tolerance: float = 1e-3
) -> Tensor:
    """Integrate dz/dt between two times by a pair with adaptive steps, each example by its own.

    A step is accepted if the root mean square of its errors, each over `tolerance (1 + |z|)`, is at most 1, or if it is
    the smallest there is. The next one is as large, or by a power of sqrt(2) larger or smaller, so that it depends on z
    in a few places only: as a smooth function of the error, it would make a difference in the last bit into one of the
    size of the tolerance, where the rate swings faster than the steps can follow.

    Args:
        velocity: dz/dt at z and t, for those examples of the batch that are still under way.
        ends: the first and the last time; the rate is asked for at no time beyond them.
        latent: z at the first time, (batch, dimension).
        method: one of ADAPTIVE.
        tolerance: of a step's error, absolute and relative to z.

    Returns:
        z at the last time, (batch, dimension); NaN where z or the rate stopped being finite.

    Raises:
        InputError: for another method.
    """
    if method not in _PAIRS:
        raise InputError(f"the adaptive solver must be {', '.join(ADAPTIVE)}, got {method!r}")
    pair, found = _PAIRS[method], torch.full_like(latent, torch.nan)
    rows = torch.arange(len(latent), device=latent.device)
    tick = latent.new_zeros(len(latent))
    first = velocity(latent, tick + ends[0], rows)
    walk = _Walk(rows, tick, torch.full_like(tick, _FIRST), latent, first)
    while len(walk.rows):
        size = torch.minimum(walk.size, _TICKS - walk.tick)
        step = _taken(velocity, pair, ends, walk, size, tolerance)
        accepted = (step.error <= 1) | (size <= 1)
        change = (2 * torch.log2(_SAFETY / step.error ** (1 / pair.order))).floor()
        change = torch.where(accepted, change.clamp(0, _MOST), change.clamp(-_MOST, -1))
        moved = accepted[:, None]
        walk = _Walk(
            walk.rows,
            torch.where(accepted, walk.tick + size, walk.tick),
            (size * torch.exp2(change / 2)).round().clamp_min(1),
            torch.where(moved, step.latent, walk.latent),
            torch.where(moved, step.rate, walk.rate),
        )
        arrived = walk.tick >= _TICKS
        found[walk.rows[arrived]] = walk.latent[arrived]
        walk = walk.only(~arrived & step.error.isfinite())
    return found


class _Step(NamedTuple):
    """One step of every example under way."""

    latent: Tensor  # (n, dimension), at its end
    rate: Tensor  # (n, dimension)
    error: Tensor  # (n,), the estimate over what is tolerated


def _taken(  # long: what a step depends on
    velocity: AdaptiveVelocity, pair: _Pair, ends: Sequence[float], walk: _Walk, size: Tensor, tolerance: float
) -> _Step:
    """Return a step of `size` ticks, (n,)."""
    begin, tick = ends[0], (ends[1] - ends[0]) / _TICKS
    h, stages = (size * tick)[:, None], [walk.rate]

    def rate_at(latent: Tensor, node: float) -> Tensor:
        return velocity(latent, (begin + (walk.tick + node * size) * tick).clamp_max(ends[1]), walk.rows)

    for node, row in zip(pair.nodes, pair.stages, strict=True):
        stages.append(rate_at(walk.latent + h * _combined(row, stages), node))
    latent = walk.latent + h * _combined(pair.weights, stages)
    rate = stages[-1] if pair.last_is_first else rate_at(latent, 1)
    scale = tolerance * (1 + torch.maximum(walk.latent.abs(), latent.abs()))
    error = (h * _combined(pair.errors, stages) / scale).square().mean(dim=1).sqrt()
    return _Step(latent, rate, error)


def _combined(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of the stages, (n, dimension)."""
    total = torch.zeros_like(stages[0])
    for weight, stage in zip(weights, stages, strict=True):
        if weight:
            total = total + weight * stage
    return total
