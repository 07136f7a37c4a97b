"""Gradients of direct flips by rows and columns: the equation, what it is for, and that a resumed run has the bits."""

import pytest
import torch

from sidestep import Options, data, rules, train
from sidestep.errors import InputError
from sidestep.nets.ternary.nets import ternary_mlp
from sidestep.noise import Noise
from sidestep.rules.shared.flip_scaling import by_rows_and_columns
from sidestep.rules.shared.flips import TernaryOptimizer, choose_flips


def gradients(count: int) -> list[torch.Tensor]:
    size = torch.tensor([1e-4, 1e-2, 1.0, 1.0])
    return [Noise(seed).normal(24).view(4, 6) * size[:, None] for seed in range(count)]


def test_it_is_the_factored_second_moment_of_a_plain_loop():
    state, rows, columns = {}, torch.zeros(4), torch.zeros(6)
    for step, gradient in enumerate(gradients(5), start=1):
        rows = 0.99 * rows + 0.01 * gradient.square().mean(dim=1)
        columns = 0.99 * columns + 0.01 * gradient.square().mean(dim=0)
        first, second = rows / (1 - 0.99**step), columns / (1 - 0.99**step)
        wanted = gradient / (first[:, None] * second / first.mean()).sqrt()
        torch.testing.assert_close(by_rows_and_columns(state, gradient.clone())[2:], wanted[2:])


def test_a_gradient_of_a_row_and_a_column_becomes_signs():
    parts = torch.tensor([1.0, 30.0, 0.2])[:, None] * torch.tensor([2.0, -0.5, 1.0, -4.0])
    torch.testing.assert_close(by_rows_and_columns({}, parts / parts.square().mean().sqrt()), parts.sign())


def test_rows_and_columns_that_are_zero_stay_finite_and_zero():
    found = by_rows_and_columns({}, torch.zeros(3, 2))
    assert torch.equal(found, torch.zeros(3, 2))
    kernel = torch.zeros(2, 3, 3, 3)
    kernel[0, 1] = 1.0
    found = by_rows_and_columns({}, kernel)
    assert found.shape == kernel.shape
    assert bool(found.isfinite().all())
    assert int(found.count_nonzero()) == 9


@pytest.mark.parametrize("scaling", ["layer", "rows-and-columns"])
def test_rows_of_small_gradients_flip_with_it_alone(scaling):
    net = ternary_mlp((1, 2, 3), (4,), 2, bias=False, local=False)
    name = next(iter(dict(net.named_parameters())))
    optimizer = TernaryOptimizer([(list(net.parameters()), 0.1)])
    flips = torch.cat([choose_flips(net, {name: g}, optimizer, 0.9, scaling).positions for g in gradients(20)])
    in_the_least_row = int((flips < 6).sum())
    assert (in_the_least_row > 4) == (scaling == "rows-and-columns")


def test_a_resumed_run_has_the_bits_of_one_in_a_piece(tmp_path):
    text = data.from_text("to be or not to be, that is the question. " * 30, length=16)
    rule = rules.NoiseStep(hidden=(12, 12), flip_share=0.01, flip_scaling="rows-and-columns")
    whole = train(rule, text, Options(steps=6, batch=8, out=tmp_path / "whole"))
    train(rule, text, Options(steps=3, batch=8, out=tmp_path / "half"))
    half = train(rule, text, Options(steps=6, batch=8, out=tmp_path / "half", resume=True))
    plain = train(rules.NoiseStep(hidden=(12, 12), flip_share=0.01), text, Options(steps=6, batch=8))
    weights, again = whole.net.state_dict(), half.net.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert any(not torch.equal(weights[name], value) for name, value in plain.net.state_dict().items())


def test_an_update_without_momentum_refuses_it():
    with pytest.raises(InputError, match="flip_scaling = rows-and-columns is for direct flips, and update = bop"):
        rules.NoiseStep(flip_scaling="rows-and-columns", update="bop")
    assert not rules.NoiseStep(flip_scaling="rows-and-columns").takes_signs
    assert rules.NoiseStep().takes_signs
