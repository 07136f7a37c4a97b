"""Signs times a number: the bits of the longer way."""

import pytest
import torch

from sidestep.gradients import directions
from sidestep.gradients.directions import JointSigns
from sidestep.gradients.scaled_signs import scaled_signs
from sidestep.noise import Noise


@pytest.mark.parametrize(("n", "start"), [(1, 0), (31, 5), (1000, 33), (7, 1 << 38)])
def test_scaled_signs_have_the_bits_of_signs_times_the_number(n: int, start: int) -> None:
    noise = Noise(3).at(2)
    for scale in (1.0, -0.1, 3e-41):
        wanted = noise.signs(n, start).float().mul_(scale)
        assert torch.equal(scaled_signs(noise, n, scale, start), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_large_net_has_the_bits_of_a_sum_of_its_directions(monkeypatch, dtype) -> None:
    monkeypatch.setattr(directions, "_SMALL", 0)
    table = (("first", (3, 5)), ("second", (7, 4)))
    drawn, like = JointSigns(Noise(1), "signs", table, 3), torch.zeros(7, 4, dtype=dtype)
    wanted = torch.zeros_like(like)
    for index, coef in enumerate((0.3, 0.0, -1.7)):
        if coef:
            wanted.add_(drawn.draw("second", like.shape, index, like), alpha=coef)
    assert torch.equal(drawn.weighted("second", (0.3, 0.0, -1.7), 0, like), wanted)
    assert not drawn.weighted("second", (0.0,), 0, like).any()
