"""Images without labels, to be classified: from a `.npz`, a `.npy`, or a picture file."""

from pathlib import Path

import numpy as np
from torch import Tensor

from sidestep.data.check import Array, image_tensor
from sidestep.data.folder import open_picture
from sidestep.data.npz import npz_array, npz_keys
from sidestep.errors import DataError

__all__ = ["read_images"]

KEYS = ("images", "x", "x_test", "test_images", "x_train", "train_images")  # the first of these that is there


def read_images(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """Images (n, channels, height, width), uint8 or float32, from a file, in the shape that a net was trained
    on.

    A `.npz` gives the array called images, x, x_test or test_images, or its only one; a `.npy` its array; any
    other file is read as one picture. A picture is turned to grey or colour as needed; its size must fit.

    Raises:
        DataError: if the file is missing or damaged, or its images have another shape.
    """
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if path.suffix == ".npz":
        keys = npz_keys(path)
        key = next((name for name in KEYS if name in keys), next(iter(keys)) if len(keys) == 1 else None)
        if key is None:
            raise DataError(f"{path}: name the array of images 'images'; found {', '.join(sorted(keys)) or 'no array'}")
        pixels = npz_array(path, key)
    elif path.suffix == ".npy":
        pixels = _npy(path)
    else:
        pixels = _picture(path, image_shape[0])
    if pixels.ndim == 3 and pixels.shape in (image_shape, (*image_shape[1:], image_shape[0])):
        pixels = pixels[None]  # one image on its own
    if pixels.ndim == 2 and pixels.shape == image_shape[1:]:
        pixels = pixels[None]
    images = image_tensor(pixels, f"{path} images")
    if tuple(images.shape[1:]) != image_shape:
        raise DataError(
            f"{path}: images have shape {tuple(images.shape[1:])}, but the net was trained on {image_shape} "
            "(channels, height, width); resize or convert them first"
        )
    return images


def _npy(path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a .npy file ({error})") from error
    return array


def _picture(path: Path, channels: int) -> Array:
    return np.asarray(open_picture(path).convert("L" if channels == 1 else "RGB"))
