"""Plain float nets in stages with a read-out, for the rules that estimate gradients by forward passes alone.

    h_l = relu(norm(W_l h_(l-1) + b_l))       logits = W h_L + b

The norm has no parameters: it keeps every layer's inputs at one size, so that one size of noise suits all layers. For
local losses it is taken over each group of units by itself, and every group has a head of its own.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.precision import at_least_float32
from sidestep.nets.trained import check_own_weights
from sidestep.nets.user_modules import ImagePath, image_paths, parts_in_order
from sidestep.noise import Noise

__all__ = ["GroupHeads", "StagedNet", "check_layers", "staged_mlp", "staged_own"]


class GroupHeads(nn.Module):
    """One linear read-out per group of features: (batch, features) -> logits (batch, groups, classes)."""

    def __init__(self, features: int, classes: int, groups: int = 1) -> None:
        super().__init__()
        if features % groups:
            raise InputError(
                f"{features} features do not divide into {groups} groups; take a number that divides every width"
            )
        bound = math.sqrt(groups / features)
        size = features // groups
        self.weight = nn.Parameter(nn.init.uniform_(torch.empty(groups, classes, size), -bound, bound))
        self.bias = nn.Parameter(torch.zeros(groups, classes))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of every group."""
        return self.linear(features) + self.bias

    def linear(self, features: Tensor) -> Tensor:
        """Return the logits without the bias, which is also their tangent, given the features' tangent."""
        groups, _, size = self.weight.shape
        return torch.einsum("bgs,gcs->bgc", features.reshape(-1, groups, size), self.weight.to(features.dtype))

    def gradients(self, features: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        """Return the gradient of weight and bias from that of the logits."""
        groups, _, size = self.weight.shape
        parts = features.reshape(-1, groups, size)
        weight = torch.einsum("bgc,bgs->gcs", upstream.to(parts.dtype), parts)
        return {"weight": weight.to(self.weight.dtype), "bias": upstream.sum(dim=0).to(self.bias.dtype)}


class StagedNet(nn.Module):
    """Stages that follow each other, and a linear read-out; (batch, channels, height, width) -> (batch, classes).

    Args:
        stages: modules; each sees what the one before it gives.
        features: number of values per example that the last stage gives.
        classes: number of classes.
        heads: for local losses, one per stage; the read-out does not use them.
        chain: whether every module sees only what the one before it gives, so that a batch may grow on its way.
    """

    def __init__(  # long: what a net is made of
        self,
        stages: Sequence[nn.Module],
        features: int,
        classes: int,
        heads: Sequence[nn.Module] = (),
        chain: bool = False,
    ) -> None:
        super().__init__()
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
        self.readout = nn.Linear(features, classes)
        self.chain = chain

    def forward(self, images: Tensor) -> Tensor:
        """Return the class logits."""
        for stage in self.stages:
            images = stage(images)
        return at_least_float32(self.readout(images.flatten(1)))


def staged_mlp(
    image_shape: tuple[int, ...], hidden: Sequence[int], classes: int, norm: bool, groups: int = 0
) -> StagedNet:
    """Return dense stages of the widths in `hidden`; with `groups` above 0 each has that many local heads."""
    if not hidden or any(width < 1 for width in hidden):
        raise InputError(f"the MLP needs one hidden layer or more, of at least one unit each, got {tuple(hidden)}")
    sizes = [math.prod(image_shape), *hidden]
    heads = [GroupHeads(width, classes, groups) for width in hidden] if groups else []
    stages = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        parts: list[nn.Module] = [nn.Flatten()] if index == 0 else []
        parts.append(nn.Linear(inputs, outputs))
        if norm:
            parts.append(nn.GroupNorm(max(1, groups), outputs, affine=False))
        stages.append(nn.Sequential(*parts, nn.ReLU()))
    return StagedNet(stages, hidden[-1], classes, heads, chain=True)


def staged_own(module: ImagePath, image_shape: tuple[int, ...], classes: int, local: bool, noise: Noise) -> StagedNet:
    """Return a module of the user's with a read-out on what it gives.

    For local losses it must be an nn.Sequential: its stages end before every part with parameters but the first, and
    each gets a head on all of its features.
    """
    path = image_paths(module, 1, noise, image_shape)[0]
    stages = _cut(path) if local else [path]
    image, heads = torch.zeros(2, *image_shape), []
    check_layers(path)
    if local:
        check_own_weights(stages)
    with torch.no_grad(), noise.stream("heads").torch_seeded():
        for stage in stages:
            image = stage(image)
            if local:
                heads.append(GroupHeads(image[0].numel(), classes))
        return StagedNet(stages, image[0].numel(), classes, heads)


def check_layers(net: nn.Module, pairs: bool = False) -> None:
    """Raise InputError for layers that make examples depend on each other, or differ between the members of a pair."""
    for name, layer in net.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, nn.modules.batchnorm._NormBase) and not isinstance(
            layer, nn.modules.instancenorm._InstanceNorm
        ):
            raise InputError(
                f"layer {name or 'itself'} ({kind}) makes examples depend on each other, so a perturbation of one "
                "would move the losses of all; take nn.GroupNorm or nn.LayerNorm in its place"
            )
        if pairs and "Dropout" in kind:
            raise InputError(
                f"layer {name or 'itself'} ({kind}) would draw other masks for the two members of a pair, and their "
                "difference would measure the masks; leave it out"
            )


def _cut(path: nn.Module) -> list[nn.Module]:
    parts = parts_in_order(path)
    if not parts:
        raise InputError(
            f"local losses need a module in stages, an nn.Sequential, got one {type(path).__name__}; write it as one, "
            "or choose another kind"
        )
    stages: list[nn.Sequential] = [nn.Sequential()]
    for part in parts:
        trains = any(True for _ in part.parameters())
        if trains and any(True for _ in stages[-1].parameters()):
            stages.append(nn.Sequential())
        stages[-1].append(part)
    return list(stages)
