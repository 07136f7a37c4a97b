"""Image paths: from an image to the features that a denoising block works with; they depend on neither t nor z."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.dropout import Dropout
from sidestep.nets.precision import at_least_float32
from sidestep.nets.shapes import Shape, image_sides

__all__ = ["PATHS", "ConvPath", "PooledPath", "Residual", "ResidualPath", "path_maker", "takes_channels_last"]

PATHS: tuple[str, ...] = ("auto", "figure-6", "pooled", "resnet-9")
_FEATURES = 256
_MOST_PIXELS = 64 * 64  # beyond, the flattened layer of Figure 6 would have more than 8 million weights


class ConvPath(nn.Module):
    """The image path of Li et al. 2025, Figure 6: three convolutions, then 256 features.

    Shapes: (batch, channels, height, width) -> (batch, 256); height and width at least 4, since they are halved twice.
    With `norm` the features end in batch norm, as the paper's discrete blocks have it, without in ReLU, as its
    continuous ones.
    """

    def __init__(self, image_shape: Shape, features: int = _FEATURES, norm: bool = True) -> None:
        super().__init__()
        channels, height, width = image_sides(image_shape)
        if min(height, width) < 4:
            raise InputError(
                f"images of {height} x {width} are too small for the convolutional path, which halves them twice; "
                "it needs at least 4 x 4 (enlarge the images, or give a module of your own)"
            )
        # the paper's ReLU stands before the pooling; the two commute, and this way ReLU has a quarter of the elements
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.MaxPool2d(2), *_relu_and_dropout(),
            nn.Conv2d(32, 64, 3, padding=1), *_relu_and_dropout(),
            nn.Conv2d(64, 128, 3, padding=1), nn.MaxPool2d(2), *_relu_and_dropout(),
        )  # fmt: skip
        _lay_channels_last(self)
        self.dense = nn.Linear(128 * (height // 4) * (width // 4), features)
        self.norm: nn.Module = nn.BatchNorm1d(features) if norm else nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the images."""
        return self.norm(at_least_float32(self.dense(self.convolutions(images).flatten(1))))


class FeaturePath(nn.Module):
    """A path for rows of features: two dense layers; (batch, columns) -> (batch, 256).

    It ends as Figure 6's does: with `norm` in batch norm, without in ReLU.
    """

    def __init__(self, columns: int, features: int = _FEATURES, norm: bool = True) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(columns, features), *_relu_and_dropout())
        self.dense = nn.Linear(features, features)
        self.norm: nn.Module = nn.BatchNorm1d(features) if norm else nn.ReLU()

    def forward(self, rows: Tensor) -> Tensor:
        """Return the features of the rows."""
        return self.norm(at_least_float32(self.dense(self.hidden(rows))))


class PooledPath(nn.Module):
    """A path for large images: like Figure 6's, with a first convolution of 5 x 5 and stride 2, and a fourth one.

    At 128 x 128 the flattened layer of Figure 6 would have 33 million weights; here three poolings, and a mean over
    4 x 4 cells at the end, leave half a million. A cell sees 91 x 91 of 128 x 128 pixels.
    Shapes: (batch, channels, height, width) -> (batch, 256); height and width at least 32.
    """

    def __init__(self, image_shape: Shape, features: int = _FEATURES, norm: bool = True) -> None:
        super().__init__()
        channels, height, width = image_sides(image_shape)
        if min(height, width) < 32:
            raise InputError(
                f"the pooled path is for images from 32 x 32 on, got {height} x {width}; use path = figure-6"
            )
        # most of the cost of a large image lies in its first rows and columns, which neighbours mostly repeat
        layers: list[nn.Module] = [nn.Conv2d(channels, 32, 5, 2, padding=2), nn.MaxPool2d(2), *_relu_and_dropout()]
        for inputs, outputs in ((32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(2), *_relu_and_dropout()]
        layers += [nn.Conv2d(128, 128, 3, padding=1), *_relu_and_dropout()]
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4))
        _lay_channels_last(self)
        self.dense = nn.Linear(128 * 16, features)
        self.norm: nn.Module = nn.BatchNorm1d(features) if norm else nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the images."""
        return self.norm(at_least_float32(self.dense(self.convolutions(images).flatten(1))))


def _relu_and_dropout() -> tuple[nn.Module, nn.Module]:
    return nn.Identity(), Dropout(0.2, rectify=True)  # two places, as the layers after it are called by number


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two units whose output is added to what goes in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_unit(channels, channels), _unit(channels, channels))

    def forward(self, values: Tensor) -> Tensor:
        """Return the sum, of the shape given."""
        return values + self.inner(values)


class ResidualPath(nn.Module):
    """A ResNet-9 without its classifier: four convolutions and two residual pairs, `width` to 8 x `width` channels.

    Shapes: (batch, channels, height, width) -> (batch, 8 x `width`), from the largest value of each channel; height and
    width at least 8. The network is the one of the DAWNBench CIFAR-10 entries (Page 2018).
    """

    def __init__(self, image_shape: Shape, width: int = 64) -> None:
        super().__init__()
        channels, height, breadth = image_sides(image_shape)
        if min(height, breadth) < 8:
            raise InputError(f"the ResNet-9 path halves images three times and needs 8 x 8, got {height} x {breadth}")
        self.layers = nn.Sequential(
            _unit(channels, width),
            _unit(width, 2 * width), nn.MaxPool2d(2), Residual(2 * width),
            _unit(2 * width, 4 * width), nn.MaxPool2d(2),
            _unit(4 * width, 8 * width), nn.MaxPool2d(2), Residual(8 * width),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        )  # fmt: skip
        _lay_channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the images."""
        return at_least_float32(self.layers(images))


def path_maker(kind: str, image_shape: Shape, norm: bool) -> Callable[[], nn.Module]:
    """Return a function that makes one image path.

    Args:
        kind: `figure-6`, the paper's; `pooled`, for large images; `resnet-9`; `auto`: the paper's, or the pooled one
            where images have more than 64 x 64 pixels, or dense layers for rows of features.
        image_shape: (channels, height, width), or (features,).
        norm: whether the path, but for a ResNet-9, ends in batch norm (the paper's discrete blocks) or ReLU (its
            continuous ones).

    Raises:
        InputError: for another kind.
    """
    if kind not in PATHS:
        raise InputError(f"path must be {', '.join(PATHS)}, got {kind!r}")
    if kind == "resnet-9":
        return partial(ResidualPath, image_shape)
    if kind == "auto" and len(image_shape) == 1:
        return partial(FeaturePath, image_shape[0], norm=norm)
    _, height, width = image_sides(image_shape)
    large = height * width > _MOST_PIXELS and min(height, width) >= 32
    pooled = kind == "pooled" or (kind == "auto" and large)
    return partial(PooledPath if pooled else ConvPath, image_shape, norm=norm)


def takes_channels_last(path: nn.Module) -> bool:
    """Whether a path works on images in any memory layout; a user's may view() them and gets them in plain order."""
    return isinstance(path, ConvPath | PooledPath | ResidualPath)


def _lay_channels_last(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):  # channels last, in which convolutions run fastest
            # the strides of one input channel fit both orders, and torch would take the other: a clone's say which
            inner = layer.weight.data.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
            layer.weight.data = inner.permute(0, 3, 1, 2)
