"""Noise that floating-point weights cannot follow is refused before training."""

import pytest
import torch
from torch import nn

from sidestep.errors import InputError
from sidestep.gradients.directions import Directions
from sidestep.gradients.pairs import paired_logits
from sidestep.nets.resolution import check_noise_size, share_moved
from sidestep.noise import Noise
from sidestep.rules import SPSA, Evolution, Task

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
FULL = {"per": "group", "group": 8, "noise_kind": "full-rank"}


class Half(nn.Module):
    """A layer whose weights have 8 bits of precision."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.layer = nn.Linear(64, 16).to(dtype)

    def forward(self, images):
        return self.layer(images.flatten(1).to(self.layer.weight.dtype)).float().relu()


def build(rule, module=None):
    return rule.build(TASK, Noise(0), None, module)


@pytest.mark.parametrize("eps", [1e-30, 1e-12])
@pytest.mark.parametrize(
    "make", [lambda e: SPSA(eps=e), lambda e: Evolution(eps=e), lambda e: Evolution(eps=e, **FULL)],
    ids=["spsa", "rank-1", "full-rank"],
)  # fmt: skip
def test_noise_below_the_precision_of_the_weights_is_refused(make, eps):
    with pytest.raises(InputError, match=r"eps = 1e-\d+ is too small.*float32.*100%"):
        build(make(eps))


@pytest.mark.parametrize("make", [SPSA, Evolution, lambda **o: Evolution(**FULL, **o)])
def test_the_defaults_and_large_noise_are_fine(make):
    build(make())
    build(make(eps=10.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coarser_weights_need_larger_noise(dtype):
    with pytest.raises(InputError, match=r"too small.*float16"):
        build(SPSA(eps=1e-6), lambda: Half(dtype))
    build(SPSA(eps=1e-2), lambda: Half(dtype))
    build(SPSA(eps=1e-6))


def test_the_share_is_that_of_the_weights_that_move():
    values = torch.tensor([2.0**-10, 1.0, -1.0, 2.0**10, 0.0])
    assert share_moved(values, 2.0**-26) == 0.25  # half of 2^-25, the spacing below 1, is rounded to even: away
    assert share_moved(values, 2.0**-24) == 0.75
    assert share_moved(values, 1.0) == 1.0


def test_what_is_refused_moves_no_output_and_what_is_advised_does():
    net, images = build(SPSA()), Noise(1).normal(16 * 64).view(16, 1, 8, 8)
    with pytest.raises(InputError, match=r"; (\S+) moves all") as refused:
        check_noise_size(net, 1e-20, rows=False)
    advised = float(str(refused.value).split("; ")[1].split(" ")[0])
    with torch.no_grad():
        same, moved = (paired_logits(net, images, Directions(Noise(0)), 0, eps) for eps in (1e-20, 100 * advised))
    assert torch.equal(*same)
    assert not torch.equal(*moved)
    check_noise_size(net, advised, rows=False)


def test_frozen_weights_do_not_count():
    net = build(SPSA(hidden=(16,)))
    with torch.no_grad():
        net.stages[0][1].weight.mul_(1e6)
    with pytest.raises(InputError, match="too small"):
        check_noise_size(net, 1e-3, rows=False)
    net.stages[0][1].weight.requires_grad_(False)
    check_noise_size(net, 1e-3, rows=False)
