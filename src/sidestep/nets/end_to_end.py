"""The net that a rule has built, as one module from images to logits through which a gradient passes end to end.

What serves a rule's own estimate alone is taken out: heads below the last, feedback matrices, cuts between stages. All
layers that the default prediction runs through stay, with the weights that they have. So does a module of the user's.
"""

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.groups.group_chain import GroupChain, PlainChain
from sidestep.nets.noprop.chained_blocks import MLP, ChainedBlocks
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.nets.precision import at_least_float32
from sidestep.nets.shapes import Shape
from sidestep.nets.stages.feedback import without_feedback
from sidestep.nets.stages.goodness import GoodnessNet
from sidestep.nets.stages.hebbian import HebbianNet
from sidestep.nets.stages.layerwise import LayerwiseNet
from sidestep.nets.stages.staged import StagedNet
from sidestep.nets.ternary.layers import TernaryLayer
from sidestep.nets.ternary.nets import TernaryNet
from sidestep.nets.ternary.straight_through import float_twin
from sidestep.noise import Noise

__all__ = ["end_to_end_net"]


def end_to_end_net(net: nn.Module, image_shape: Shape, noise: Noise) -> nn.Module:
    """Return `net` as one module, (batch, channels, height, width) -> logits (batch, classes), for back-propagation.

        stages               the last head on all of them; ternary weights get float latents (straight-through)
        blocks of a stack    a chain (`ChainedBlocks`)
        one timed block      itself, at z = 0 and t = 0
        groups of blocks     all blocks in one residual net, between the first stem and the last head
        Hebbian, goodness    the stages and the read-out of all their features

    Args:
        net: what a rule's `build` gave; it is taken apart, and not to be used any more.
        image_shape: (channels, height, width).
        noise: where weights come from that the rule's net has not: float latents, and what a chain adds to blocks.

    Raises:
        InputError: for a net of another kind.
    """
    if isinstance(net, MLP | ChainedBlocks):
        return net
    if isinstance(net, LayerwiseNet):
        without_feedback(net)
        return LayerwiseNet(list(net.stages), [net.heads[-1]])
    if isinstance(net, TernaryNet):
        last = TernaryNet(list(net.stages), [net.heads[-1]])
        trits = any(isinstance(layer, TernaryLayer) for layer in last.modules())
        return float_twin(last, noise, ternary=True) if trits else last
    if isinstance(net, StagedNet):
        net.heads = nn.ModuleList()
        return net
    if isinstance(net, DenoisingStack):
        image_latent = not hasattr(net.block(0).latent, "first")
        with noise.torch_seeded():
            paths = [net.block(index).image for index in range(len(net.blocks))]
            rows, learned = net.embedding.detach(), net.learns_embedding
            return ChainedBlocks(paths, image_shape, rows, learned, image_latent, space=net.space)
    if isinstance(net, GroupChain):
        return PlainChain(net)
    if isinstance(net, Denoiser):
        return _AtStart(net)
    if isinstance(net, HebbianNet | GoodnessNet):
        return _Opened(net)
    raise InputError(
        f"there is no end-to-end form of a {type(net).__name__}, so it has no baseline on the same net; name one of "
        "the entries by --baseline"
    )


class _AtStart(nn.Module):
    """The block of a continuous-time net as a plain classifier: its outputs at z = 0 and t = 0."""

    def __init__(self, net: Denoiser) -> None:
        super().__init__()
        self.block, self.dimension = net.block, net.dimension

    def forward(self, images: Tensor) -> Tensor:
        prepared = self.block.prepare(images)
        zero = prepared.new_zeros(len(images), self.dimension)
        return self.block.outputs(prepared, zero, torch.zeros(1, device=images.device))


class _Opened(nn.Module):
    """Stages and a read-out of all their features, with derivatives from one to the next."""

    def __init__(self, net: HebbianNet | GoodnessNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return at_least_float32(self.net.readout(self.net.joined(images)))
