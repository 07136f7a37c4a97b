"""Nets of ternary layers in stages, with a head on the last stage or on every one.

    stage:  h_l = relu(norm(pool(scale_l W_l * h_(l-1))))          norm without parameters
    head:   logits_l = scale_h V_l flatten(average(h_l))           V_l ternary too

Trained through the last head alone, the stages are one net; with a head each they can be trained without the others
(Nøkland and Eidnes, "Training neural networks with local error signals", 2019).
"""

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.precision import at_least_float32
from sidestep.nets.shapes import image_sides
from sidestep.nets.stages.heads import logits_of_heads
from sidestep.nets.ternary.convert import ternarize
from sidestep.nets.ternary.layers import TernaryConv2d, TernaryLayer, TernaryLinear, ternary_parameters
from sidestep.nets.trained import check_own_weights
from sidestep.nets.user_modules import ImagePath, image_paths, parts_in_order
from sidestep.noise import Noise

__all__ = [
    "SCHEDULE",
    "ChannelsLast",
    "GridAverage",
    "TernaryNet",
    "ternary_conv_net",
    "ternary_mlp",
    "ternary_own",
    "ternary_stages_of",
]

SCHEDULE = 4  # numbers in a net's `schedule`
_MOMENTUM = 0.02  # of running statistics: an average over some fifty batches


class ChannelsLast(nn.Module):
    """Put a tensor into channels-last order, where poolings and norms are several times faster on a CPU.

    Convolutions keep that order, but with one input channel they cannot know it.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the same numbers."""
        return images.contiguous(memory_format=torch.channels_last)


class GridAverage(nn.Module):
    """Averages over a grid of windows, one matrix product; (batch, channels, h, w) -> (batch, places, channels).

    Windows are those of `nn.AdaptiveAvgPool2d`, whose derivative takes ten times as long on a CPU.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, images: Tensor) -> Tensor:
        """Return the averages."""
        batch, channels, height, width = images.shape
        return self.windows(images) @ images.permute(0, 2, 3, 1).reshape(batch, height * width, channels)

    def windows(self, images: Tensor) -> Tensor:
        """Return the weight of every pixel of such images in every window, (places, pixels)."""
        made = _windows.__wrapped__ if torch.compiler.is_exporting() else _windows  # a traced tensor must not be kept
        return made((images.shape[-2], images.shape[-1]), self.grid, images.dtype, images.device)

    def extra_repr(self) -> str:
        """Return the grid, for printing."""
        return str(self.grid)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve training too
def _windows(size: tuple[int, int], grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weight of every pixel in every window, (places, pixels)."""
    rows, columns = (torch.zeros(parts, length, dtype=torch.float64) for length, parts in zip(size, grid, strict=True))
    for line in (rows, columns):
        parts, length = line.shape
        for index in range(parts):
            start, stop = index * length // parts, -(-(index + 1) * length // parts)
            line[index, start:stop] = 1 / (stop - start)
    return torch.kron(rows, columns).to(dtype=dtype, device=device)


