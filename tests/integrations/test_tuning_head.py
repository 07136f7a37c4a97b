"""The fitted output layer of a fine-tune: ridge regression, held to its definition by leaving texts out one by one."""

import pytest
import torch

from sidestep.integrations.tuning.head import ridge
from sidestep.noise import Noise


@pytest.mark.parametrize("width", [3, 40])  # fewer and more features than texts
def test_the_layer_is_the_ridge_solution_of_least_error_left_out(width):
    inputs, labels = Noise(0).normal(20 * width).view(20, width).double(), torch.tensor([0, 1, 2, 1] * 5)
    inputs[:, 0] += labels  # something to be found
    weight, bias = ridge(inputs, labels, 3)
    inputs = inputs / (inputs.std(0) + 1e-6)
    targets = torch.nn.functional.one_hot(labels, 3).double()
    unit = float(torch.linalg.eigvalsh((inputs - inputs.mean(0)).T @ (inputs - inputs.mean(0))).mean())

    def solved(rows, strength):
        means, shares = inputs[rows].mean(0), targets[rows].mean(0)
        centred = inputs[rows] - means
        found = torch.linalg.solve(
            centred.T @ centred + strength * torch.eye(width), centred.T @ (targets[rows] - shares)
        )
        return found, shares - means @ found

    def left_out(strength):
        error = 0.0
        for text in range(20):
            rows = [other for other in range(20) if other != text]
            found, shift = solved(rows, strength)
            error += float((inputs[text] @ found + shift - targets[text]).square().sum())
        return error

    if width == 3:  # the strengths are in units of the mean squared length of the axes that are there
        strengths = [unit * 10.0**power for power in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1)]
        found, _ = solved(list(range(20)), min(strengths, key=left_out))
        own = weight.double() * (
            Noise(0).normal(60).view(20, 3).double() + torch.tensor([1.0, 0, 0]) * labels[:, None]
        ).std(0)
        ratio = own.T / found
        assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)
    assert torch.allclose(weight.sum(0), torch.zeros(width), atol=1e-4)
    assert float(bias.sum()) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_texts_that_do_not_differ_tell_their_label_alone(count):
    weight, bias = ridge(torch.ones(count, 3), torch.ones(count, dtype=torch.long), 2)
    assert torch.equal(weight, torch.zeros(2, 3))
    assert bias[1] > bias[0]
