"""The experiment on the image path's end counts units that tell nothing, and changes nothing but that end."""

import pytest
import torch
from torch import nn

from experiments.path_ends import ENDS, shares_of, with_end
from sidestep.noise import Noise
from sidestep.rules import NoPropCT, NoPropFM, Task


class Path(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.norm = end

    def forward(self, images):
        return self.norm(images.flatten(1))


def test_shares_of_units_that_tell_nothing():
    images = torch.stack([-torch.ones(6), torch.full((6,), 2.0), torch.arange(6.0), -torch.arange(6.0) - 1], dim=1)
    found = [shares_of(Path(end), images) for end in (nn.ReLU(), nn.LeakyReLU(0.1), nn.Identity())]
    # the second is always 2, the first and last are always below zero
    assert [each["still"] for each in found] == [0.75, 0.5, 0.5]
    assert [each["below"] for each in found] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("kind", [NoPropCT, NoPropFM])
def test_nothing_but_the_end_is_another(kind):
    task = Task((1, 8, 8), tuple("abc"), (0.0,), (1.0,))
    nets = {end: with_end(kind(), end).build(task, Noise(0), None, None) for end in ENDS}
    plain = kind().build(task, Noise(0), None, None).state_dict()
    for end, net in nets.items():
        values = net.state_dict()
        assert {key for key in values.keys() - plain.keys() if "image.norm" not in key} == set()
        assert all(torch.equal(values[key], plain[key]) for key in plain)
        assert (len(values) > len(plain)) == (end == "batch")
