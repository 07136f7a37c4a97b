"""The continuous-time net: one block that knows the time, with its class embedding, read-out and schedule."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sidestep.nets.noprop.blocks import feature_count, image_features
from sidestep.nets.noprop.image_paths import path_maker
from sidestep.nets.noprop.target_space import CLASS_SPACE, TargetSpace
from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.nets.shapes import Shape

__all__ = ["Denoiser", "Draw", "TimedBlock", "draw_times", "positional_embedding"]

_FEATURES, _TIME_FEATURES = 256, 64


def positional_embedding(time: Tensor, size: int = _TIME_FEATURES) -> Tensor:
    """Return sines and cosines of 1000 t at frequencies from 1 to 1/10,000: (n,) -> (n, size) (Vaswani et al. 2017).

    >>> positional_embedding(torch.zeros(1), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    half = size // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
    angle = 1000 * time[:, None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimedBlock(nn.Module):
    """The block of NoProp-CT and FM (Li et al. 2025, Figure 6): class outputs from an image, z and t. No batch norm,
    but where the image path ends in one.

    The image's part is computed apart (`prepare`): it depends on neither z nor t, so however many steps a sampler
    takes, it is computed once, up to and with its share of the first fusing layer.

    Args:
        image_path: a module from images (batch, channels, height, width) to features (batch, ...).
        image_shape: (channels, height, width).
        dimension: d, the length of z.
        classes: m.
        image_latent: whether z has the shape of the image (prototype embeddings); it then gets a convolutional path.
    """

    def __init__(
        self, image_path: nn.Module, image_shape: Shape, dimension: int, classes: int, image_latent: bool
    ) -> None:
        super().__init__()
        self.image = image_path
        self.features = feature_count(image_path, image_shape)
        if image_latent:
            path = path_maker("auto", image_shape, norm=False)()
            self.latent: nn.Module = nn.Sequential(nn.Unflatten(1, image_shape), path)
        else:
            self.latent = nn.Sequential(nn.Linear(dimension, _FEATURES), nn.ReLU())
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, _FEATURES), nn.ReLU())
        self.join = nn.Linear(self.features + 2 * _FEATURES, 256)
        self.fuse = nn.Sequential(nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, classes))

    def prepare(self, images: Tensor) -> Tensor:
        """Return the image's share of the first fusing layer, (batch, 256)."""
        features = image_features(self.image, images)
        return at_least_float32(linear(features, self.join.weight[:, : self.features], self.join.bias))

    def outputs(self, prepared: Tensor, latent: Tensor, time: Tensor) -> Tensor:
        """Return the class outputs, (batch, classes).

        Args:
            prepared: what `prepare` gave, (batch, 256).
            latent: z, (batch, dimension).
            time: t, (batch,), or (1,) for one time for all.
        """
        from_latent, from_time = self.join.weight[:, self.features :].split(_FEATURES, dim=1)
        joined = prepared + linear(at_least_float32(self.latent(latent)), from_latent)
        when = positional_embedding(time).to(self.join.weight.dtype)
        joined = joined + linear(at_least_float32(self.time(when)), from_time)
        return at_least_float32(self.fuse(at_least_float32(joined)))


class Denoiser(nn.Module):
    """A timed block with its class embedding, read-out and, where the process has one, schedule.

    Args:
        block: the block.
        embedding: u, float32 of shape (classes, dimension).
        readout: module from (z_1, embedding) to logits.
        schedule: alpha_bar(t), or None for a straight path from noise to label.
        learn_embedding: whether the embedding is a parameter or fixed.
        space: what the targets are, and how they are embedded.
    """

    embedding: Tensor

    def __init__(  # long: what a net of continuous time is made of
        self,
        block: TimedBlock,
        embedding: Tensor,
        readout: nn.Module,
        schedule: nn.Module | None = None,
        learn_embedding: bool = False,
        space: TargetSpace = CLASS_SPACE,
    ) -> None:
        super().__init__()
        self.block, self.readout, self.schedule, self.space = block, readout, schedule, space
        if learn_embedding:
            self.embedding = nn.Parameter(embedding.clone())
        else:
            self.register_buffer("embedding", embedding.clone())

    @property
    def dimension(self) -> int:
        """The length of the label embedding and of z, d."""
        return self.embedding.shape[1]

    def label_embedding(self, labels: Tensor) -> Tensor:
        """Return u_y, (batch, dimension)."""
        return self.space.embed(labels, self.embedding)

    def label_estimate(self, logits: Tensor) -> Tensor:
        """Return uhat, of classes `softmax(logits) W`, (batch, classes) -> (batch, dimension)."""
        return self.space.estimate(logits, self.embedding)

    def velocity(self, outputs: Tensor) -> Tensor:
        """Return `v = outputs W`, (batch, classes) -> (batch, dimension)."""
        with full_precision(outputs):
            return outputs @ self.embedding

    def probabilities(self, latent: Tensor) -> Tensor:
        """Return the read-out of z_1 as probabilities, or as values: (batch, dimension) -> (batch, classes)."""
        return self.answer(self.readout(latent, self.embedding))

    def answer(self, outputs: Tensor) -> Tensor:
        """Return what outputs, (batch, classes), say: probabilities, or values in their own units."""
        return self.space.objective.predictions(outputs)


class Draw(NamedTuple):
    """What one training step of a timed block is made on."""

    time: Tensor  # (batch,)
    normal: Tensor  # (batch, dimension)


def draw_times(kind: str, count: int, dimension: int, generator: torch.Generator) -> Draw:
    """Return times in [0, 1) and standard normal noise from one generator.

    Args:
        kind: `uniform`: independent times; `stratified`: one in each of `count` equal intervals, in the batch's order,
            which is random itself: the mean over a batch then varies less.
        count: how many.
        dimension: d.
        generator: on the device that the tensors are wanted on.
    """
    device = generator.device
    time = torch.empty(count, device=device).uniform_(generator=generator)
    if kind == "stratified":
        time = (torch.arange(count, device=device) + time) / count
    normal = torch.empty(count, dimension, device=device).normal_(generator=generator)
    return Draw(time.clamp(max=1 - 1e-6), normal)
