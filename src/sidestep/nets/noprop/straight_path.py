"""The straight path from noise to the label: where a label is on it, and how fast it moves there.

    z_t = t u_y + (1 - t) z_0 + sigma eps          dz/dt = u_y - z_0

A block predicts the velocity, `v = outputs W`, or the label, `uhat = softmax(outputs) W`, and then
`v = (uhat - z_t) / (1 - t)`. This turns the squared error of the velocity into `|uhat - u_y|^2 / (1 - t)^2` where
sigma = 0; with sigma > 0 it would ask for `u_y` plus the noise about the line. Source: Li, Teh, Pascanu (2025), section
3.3.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.nets.noprop.denoiser import Denoiser, Draw

__all__ = ["StraightPath"]

_REST = 1e-3  # the smallest 1 - t that a label estimate's velocity is divided by


@dataclass(frozen=True)
class StraightPath:
    """The path, and what the block predicts of it.

    Args:
        prediction: `velocity`, or `label`.
        sigma: spread of z_t about the line.
    """

    prediction: Literal["label", "velocity"]
    sigma: float

    def check_loss(self, loss: str) -> None:
        """Raise InputError for a loss that the prediction has not."""
        if self.prediction == "velocity" and loss != "paper":
            raise InputError(
                f"prediction = velocity has loss = paper only, got {loss}; the other losses compare label "
                "estimates: take prediction = label"
            )
        if self.prediction == "label" and loss == "paper" and self.sigma:
            raise InputError(
                f"loss = paper with prediction = label needs sigma = 0, got {self.sigma}: it is the paper's on the "
                "straight line only; take prediction = velocity, or loss = clipped, unweighted or cross-entropy"
            )

    @property
    def last(self) -> float:
        """The last time at which the velocity has a value: a label estimate's has none at 1."""
        return 1.0 if self.prediction == "velocity" else 1.0 - _REST

    def noised(self, net: Denoiser, labels: Tensor, draw: Draw, generator: torch.Generator) -> Tensor:
        """Return z_t, (n, dimension), of labels (n,)."""
        time = draw.time[:, None]
        latent = time * net.label_embedding(labels) + (1 - time) * draw.normal
        if self.sigma:
            latent = latent + self.sigma * torch.empty_like(latent).normal_(generator=generator)
        return latent

    def weight(self, time: Tensor) -> Tensor:
        """Return `1 / (1 - t)^2`, (n,): that of a label estimate's squared error in the velocity's."""
        return (1 - time).clamp_min(_REST) ** -2

    def velocity(self, net: Denoiser, outputs: Tensor, latent: Tensor, time: Tensor) -> Tensor:
        """Return v at z and t, (n, dimension), from the block's outputs there, (n, classes)."""
        if self.prediction == "velocity":
            return net.velocity(outputs)
        return (net.label_estimate(outputs) - latent) / (1 - time[:, None]).clamp_min(_REST)
