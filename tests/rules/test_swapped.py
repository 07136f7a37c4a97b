"""Weights that are put in a small net's place for a pass give what weights shifted operation by operation give."""

import dataclasses

import pytest
import torch
from torch import nn

from sidestep.data import load
from sidestep.gradients.swapped import SwappedWeights
from sidestep.nets.parallel import kept_statistics
from sidestep.noise import Noise
from sidestep.rules import SPSA
from sidestep.rules.protocol import Batch, Task

DATA = load("digits")
TASK = Task.of(DATA)
RULES = [
    SPSA(hidden=(16,), pairs=3),
    SPSA(hidden=(16, 8), pairs=2, sides="both", norm=False),
    SPSA(hidden=(16,), pairs=2, distribution="gaussian"),
    SPSA(hidden=(16,), pairs=3, distribution="rademacher", learning_rate=0.1, spread=True, sides="both"),
]


def batch_of(step: int, dtype: torch.dtype = torch.float32) -> Batch:
    rows = slice(20 * step, 20 * step + 20)
    return Batch(TASK.prepare(DATA.train.images[rows]).to(dtype), DATA.train.labels[rows], TASK.objective)


def trained_by(rule: SPSA, steps: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The coefficients of the steps, and the weights after them."""
    net = rule.build(TASK, Noise(3), DATA.train, None)
    optimizer, coefs = rule.optimizer(net), []
    for step in range(steps):
        update = rule.decide(net, rule.estimate(net, batch_of(step), Noise(4).at(step)), optimizer)
        coefs.append(update.coefs)
        rule.apply(net, update, optimizer)
    return coefs, [parameter.detach() for parameter in net.parameters()]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_steps_are_those_of_the_plain_path(rule: SPSA, monkeypatch: pytest.MonkeyPatch) -> None:
    swaps = []
    at = SwappedWeights.at
    monkeypatch.setattr(SwappedWeights, "at", lambda self, *given: (swaps.append(1), at(self, *given))[1])
    fast = trained_by(rule)
    assert len(swaps) >= 3 * rule.pairs
    monkeypatch.setattr(SwappedWeights, "of", lambda net: None)
    plain = trained_by(rule)
    for one, other in zip((*fast[0], *fast[1]), (*plain[0], *plain[1]), strict=True):
        assert torch.equal(one, other)


def test_a_frozen_weight_stays_and_all_come_back_after_an_error() -> None:
    rule = RULES[0]
    net = rule.build(TASK, Noise(3), DATA.train, None)
    next(net.parameters()).requires_grad_(False)
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in net.named_parameters()}
    rule.estimate(net, batch_of(0), Noise(4))
    with pytest.raises(RuntimeError):
        rule.estimate(net, dataclasses.replace(batch_of(0), inputs=torch.zeros(20, 3)), Noise(4))
    for name, parameter in net.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_nets_that_draw_write_or_are_the_users_are_shifted_operation_by_operation() -> None:
    class Own(nn.Linear):
        pass

    for layer in (nn.BatchNorm1d(4), nn.Dropout(), Own(4, 4), nn.Linear(4, 4).double()):
        assert SwappedWeights.of(nn.Sequential(nn.Linear(4, 4), layer)) is None
    assert SwappedWeights.of(nn.Sequential(nn.Linear(4, 4), nn.ReLU())) is not None


def test_buffers_are_found_where_named_buffers_finds_them() -> None:
    shared = nn.BatchNorm1d(3)
    net = nn.Sequential(nn.Linear(3, 3), shared, nn.Sequential(shared, nn.BatchNorm1d(3, affine=False)))
    inputs = Noise(1).normal(12).view(4, 3)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with kept_statistics(net, "unit.") as changed:
        net(inputs)
        found = changed()
        expected = {f"unit.{name}": buffer.clone() for name, buffer in net.named_buffers()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
