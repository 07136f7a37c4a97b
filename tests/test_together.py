"""All blocks in one pass: the losses, gradients and statistics of the blocks one by one, to rounding."""

import pytest
import torch
from torch import nn

from sidestep.data import Split
from sidestep.errors import InputError
from sidestep.nets.dropout import Dropout
from sidestep.nets.together import can_go_together
from sidestep.nets.ways import choose_way
from sidestep.noise import Noise
from sidestep.rules import Batch, NoPropDT, Task

NOISE = Noise(0).stream("estimate").at(5)
CASES = {
    "figure-6": ({}, (1, 8, 8)),
    "figure-6, colour": ({"loss": "cross-entropy", "label_smoothing": 0.1}, (3, 12, 12)),
    "odd sides": ({"loss": "clipped"}, (3, 9, 11)),
    "learned embedding": ({"embedding": "learned", "dimension": 6, "readout": "radial"}, (1, 8, 8)),
    "one block": ({"blocks": 1, "embedding": "learned"}, (1, 8, 8)),
    "prototype": ({"embedding": "prototype", "blocks": 2}, (1, 8, 8)),
    "pooled": ({"path": "pooled", "blocks": 2}, (1, 32, 32)),
    "resnet-9": ({"path": "resnet-9", "blocks": 2}, (3, 8, 8)),
}


def built(options, shape, dtype=torch.float64, size=10):
    rule = NoPropDT(**{"blocks": 3, **options})
    task = Task(shape, tuple("abcd"), (0.0,) * shape[0], (1.0,) * shape[0])
    pixels = (Noise(3).uniform(40 * shape[0] * shape[1] * shape[2]) * 255).to(torch.uint8).view(40, *shape)
    net = rule.build(task, Noise(0), Split(pixels, torch.arange(40) % 4), None).to(dtype)
    images = Noise(11).normal(size * pixels[0].numel()).view(size, *shape).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    return rule, net, Batch(images, Noise(11).stream("labels").integers(size, 4))


def both(rule, net, batch):
    found = []
    for way in ("per block", "together"):
        net.set_way(way)
        found.append(rule.estimate(net, batch, NOISE))
    return found


def assert_equal(alone, together, tolerance):
    assert list(alone.losses) == list(together.losses)
    for kind in ("losses", "gradients", "statistics"):
        one, other = getattr(alone, kind), getattr(together, kind)
        assert one.keys() == other.keys()
        for name in one:
            assert other[name].shape == one[name].shape
            size = max(1.0, float(one[name].abs().max()))
            difference = float((other[name] - one[name]).abs().max())
            assert difference <= tolerance * size, f"{name}: {difference:.1e} of {size:.1e}"


@pytest.mark.parametrize("case", CASES)
def test_together_equals_per_block_in_double_precision(case):
    rule, net, batch = built(*CASES[case])
    assert_equal(*both(rule, net, batch), 1e-10)


@pytest.mark.parametrize("case", ["figure-6, colour", "resnet-9"])
def test_the_recorded_pass_equals_per_block_at_every_step(case):
    """Without a GPU the graph is the function that would be recorded: what goes in and out of it is the same."""
    rule, net, batch = built(*CASES[case])
    optimizer = rule.optimizer(net)
    for step in range(3):  # recorded at the first, with other weights, masks and statistics after it
        found = []
        for way in ("per block", "graph"):
            net.set_way(way)
            found.append(rule.estimate(net, batch, NOISE.at(step)))
        assert_equal(*found, 1e-9)
        rule.apply(net, found[0], optimizer)
