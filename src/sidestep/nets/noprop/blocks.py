"""The denoising block of NoProp-DT: an image path, a latent path, and a small net that fuses the two."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.noprop.image_paths import path_maker, takes_channels_last
from sidestep.nets.precision import at_least_float32
from sidestep.nets.shapes import Shape

__all__ = ["Block", "ImageLatentPath", "LatentPath", "feature_count", "image_features"]

_FEATURES = 256


class LatentPath(nn.Module):
    """The latent path of Figure 6: a dense layer, then two more whose output is added to the first's.

    Shapes: (batch, dimension) -> (batch, 256).
    """

    def __init__(self, dimension: int, features: int = _FEATURES) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(dimension, features), nn.BatchNorm1d(features), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Linear(features, features), nn.BatchNorm1d(features), nn.ReLU(),
            nn.Linear(features, features), nn.BatchNorm1d(features),
        )  # fmt: skip

    def forward(self, latent: Tensor) -> Tensor:
        """Return the features of the latent."""
        hidden = self.first(latent)
        return hidden + self.residual(hidden)


class ImageLatentPath(nn.Module):
    """The path of an image-shaped latent (prototype embeddings): the latent's own copy of the convolutional path."""

    def __init__(self, image_shape: Shape) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.path = path_maker("auto", image_shape, norm=True)()

    def forward(self, latent: Tensor) -> Tensor:
        """Return the features of the latent, given flat: (batch, channels * height * width) -> (batch, 256)."""
        return self.path(latent.unflatten(1, self.image_shape))


class Block(nn.Module):
    """One block: class logits from an image and a noisy label, `logits = fuse(image(x), latent(z))`.

    The two halves can be called on their own, since the image's features do not depend on z.

    Args:
        image_path: a module from images (batch, channels, height, width) to features (batch, ...).
        image_shape: (channels, height, width).
        dimension: d, the length of the label embedding.
        classes: m.
        image_latent: whether the latent has the shape of the image (prototype embeddings).
    """

    def __init__(
        self, image_path: nn.Module, image_shape: Shape, dimension: int, classes: int, image_latent: bool
    ) -> None:
        super().__init__()
        self.image = image_path
        features = feature_count(image_path, image_shape)
        self.latent = ImageLatentPath(image_shape) if image_latent else LatentPath(dimension)
        self.fuse = nn.Sequential(
            nn.Linear(features + _FEATURES, 256), nn.BatchNorm1d(256), nn.ReLU(),
            nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(),
            nn.Linear(128, classes),
        )  # fmt: skip

    def features(self, images: Tensor) -> Tensor:
        """Return the image path's output as rows, (batch, features)."""
        return image_features(self.image, images)

    def logits(self, features: Tensor, latent: Tensor) -> Tensor:
        """Return class logits, (batch, classes), from image features and z of shape (batch, dimension)."""
        parts = [at_least_float32(features), at_least_float32(self.latent(latent))]
        return at_least_float32(self.fuse(torch.cat(parts, dim=1)))

    def forward(self, images: Tensor, latent: Tensor) -> Tensor:
        """Return class logits, (batch, classes)."""
        return self.logits(self.features(images), latent)


def image_features(path: nn.Module, images: Tensor) -> Tensor:
    """Return an image path's output as rows, (batch, features)."""
    if not takes_channels_last(path):
        images = images.contiguous()  # a user's module may view() them
    return path(images).flatten(1)


def feature_count(image_path: Callable[[Tensor], Tensor], image_shape: Shape) -> int:
    """Return how many features an image path gives for one image, by running it once on an empty image.

    Raises:
        InputError: if the path cannot take such images, or does not keep the batch dimension.
    """
    training = isinstance(image_path, nn.Module) and image_path.training
    if isinstance(image_path, nn.Module):
        image_path.eval()
    try:
        with torch.no_grad():
            output = image_path(torch.zeros(2, *image_shape))
    except Exception as error:  # it is the user's code: anything may come out of it
        raise InputError(
            f"the image path does not take images of shape (batch, {', '.join(map(str, image_shape))}): {error}"
        ) from error
    finally:
        if isinstance(image_path, nn.Module):
            image_path.train(training)
    if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"the image path must return a tensor (batch, features ...); for 2 images it gave {shape}")
    return output[0].numel()
