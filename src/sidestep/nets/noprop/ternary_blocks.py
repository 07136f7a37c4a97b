"""NoProp's blocks without float weights: each is a ternary net on an image and a noisy label side by side.

    h_0 = [x, g z]        logits_t = the last head of a ternary net of dense stages, each with a head of its own

x are the image's standardised values, and the gain g = sqrt(values / d) gives z the same weight as the image in the
first layer, since both have variances near one. Heads on all stages let a block be trained by local losses.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidestep.nets.noprop.blocks import Block
from sidestep.nets.noprop.readouts import NearestReadout
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.nets.noprop.target_space import CLASS_SPACE, TargetSpace
from sidestep.nets.precision import at_least_float32
from sidestep.nets.shapes import Shape
from sidestep.nets.ternary.nets import ternary_mlp
from sidestep.noise import Noise

__all__ = ["TernaryBlock", "ternary_stack"]


class TernaryBlock(Block):
    """Class logits from an image and a noisy label, by ternary weights alone.

    Args:
        image_shape: of one input.
        dimension: d, the length of z.
        classes: m.
        hidden: widths of the stages.
    """

    def __init__(self, image_shape: Shape, dimension: int, classes: int, hidden: Sequence[int]) -> None:
        nn.Module.__init__(self)  # none of a float block's parts
        inputs = math.prod(image_shape)
        self.gain = math.sqrt(inputs / dimension)
        self.net = ternary_mlp((inputs + dimension,), hidden, classes, bias=False, local=True)

    def features(self, images: Tensor) -> Tensor:
        """Return the images as rows, (batch, values)."""
        return images.flatten(1)

    def joined(self, features: Tensor, latent: Tensor) -> Tensor:
        """Return what the ternary net reads, (batch, values + d)."""
        return torch.cat([features, self.gain * latent.to(features.dtype)], dim=1)

    def logits(self, features: Tensor, latent: Tensor) -> Tensor:
        """Return class logits, (batch, classes), from `features` and z of shape (batch, d)."""
        return at_least_float32(self.net(self.joined(features, latent)))


def ternary_stack(
    image_shape: Shape,
    embedding: Tensor,
    alpha_bar: Tensor,
    hidden: Sequence[int],
    noise: Noise,
    space: TargetSpace = CLASS_SPACE,
) -> DenoisingStack:
    """Return a stack of ternary blocks that nothing is shared by: the embedding is fixed, the read-out has no weights.

    Args:
        image_shape: of one input.
        embedding: u, (classes, d).
        alpha_bar: (T + 1,).
        hidden: widths of a block's stages.
        noise: where the trits come from.
        space: what the targets are.
    """
    classes, dimension = embedding.shape
    blocks = [TernaryBlock(image_shape, dimension, classes, hidden) for _ in range(len(alpha_bar) - 1)]
    for index, block in enumerate(blocks):
        block.net.draw(noise.sub(index))
    return DenoisingStack(blocks, image_shape, embedding, alpha_bar, NearestReadout(), together=False, space=space)
