"""Float nets in stages, with a head on the last stage or on every one: what the layer-wise rules train.

    stage:  h_l = relu(norm(W_l * h_(l-1) + b_l)), pooled in a conv net where there is room
    head:   logits_l = V_l flatten(average(h_l)) + c_l

Trained through the last head alone, the stages are one net; with a head each they can be trained without the others.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.precision import at_least_float32
from sidestep.nets.shapes import image_sides
from sidestep.nets.stages.heads import logits_of_heads
from sidestep.nets.ternary.nets import ChannelsLast, GridAverage
from sidestep.nets.trained import check_own_weights
from sidestep.nets.user_modules import ImagePath, image_paths, parts_in_order
from sidestep.noise import Noise
from sidestep.wording import counted

__all__ = [
    "LayerwiseNet",
    "check_hidden",
    "layerwise_net",
    "layerwise_own",
    "layerwise_stages",
    "shapes_of",
    "stages_of",
]

Norm = Literal["none", "layer", "batch"]
_MOMENTUM = 0.02  # of running statistics: an average over some fifty batches


class LayerwiseNet(nn.Module):
    """Stages that follow each other, and heads; (batch, channels, height, width) -> logits of the last head.

    Args:
        stages: modules of which each takes what the one before gives.
        heads: one on the last stage, or as many as stages.
    """

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(heads) not in (1, len(stages)):
            raise InputError(f"{len(stages)} stages need one head, or one each, got {len(heads)} heads")
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the last head, (batch, classes)."""
        for stage in self.stages:
            images = stage(images)
        return at_least_float32(self.heads[-1](images))

    def every_logits(self, images: Tensor) -> list[Tensor]:
        """Return the logits of every head, from the first stage on."""
        return logits_of_heads(self.stages, self.heads, images)


def layerwise_net(
    kind: str, image_shape: tuple[int, ...], hidden: Sequence[int], classes: int, norm: Norm, local: bool
) -> LayerwiseNet:
    """Return an MLP or a small conv net in stages, with a head on every stage (`local`) or on the last one.

    Args:
        kind: `mlp`, or `conv`: 3 x 3 convolutions, the first ones pooled, while a map has 9 rows or more.
        image_shape: (channels, height, width).
        hidden: widths of the stages, or their channels.
        classes: number of classes.
        norm: none, over an example's features (layer), or over the batch, with running statistics.
        local: whether every stage has a head.

    >>> net = layerwise_net("mlp", (1, 8, 8), (32, 16), 10, "none", local=True)
    >>> [tuple(logits.shape) for logits in net.every_logits(torch.zeros(5, 1, 8, 8))]
    [(5, 10), (5, 10)]
    """
    stages = layerwise_stages(kind, image_shape, hidden, norm)
    return LayerwiseNet(stages, _heads(stages, image_shape, classes, local))


def layerwise_own(
    module: ImagePath, image_shape: tuple[int, ...], classes: int, local: bool, noise: Noise, least: int = 2
) -> LayerwiseNet:
    """Return a net of the user's nn.Sequential: a stage ends before every part with weights but the first.

    Norms belong to the stage of the layer before them.

    Raises:
        InputError: for a module that is not an nn.Sequential with weights in several of its parts.
    """
    path = image_paths(module, 1, noise.stream("own"), image_shape)[0]
    stages = stages_of(path)
    if len(stages) < (2 if local else least):
        if isinstance(path, nn.Sequential):
            number = f"{counted(len(stages), 'part')} with weights"
            given = f"your nn.Sequential has {number}: split it"
        else:
            given = f"got one {type(path).__name__}: write it as one"
        raise InputError(
            f"this rule needs a module in stages, an nn.Sequential with weights in several of its parts; {given}, "
            "or take a rule that trains any module (`sidestep rules` lists them), such as back-propagation"
        )
    if local:
        check_own_weights(stages)
    with noise.stream("heads").torch_seeded():
        return LayerwiseNet(stages, _heads(stages, image_shape, classes, local))


def check_hidden(hidden: Sequence[int]) -> None:
    """Raise InputError unless there is one stage or more, each of one unit or more."""
    if not hidden or any(width < 1 for width in hidden):
        raise InputError(
            f"hidden needs one layer or more, of at least one unit each, got {tuple(hidden)}; for instance 512 512"
        )


def layerwise_stages(kind: str, image_shape: tuple[int, ...], hidden: Sequence[int], norm: Norm) -> list[nn.Module]:
    """Return the stages alone; for the arguments see `layerwise_net`."""
    check_hidden(hidden)
    if kind == "mlp":
        sizes = itertools.pairwise([math.prod(image_shape), *hidden])
        dense = [nn.Sequential(nn.Linear(a, b), *_norm(norm, b, nn.BatchNorm1d), nn.ReLU()) for a, b in sizes]
        dense[0].insert(0, nn.Flatten())
        return list(dense)
    channels, *sides = image_sides(image_shape)
    size, stages = min(sides), []
    for inputs, outputs in itertools.pairwise([channels, *hidden]):
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1), ChannelsLast()]
        if size >= 9:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        stages.append(nn.Sequential(*layers, *_norm(norm, outputs, nn.BatchNorm2d), nn.ReLU()))
    return list(stages)


def shapes_of(stages: Iterable[nn.Module], image_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shape of what each stage gives for one image; running statistics are left alone."""
    image, shapes = torch.zeros(1, *image_shape), []
    for stage in stages:
        training = stage.training
        with torch.no_grad():
            image = stage.eval()(image)
        stage.train(training)
        if not isinstance(image, Tensor):
            last = [type(layer).__name__ for layer in stage.modules() if not any(layer.children())]
            raise InputError(
                f"a stage of layers {', '.join(last)} gives a {type(image).__name__}, not one tensor; wrap the layer "
                "that does so in a module that returns what the next one needs"
            )
        shapes.append(tuple(image.shape[1:]))
    return shapes


def _norm(kind: Norm, features: int, batch: Callable[..., nn.Module]) -> list[nn.Module]:
    if kind == "batch":
        return [batch(features, momentum=_MOMENTUM)]
    if kind == "layer":  # over all of an image's features, in a conv net too
        return [nn.LayerNorm(features) if batch is nn.BatchNorm1d else nn.GroupNorm(1, features)]
    return []


def _heads(stages: Sequence[nn.Module], image_shape: tuple[int, ...], classes: int, local: bool) -> list[nn.Module]:
    """A linear layer each, over averages on a grid of up to 4 x 4 places where there are places."""
    shapes = shapes_of(stages, image_shape)
    heads: list[nn.Module] = []
    for shape in shapes if local else shapes[-1:]:
        if len(shape) == 3:
            grid = (min(4, shape[1]), min(4, shape[2]))
            linear = nn.Linear(shape[0] * grid[0] * grid[1], classes)
            heads.append(nn.Sequential(GridAverage(grid), nn.Flatten(), linear))
        else:
            linear = nn.Linear(torch.Size(shape).numel(), classes)
            heads.append(nn.Sequential(nn.Flatten(), linear))
    return heads


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def stages_of(path: nn.Module) -> list[nn.Module]:
    """Return the parts of an nn.Sequential in stages: each begins with a part that has weights and is no norm."""
    stages: list[nn.Sequential] = []
    full = True
    for part in parts_in_order(path) or [path]:
        trains = any(True for _ in part.parameters()) and not isinstance(part, _NORMS)
        if not stages or (trains and full):
            stages.append(nn.Sequential())
            full = False
        stages[-1].append(part)
        full = full or trains
    return list(stages)
