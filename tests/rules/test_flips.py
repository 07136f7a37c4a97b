"""The weights that flip are chosen fast, and are those that sorting all of them gives."""

import pytest
import torch
from torch import Tensor

from sidestep.noise import Noise
from sidestep.rules.shared import flips


def plain(momentum: Tensor, trits: Tensor, count: int) -> list[int]:
    """The places by one mask and torch.topk over all weights."""
    flat, weights = momentum.view(-1), trits.view(-1)
    largest = flat.abs().masked_fill_(flat * weights > 0, 0).topk(min(count, flat.numel()))
    return largest.indices[largest.values > 0].sort().values.tolist()


def drawn(kind: str, n: int) -> tuple[Tensor, Tensor]:
    noise = Noise(4)
    momentum, trits = noise.normal(n), noise.stream("trits").sparse_signs(n, 0.7)
    if kind == "ties":
        momentum = noise.integers(n, 7).float() - 3
    elif kind == "two values that tie at the end":
        momentum[::5000] = 9.0
    elif kind == "few can move":
        trits = torch.where(torch.arange(n) % 1000 == 0, trits, momentum.sign().to(torch.int8))
    elif kind == "in order":
        momentum = momentum.sort().values
    elif kind == "nothing can move":
        trits = momentum.sign().to(torch.int8)
    elif kind == "at first":
        momentum = torch.zeros(n)
    return momentum, trits


KINDS = ["normal", "ties", "two values that tie at the end", "few can move", "in order", "nothing can move", "at first"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 500, flips._MANY, 3 * flips._MANY + 7])
def test_the_largest_are_those_of_a_mask_and_topk(kind: str, n: int) -> None:
    momentum, trits = drawn(kind, n)
    for count in (0, 1, 3, 40, 120, n // 300, n // 30, n):
        found = flips._largest(momentum, trits, count)
        assert found.dtype == torch.int64
        assert found.tolist() == plain(momentum, trits, count)


def test_a_bound_serves_where_nothing_ties() -> None:
    momentum, trits = drawn("normal", 3 * flips._MANY)
    size = momentum.abs().sub_((momentum * trits).relu_())
    assert flips._above_a_bound(size, 120).tolist() == plain(momentum, trits, 120)
    assert flips._above_a_bound(drawn("ties", 3 * flips._MANY)[0].abs(), 120) is None
