"""Networks for back-propagation: a plain MLP, and the paper's baseline of chained blocks."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sidestep.errors import InputError
from sidestep.nets.dropout import repeatable
from sidestep.nets.noprop.blocks import Block
from sidestep.nets.noprop.readouts import SoftmaxReadout
from sidestep.nets.noprop.target_space import CLASS_SPACE, TargetSpace
from sidestep.nets.precision import at_least_float32
from sidestep.nets.shapes import Shape

__all__ = ["MLP", "ChainedBlocks"]


class MLP(nn.Module):
    """Dense layers with ReLU between them; (batch, ...) -> logits (batch, classes).

    Without hidden layers this is a linear classifier.
    """

    def __init__(self, image_shape: Shape, hidden: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if any(width < 1 for width in hidden):
            raise InputError(f"every hidden layer needs at least one unit, got {hidden}")
        sizes = [math.prod(image_shape), *hidden, classes]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        """Return the class logits."""
        return at_least_float32(self.layers(images.flatten(1)))


class ChainedBlocks(nn.Module):
    """The paper's baseline: NoProp's blocks in a chain, trained end to end.

    `z_t = (1 - a_t) z_(t-1) + a_t uhat_t(z_(t-1), x)` with `a_t = tanh(w_t)` learned, and a linear read-out of z_T (Li
    et al. 2025, section 4). Training starts from z_0 ~ N(0, I) (at a constant z_0 the latent path's batch norm would
    divide by nearly nothing), inference from z_0 = 0. A chain of one block reads z_1 = a_1 uhat_1(z_0, x): its noise is
    an input, and no part of what is read out, which it would drown at half its weight. The paper does not say how w_t
    and the read-out start; here a_t starts at 0.5 and the read-out at the identity: from a random one the chain learns
    far more slowly.

    Args:
        paths: T image paths, one per block.
        image_shape: (channels, height, width).
        embedding: u, float32 of shape (classes, dimension).
        learn_embedding: whether the embedding is a parameter or fixed.
        image_latent: whether z has the shape of the image (prototype embeddings).
        activation_checkpointing: keep only the blocks' inputs for the backward pass and compute the rest again.
        space: what the targets are, and how they are embedded.
    """

    embedding: Tensor

    def __init__(  # long: what a chain is made of
        self,
        paths: list[nn.Module],
        image_shape: Shape,
        embedding: Tensor,
        learn_embedding: bool = False,
        image_latent: bool = False,
        activation_checkpointing: bool = False,
        space: TargetSpace = CLASS_SPACE,
    ) -> None:
        super().__init__()
        self.space = space
        classes, dimension = embedding.shape
        self.blocks = nn.ModuleList(Block(path, image_shape, dimension, classes, image_latent) for path in paths)
        if learn_embedding:
            self.embedding = nn.Parameter(embedding.clone())
        else:
            self.register_buffer("embedding", embedding.clone())
        self.mixing = nn.Parameter(torch.full((len(paths),), 0.5).atanh())
        self.readout = SoftmaxReadout(embedding)
        self.activation_checkpointing = activation_checkpointing

    @property
    def dimension(self) -> int:
        """The length of the label embedding and of z, d."""
        return self.embedding.shape[1]

    def forward(self, images: Tensor, latent: Tensor | None = None) -> Tensor:
        """Return the class logits, (batch, classes), from z_0 = `latent`, (batch, dimension), or from 0."""
        return self.every_logits(images, latent)[-1]

    def every_logits(self, images: Tensor, latent: Tensor | None = None) -> list[Tensor]:
        """Return every block's own logits, then those that `forward` gives."""
        if latent is None:
            latent = self.embedding.new_zeros(images.shape[0], self.dimension)
        found, kept = [], latent if len(self.blocks) > 1 else torch.zeros_like(latent)
        for block, weight in zip(self.blocks, self.mixing.tanh(), strict=True):
            if self.activation_checkpointing and self.training:
                logits = checkpoint(repeatable(block), images, latent, use_reentrant=False)
            else:
                logits = block(images, latent)
            found.append(logits)
            latent = kept = (1 - weight) * kept + weight * self.space.estimate(logits, self.embedding)
        return [*found, self.readout(latent, self.embedding)]
