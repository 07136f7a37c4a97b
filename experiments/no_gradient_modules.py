"""Five nets without a useful gradient: spikes, rounding, hard attention, a staircase, hard choices among experts.

They are made after those of PolyStep's page (arXiv 2605.01928): a hidden layer of 128 units after the pixels. Each has
a straight-through gradient for the baseline alone (`straight`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETS"]

HIDDEN = 128


class Spike(torch.autograd.Function):
    """A hard threshold; its straight-through slope, that of an arctangent, is for the baseline alone."""

    @staticmethod
    def forward(context, values: Tensor) -> Tensor:
        """Return 1 where the value is not negative, or 0."""
        context.save_for_backward(values)
        return (values >= 0).float()

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        """Return the gradient times 1 / (1 + (pi z)^2)."""
        return gradient / (1 + (math.pi * context.saved_tensors[0]).square())


def through(hard: Tensor, soft: Tensor, straight: bool) -> Tensor:
    """Return the hard values; with a straight-through gradient where it is the baseline that is trained."""
    return soft + (hard - soft).detach() if straight else hard


class Spiking(nn.Module):
    """Leaky integrate-and-fire units with hard spikes, 15 time steps; its outputs are counts of spikes."""

    straight = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(784, HIDDEN), nn.Linear(HIDDEN, 10)

    def fire(self, charge: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spikes, and what is left of the charges."""
        spikes = Spike.apply(charge - 1) if self.straight else (charge >= 1).float()
        return spikes, charge * (1 - spikes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return spikes of each class, (batch, 10)."""
        current = self.first(pixels)
        inner, outer = torch.zeros_like(current), current.new_zeros(len(current), 10)
        counts = torch.zeros_like(outer)
        for _ in range(15):
            spikes, inner = self.fire(0.95 * inner + current)
            out, outer = self.fire(0.95 * outer + self.second(spikes))
            counts = counts + out
        return counts


class RoundedLinear(nn.Linear):
    """Weights rounded to multiples of 0.01, from -128 to 127 of them."""

    straight = False

    def forward(self, rows: Tensor) -> Tensor:
        """Return (batch, outputs)."""
        weight, bias = (
            through((part / 0.01).round().clamp(-128, 127) * 0.01, part, self.straight)
            for part in (self.weight, self.bias)
        )
        return F.linear(rows, weight, bias)


class Int8(nn.Module):
    """An MLP whose middle layer has int8 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (
            nn.Linear(784, HIDDEN),
            RoundedLinear(HIDDEN, HIDDEN),
            nn.Linear(HIDDEN, 10),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits."""
        return self.last(self.middle(self.first(pixels).relu()).relu())


def chosen(scores: Tensor, straight: bool) -> Tensor:
    """Return one-hot rows of the largest scores."""
    return through(F.one_hot(scores.argmax(dim=1), scores.shape[1]).to(scores.dtype), scores.softmax(dim=1), straight)


class Attention(nn.Module):
    """Hard attention: the best of eight keys decides by which gates the values pass."""

    straight = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.values, self.last = nn.Linear(784, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 10)
        self.keys, self.gates = nn.Linear(HIDDEN, 8, bias=False), nn.Linear(8, HIDDEN, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits."""
        rows = self.first(pixels).relu()
        return self.last(self.values(rows) * self.gates(chosen(self.keys(rows), self.straight)).sigmoid())


class Staircase(nn.Module):
    """An MLP with two activations of five steps."""

    straight = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(784, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 10)

    def stairs(self, values: Tensor) -> Tensor:
        """Return floor(5 sigmoid(z)) / 5."""
        soft = values.sigmoid()
        return through((5 * soft).floor() / 5, soft, self.straight)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits."""
        return self.last(self.stairs(self.middle(self.stairs(self.first(pixels)))))


class Experts(nn.Module):
    """Four experts, of which each example has the one with the largest score."""

    straight = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(784, HIDDEN), nn.Linear(HIDDEN, 4), nn.Linear(HIDDEN, 10)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN)) for _ in range(4)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits."""
        rows = self.first(pixels).relu()
        each = torch.stack([expert(rows) for expert in self.experts], dim=1)
        return self.last((each * chosen(self.gate(rows), self.straight)[:, :, None]).sum(dim=1))


NETS = {"spiking": Spiking, "int8": Int8, "attention": Attention, "staircase": Staircase, "experts": Experts}
