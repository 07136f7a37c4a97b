"""Weights shifted as operations read them: the bits of whole substitution, whatever a module does with its own."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import sidestep
from sidestep.gradients.directions import Directions, OneDirection
from sidestep.gradients.shifted import at_shifted
from sidestep.measure.allocations import peak_allocation
from sidestep.nets.substituted import substituted
from sidestep.nets.trained import trained
from sidestep.noise import Noise
from sidestep.rules import SPSA
from sidestep.rules.shared import any_module as any_module_rules

ROWS = Noise(3).normal(15).view(5, 3)
TOKENS = torch.tensor([[0, 3, 1], [2, 2, 5]])


class ReadsAnother(nn.Module):
    """A language model whose output layer is its embedding, read outside of the embedding's own forward."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(7, 4), nn.Linear(4, 4)

    def forward(self, tokens):
        return F.linear(self.layer(self.embedding(tokens)), self.embedding.weight)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight

    def forward(self, rows):
        return self.two(self.one(rows))


class Own(nn.Module):
    """Weights in no layer, read in several ways."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(Noise(i).normal(9).view(3, 3)) for i in range(3)])

    def forward(self, rows):
        one, two, three = self.weights
        return torch.cat([rows @ one.T, rows @ two[:, :2]], dim=1) * three.sum() + torch.stack([one, two]).mean()


class Writes(nn.Module):
    """Brings its weight to length 1, in place, on every pass."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(Noise(2).normal(9).view(3, 3))

    def forward(self, rows):
        with torch.no_grad():
            self.weight.div_(self.weight.norm())
        return rows @ self.weight


class WritesData(Writes):
    def forward(self, rows):
        self.weight.data /= self.weight.data.norm()
        return rows @ self.weight


class InAThread(nn.Module):
    """Runs its layer where no mode of this thread sees it."""

    def __init__(self):
        super().__init__()
        self.layer, self.output = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, rows):
        found = []
        with_grad = torch.is_grad_enabled()

        def run():
            with torch.set_grad_enabled(with_grad):
                found.append(self.layer(rows))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return self.output(found[0])


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, rows):
        return self.layer(rows)


class Checkpointed(Tied):
    def forward(self, rows):
        return checkpoint(self.two, checkpoint(self.one, rows, use_reentrant=False), use_reentrant=False)


def frozen():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].weight.requires_grad_(False)
    return net


NETS = {
    "another's weight": (ReadsAnother, TOKENS),
    "tied": (Tied, ROWS),
    "own": (Own, ROWS),
    "writes": (Writes, ROWS),
    "writes data": (WritesData, ROWS),
    "thread": (InAThread, ROWS),
    "unused": (Unused, ROWS),
    "checkpointed": (Checkpointed, ROWS),
    "frozen": (frozen, ROWS),
    "lstm": (lambda: nn.Sequential(nn.LSTM(3, 4)), ROWS[None]),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), ROWS),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(), torch.ones(1, 2, 4)),
    "convolution": (lambda: nn.Conv2d(3, 64, 3).to(memory_format=torch.channels_last), torch.ones(2, 3, 8, 8)),
    "large": (lambda: nn.Linear(3, 90_000), ROWS),
    "bfloat16": (lambda: nn.Linear(3, 90_000).bfloat16(), ROWS.bfloat16()),
}  # fmt: skip


def whole(net, direction, step, run):
    """The plain way: all weights shifted, for the whole pass."""
    shifted = {
        name: torch.add(w.detach(), direction.of(name, w).to(w.dtype) * abs(step), alpha=1 if step > 0 else -1)
        for name, w in trained(net).items()
    }
    with substituted(net, shifted):
        return run()


def made(kind):
    make, inputs = NETS[kind]
    with Noise(0).torch_seeded():
        net = make()

    def run():
        found = net(inputs)
        return found[0] if isinstance(found, tuple) else found

    return net, run


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
def test_outputs_have_the_bits_of_whole_substitution_and_weights_are_only_read(kind, distribution, keep):
    net, run = made(kind)
    before = copy.deepcopy(net.state_dict())
    for number, step in enumerate((0.01, -0.01, 0.02)):
        found, expected = (
            way(net, OneDirection(Directions(Noise(1), distribution), number, keep), step, run)
            for way in (at_shifted, whole)
        )
        assert torch.equal(found, expected)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    if "writes" not in kind:  # which changes its own weights, and so what is shifted
        assert not torch.equal(found, run())


def test_an_unseen_weight_is_found_out_once_and_its_loss_called_once_more():
    net, calls = InAThread(), []

    def loss():
        calls.append(1)
        return net(ROWS).square().mean()

    step = sidestep.attach(net, SPSA(pairs=1, sides="both", learning_rate=1e-3))
    counts = []
    for _ in range(3):
        before = len(calls)
        step(loss)
        counts.append(len(calls) - before)
    assert counts == [3, 2, 2]


@pytest.mark.parametrize("kind", ["plain-sgd", "sgd", "adamw", "adafactor"])
def test_a_step_in_parts_has_the_bits_of_a_step_with_the_whole_gradient(kind, monkeypatch):
    nets = []
    for size in (1, 1 << 18):
        monkeypatch.setattr(any_module_rules, "_PART", size)
        net, _ = made("another's weight")
        step = sidestep.attach(net, SPSA(pairs=3, optimizer_kind=kind, learning_rate=0.01), seed=1)
        for _ in range(3):
            step(lambda net=net: net(TOKENS).square().mean())
        nets.append(net)
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("distribution", ["signs", "rademacher", "gaussian"])
def test_a_step_takes_the_memory_of_inference_and_of_one_weight(distribution):
    """Sixteen layers of 256 x 256: 4 MiB of weights, of which no copy is made."""
    with Noise(0).torch_seeded():
        net = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(16)))
    rows, size = torch.ones(8, 256), 4 * 256 * 256
    rule = SPSA(pairs=8, sides="both", distribution=distribution, learning_rate=1e-3)
    step = sidestep.attach(net, rule)
    with peak_allocation() as peak:
        step(lambda: net(rows).square().mean())
    assert peak.bytes < 6 * size  # of 16 x size that one copy of all weights has
