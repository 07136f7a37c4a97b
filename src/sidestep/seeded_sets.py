"""Sets of moves of ternary weights that a seed draws, of which a step chooses some: a byte says which of 256.

    set c of n moves:  places[j], signs[j] = v >> 1, 2 (v & 1) - 1        v uniform in [0, 2 d), j = 1 .. n

within one parameter of d weights. The numbers of the chosen sets are all that a log keeps: places and signs are drawn
again, in integer arithmetic. Of Gaussian scores the best of 256 sets is worth sqrt(n) 2.8 of their spread, so a byte
that names several moves says more about a gradient than one that names a single one.

The sets depend on the step alone, and not on the seed of a run, so that whatever decides can draw them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.noise import Noise

__all__ = ["CHOICES", "MOST_DRAWN", "ChosenSets", "best_sets", "moves_of_sets"]

CHOICES = 256  # sets that one is chosen of: a byte
MOST_DRAWN = 1 << 26  # moves that a step may draw, all that were not chosen among them
_MOST_WEIGHTS = 1 << 31  # of a parameter: a word draws place and sign
_AT_ONCE = 1 << 20  # moves drawn at a time


@dataclass(frozen=True)
class ChosenSets:
    """Which sets a step chose.

    members: how many moves a set has, n.
    step: of the noise.
    counts: of each parameter, how many sets were chosen.
    numbers: of all parameters in turn, which of 256 each is: uint8, shape (sum of counts,).
    """

    members: int
    step: int
    counts: tuple[int, ...]
    numbers: Tensor

    @property
    def drawn(self) -> int:
        """How many moves are drawn to make the sets again."""
        return sum(self.counts) * CHOICES * self.members


def best_sets(gains: Tensor, count: int, members: int, parameter: int, step: int) -> Tensor:
    """Return which of 256 sets of moves has the largest sum of gains, for each of `count` choices: uint8.

    gains: of a move down and of a move up of each weight, shape (weights, 2).
    """
    flat, chosen = gains.reshape(-1), []
    for first, several in _pieces(count, members):
        drawn = _drawn(len(gains), first, several, members, parameter, step, gains.device)
        found = flat.index_select(0, drawn.view(-1)).view(drawn.shape)  # five times as fast as flat[drawn]
        chosen.append(found.sum(dim=1).argmax(dim=1).to(torch.uint8))
    return torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.uint8, device=gains.device)


def moves_of_sets(sets: ChosenSets, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return ascending places in all weights, int64, and moves of -1 or 1, int8: of a place that is in several sets
    the first one's.

    sizes: weights of each parameter.

    >>> places, moves = moves_of_sets(ChosenSets(3, 0, (1, 0), torch.tensor([7], dtype=torch.uint8)), [100, 50])
    >>> len(places), bool((places.diff() > 0).all())
    (3, True)
    """
    places, moves = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int8)]
    numbers = sets.numbers.cpu().long().split(list(sets.counts))
    before = 0
    for parameter, (size, chosen) in enumerate(zip(sizes, numbers, strict=True)):
        found = [
            _drawn(size, first, several, sets.members, parameter, sets.step)[
                torch.arange(several), :, chosen[first : first + several]
            ]
            for first, several in _pieces(len(chosen), sets.members)
        ]
        if found:
            drawn = torch.cat(found).view(-1)
            once, order = _first_of_each(drawn >> 1)
            places.append(once + before)
            moves.append((2 * (drawn[order] & 1) - 1).to(torch.int8))
        before += size
    return torch.cat(places), torch.cat(moves)


def _pieces(count: int, members: int) -> list[tuple[int, int]]:
    """Cut choices into pieces, (first, how many), whose draws fit into memory."""
    at_once = max(1, _AT_ONCE // (CHOICES * members))
    return [(first, min(at_once, count - first)) for first in range(0, count, at_once)]


def _drawn(  # long: where a draw stands
    size: int, first: int, count: int, members: int, parameter: int, step: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return 2 place + (1 for up) of the moves of choices first .. first + count - 1, (count, members, 256)."""
    if not 1 <= size <= _MOST_WEIGHTS:
        raise InputError(f"sets of moves are drawn in parameters of 1 to 2^31 weights, got {size:,}")
    noise, each = Noise(0).stream("sets").sub(parameter).at(step), CHOICES * members
    return noise.integers(count * each, 2 * size, first * each, device).view(count, members, CHOICES)


def _first_of_each(places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places, ascending and each once, and where each stood first."""
    ascending, order = places.sort(stable=True)
    first = torch.ones(len(places), dtype=torch.bool)
    first[1:] = ascending[1:] != ascending[:-1]
    return ascending[first], order[first]