class TernaryNet(nn.Module):
    """Ternary stages and heads; (batch, channels, height, width) -> logits (batch, classes) of the last head.

    Args:
        stages: modules that follow each other, one ternary layer in each.
        heads: as many heads as stages (each stage can be trained on its own), or one, on the last stage.
    """

    schedule: Tensor

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(heads) not in (1, len(stages)):
            raise InputError(f"{len(stages)} stages need one head, or one each, got {len(heads)} heads")
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
        self.register_buffer("schedule", torch.zeros(SCHEDULE))

    @property
    def ternary(self) -> bool:
        """Whether its layers hold trits, and not floats in their place, as in a twin for back-propagation."""
        return any(isinstance(layer, TernaryLayer) for layer in self.modules())

    @property
    def local(self) -> bool:
        """Whether every stage has a head of its own."""
        return len(self.heads) == len(self.stages)

    def chain(self) -> list[nn.Module]:
        """Return what `forward` runs, one module after another."""
        return [*self.stages, self.heads[-1]]

    def draw(self, noise: Noise) -> None:
        """Draw all trits anew, uniform on {-1, 0, 1}."""
        for index, layer in enumerate(layer for layer in self.modules() if isinstance(layer, TernaryLayer)):
            layer.draw(noise.sub(index))
        ternary_parameters(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the last head."""
        for module in self.chain():
            images = module(images)
        return at_least_float32(images)

    def every_logits(self, images: Tensor) -> list[Tensor]:
        """Return the logits of every head, from the first stage on."""
        return logits_of_heads(self.stages, self.heads, images)


def ternary_mlp(
    image_shape: tuple[int, ...], hidden: Sequence[int], classes: int, bias: bool, local: bool
) -> TernaryNet:
    """Return dense stages `relu(layer norm(scale (W h + b)))` of the widths in `hidden`."""
    if not hidden or any(width < 1 for width in hidden):
        raise InputError(f"a ternary MLP needs one hidden layer or more, of at least one unit each, got {hidden}")
    sizes = [math.prod(image_shape), *hidden]
    stages = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        layers = [TernaryLinear(inputs, outputs, bias), nn.LayerNorm(outputs, elementwise_affine=False), nn.ReLU()]
        stages.append(nn.Sequential(*([nn.Flatten()] if index == 0 else []), *layers))
    heads = [TernaryLinear(outputs, classes, bias) for outputs in (hidden if local else hidden[-1:])]
    return TernaryNet(stages, heads)


def ternary_conv_net(  # long: what a conv net is made of
    image_shape: tuple[int, ...],
    channels: Sequence[int],
    classes: int,
    bias: bool,
    local: bool,
    pooled: Sequence[int] | None = None,
    norm: str = "group",
) -> TernaryNet:
    """Return stages of 3 x 3 convolution, 2 x 2 max pooling where there is one, norm, and ReLU.

    A head sees the averages of its stage's features over a grid of up to 4 x 4 places.

    Args:
        image_shape: (channels, height, width).
        channels: of every stage.
        classes: number of classes.
        bias: ternary biases; a batch norm would take them away again.
        local: a head on every stage, or on the last one only.
        pooled: the stages, from 1, that pool; by default as many of the first as leave more than 4 rows and columns.
        norm: `group` (over all of an image's features) or `batch` (over a channel's, with running statistics), without
            scales and shifts.
    """
    if not channels or any(width < 1 for width in channels):
        raise InputError(f"a ternary conv net needs one stage or more, of at least one channel each, got {channels}")
    inward, height, width = image_sides(image_shape)
    size = (height, width)
    wrong = [number for number in pooled or () if not 1 <= number <= len(channels)]
    if wrong:
        raise InputError(f"stages are numbered from 1 to {len(channels)}, got pooling at {wrong[0]}")
    stages, heads = [], []
    for number, (inputs, outputs) in enumerate(itertools.pairwise([inward, *channels]), start=1):
        stage = nn.Sequential(TernaryConv2d(inputs, outputs, 3, padding=1, bias=bias))
        if inputs == 1 and norm == "batch":
            stage.append(ChannelsLast())
        if min(size) >= 9 if pooled is None else number in pooled:
            if min(size) < 2:
                raise InputError(f"stage {number} has features of {size[0]} x {size[1]} places: nothing to pool")
            stage.append(nn.MaxPool2d(2))
            size = (size[0] // 2, size[1] // 2)
        if norm == "batch":
            stage.append(nn.BatchNorm2d(outputs, momentum=_MOMENTUM, affine=False))
        else:
            stage.append(nn.GroupNorm(1, outputs, affine=False))
        stages.append(stage.append(nn.ReLU()))
        grid = (min(4, size[0]), min(4, size[1]))
        head = TernaryLinear(outputs * grid[0] * grid[1], classes, bias)
        heads.append(nn.Sequential(GridAverage(grid), nn.Flatten(), head))
    return TernaryNet(stages, heads if local else heads[-1:])


def ternary_own(
    module: ImagePath, image_shape: tuple[int, ...], classes: int, bias: bool, local: bool, noise: Noise
) -> TernaryNet:
    """Return the ternary form of an image path of the user's, with a head on what it gives.

    For local losses it must be an nn.Sequential; its stages then end before every ternary layer but the first.

    Raises:
        InputError: for layers that have no ternary form, or a module without stages where they are needed.
    """
    path = ternarize(image_paths(module, 1, noise.stream("own"), image_shape)[0], noise)
    stages = ternary_stages_of(path) if local else [path]
    if local and len(stages) < 2:
        raise InputError(
            "local losses need a module in stages, an nn.Sequential with a ternary layer in two or more of its parts, "
            f"got one {type(path).__name__} with {len(stages)}; split it, or choose another estimator"
        )
    if local:
        check_own_weights(stages)
    for number, stage in enumerate(stages if local else [], start=1):
        trained = [name for name, layer in stage.named_modules() if isinstance(layer, TernaryLayer)]
        if len(trained) > 1:
            raise InputError(
                f"part {number} of the module has {len(trained)} ternary layers, and a local loss trains one: put the "
                "layers into one nn.Sequential without parts of their own, or choose another estimator"
            )
    image = torch.zeros(2, *image_shape)
    heads: list[nn.Module] = []
    for stage in stages:
        image = stage(image)
        heads.append(nn.Sequential(nn.Flatten(), TernaryLinear(image[0].numel(), classes, bias)))
    return TernaryNet(stages, heads if local else heads[-1:])


def ternary_stages_of(path: nn.Module) -> list[nn.Module]:
    """Return the parts of an nn.Sequential in stages: each begins with a part that has ternary layers."""
    stages: list[nn.Sequential] = []
    full = True
    for part in parts_in_order(path) or [path]:
        trains = any(isinstance(layer, TernaryLayer) for layer in part.modules())
        if not stages or (trains and full):
            stages.append(nn.Sequential())
            full = False
        stages[-1].append(part)
        full = full or trains
    return list(stages)
