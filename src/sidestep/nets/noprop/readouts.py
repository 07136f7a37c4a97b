"""Read-outs p(y | z_T): from the last latent to class log-probabilities."""

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.noprop.target_space import CLASS_SPACE, TargetSpace
from sidestep.nets.precision import full_precision

__all__ = ["READOUTS", "NearestReadout", "PointReadout", "RadialReadout", "SoftmaxReadout", "make_readout"]


def _nearest(embedding: Tensor) -> nn.Linear:
    """Return a linear layer that starts as the comparison with each class: `A_y = u_y / |u_y|^2`, b = 0.

    The paper does not say how the read-out starts; a random one needs hundreds of steps to learn what is known already.
    """
    classes, dimension = embedding.shape
    linear = nn.Linear(dimension, classes)
    with torch.no_grad():
        linear.weight.copy_(embedding / embedding.square().sum(dim=1, keepdim=True).clamp_min(1e-12))
        linear.bias.zero_()
    return linear


class SoftmaxReadout(nn.Module):
    """`p(y | z) = softmax(A z + b)_y`; (batch, dimension) -> logits (batch, classes).

    `embedding`, (classes, dimension), is where it starts from.
    """

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.linear = _nearest(embedding)

    def forward(self, latent: Tensor, embedding: Tensor) -> Tensor:
        """Return the logits; the embedding is not needed here."""
        with full_precision(latent):
            return self.linear(latent)


class RadialReadout(nn.Module):
    """`p(y | z) ~ exp(-|v - u_y|^2 / (2 sigma^2))` with `v = softmax(A z + b) W`, a point among the class embeddings.

    (batch, dimension) -> logits (batch, classes). sigma is learned, from 1 on, through its logarithm; A starts from
    `embedding`, (classes, dimension).
    """

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.linear = _nearest(embedding)
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def forward(self, latent: Tensor, embedding: Tensor) -> Tensor:
        """Return the logits of `latent` (batch, dimension) against `embedding` (classes, dimension)."""
        with full_precision(latent):
            point = self.linear(latent).softmax(dim=1) @ embedding
        squared = (point[:, None] - embedding[None]).square().sum(dim=2)  # (batch, classes)
        return -squared * torch.exp(-2 * self.log_sigma) / 2


class NearestReadout(nn.Module):
    """`p(y | z) ~ exp(-|z - u_y|^2 / 2)`: the nearest class embedding wins; nothing is trained."""

    def forward(self, latent: Tensor, embedding: Tensor) -> Tensor:
        """Return the logits of `latent` (batch, dimension) against `embedding` (classes, dimension)."""
        with full_precision(latent):
            return latent @ embedding.T - embedding.square().sum(dim=1) / 2  # |z|^2 is the same for all classes


READOUTS: tuple[str, ...] = ("softmax", "radial", "nearest")


class PointReadout(nn.Module):
    """The read-out by distance of labels and values, `outputs = factor z`; nothing is trained.

    See `TargetSpace.from_point`.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, latent: Tensor, embedding: Tensor) -> Tensor:
        """Return the outputs of `latent` (batch, dimension), of the same shape; the embedding is not needed here."""
        return self.factor * latent


def make_readout(kind: str, embedding: Tensor, space: TargetSpace = CLASS_SPACE) -> nn.Module:
    """Return the read-out of that name, started from `embedding`, (classes, dimension).

    Raises:
        InputError: for another name.
    """
    if kind == "softmax":
        return SoftmaxReadout(embedding)
    if kind == "radial":
        return RadialReadout(embedding)
    if kind == "nearest":
        return NearestReadout() if space.classes else PointReadout(space.from_point)
    raise InputError(f"readout must be {', '.join(READOUTS)}, got {kind!r}")
