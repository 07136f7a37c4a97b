"""Raw arrays to tensors, with every way in which images and labels can be wrong named in words."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidestep.data.splits import Split
from sidestep.errors import DataError

__all__ = ["Array", "as_array", "check_label_range", "image_layout", "image_tensor", "label_tensor", "make_split"]

Array = NDArray[Any]
CHANNELS = (1, 3, 4)


def make_split(images: Array, labels: Array, where: str) -> Split:
    """Images in any accepted form and their labels as a Split that shares no memory with them.

    Images: (N, H, W), (N, H, W, C), (N, C, H, W) with C of 1, 3 or 4, or flat vectors (N, F), kept as (N, 1,
    1, F); uint8, other integers of 0..255, or finite floats (kept as float32). Labels: integers >= 0, (N,) or
    (N, 1). `where` names the arrays in the DataError that anything else raises.
    """
    pixels = image_tensor(images, f"{where} images")
    return Split(pixels, label_tensor(labels, len(pixels), f"{where} labels"))


def as_array(values: Any, where: str) -> Array:
    """Anything array-like, torch tensors on any device too, as a numpy array; raises DataError for ragged
    lists.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"{where}: these cannot be one array, since their shapes differ ({error})") from None


def image_layout(shape: tuple[int, ...], where: str) -> tuple[tuple[int, int, int], bool]:
    """(channels, height, width) of images with this array shape, and whether their channels come last.

    Where both the last axis and axis 1 could be channels (1, 3 or 4 long), the last one is taken.

    >>> image_layout((10, 32, 28, 3), "x_train"), image_layout((10, 3, 32, 28), "x_train")
    (((3, 32, 28), True), ((3, 32, 28), False))
    """
    if 0 in shape or len(shape) not in (2, 3, 4):
        problem = "there are none" if 0 in shape else f"an array of {len(shape)} dimensions"
        raise DataError(
            f"{where}: need at least one image, as (N, H, W), (N, H, W, C), (N, C, H, W) or flat (N, F); "
            f"got shape {shape}: {problem}"
        )
    if len(shape) == 2:
        return (1, 1, shape[1]), False
    if len(shape) == 3:
        return (1, shape[1], shape[2]), False
    if shape[3] in CHANNELS:
        return (shape[3], shape[1], shape[2]), True
    if shape[1] in CHANNELS:
        return (shape[1], shape[2], shape[3]), False
    raise DataError(
        f"{where}: need 1, 3 or 4 channels on the last axis or on axis 1, got shape {shape}; "
        "select or average the channels first"
    )


def check_label_range(labels: Tensor, classes: int, where: str) -> None:
    """Raise DataError unless every label is below `classes`."""
    wrong = labels >= classes
    if bool(wrong.any()):
        index = int(wrong.int().argmax())
        raise DataError(
            f"{where}: labels must be 0 to {classes - 1}, for {classes} classes; "
            f"label {int(labels[index])} (index {index}) and {int(wrong.sum()) - 1} more are out of range; "
            "give class_names (in a .npz file: an array of strings) with a name for every class, or without any, "
            "train images of that class"
        )


def image_tensor(images: Array, where: str) -> Tensor:
    """Images in any form that `make_split` accepts as (n, channels, height, width), uint8 or float32."""
    shape, channels_last = image_layout(images.shape, where)
    pixels = _pixels(images, where)
    if channels_last:
        pixels = pixels.transpose(0, 3, 1, 2)
    pixels = np.ascontiguousarray(pixels.reshape(len(images), *shape))
    if np.may_share_memory(pixels, images):  # what the caller does to his array later must not reach ours
        pixels = pixels.copy()
    return torch.from_numpy(pixels)


def _pixels(images: Array, where: str) -> Array:
    """The same array in uint8 or float32."""
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what passes float32's range is infinite then, and named below
            pixels = images.astype(np.float32, copy=False)
        _check_finite(pixels, where)
        return pixels
    if images.dtype.kind not in "ui":
        kind = "Python objects" if images.dtype == object else str(images.dtype)
        raise DataError(
            f"{where}: pixels must be uint8, other integers of 0 to 255, or floats; got {kind}; "
            "convert them with .astype('uint8') or .astype('float32')"
        )
    if images.dtype != np.uint8:
        low, high = int(images.min()), int(images.max())
        if low < 0 or high > 255:
            raise DataError(
                f"{where}: integer pixels must be 0 to 255, got {low} to {high} in {images.dtype}; "
                "scale them to 0..255, or convert them to floats"
            )
    return images.astype(np.uint8, copy=False)


def _check_finite(pixels: Array, where: str) -> None:
    if np.isfinite(pixels.sum(dtype=np.float64)):  # one pass without a mask; a sum over finite float32 stays finite
        return
    wrong = ~np.isfinite(pixels)
    first = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
    raise DataError(
        f"{where}: {int(wrong.sum())} of {wrong.size} pixels are NaN or infinite (in float32), "
        f"the first at index {first}; remove those images, or replace the values (numpy.nan_to_num)"
    )


def label_tensor(labels: Array, examples: int, where: str) -> Tensor:
    """Labels in any form that `make_split` accepts as int64 of shape (examples,)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        hint = "; one-hot rows become labels with .argmax(1)" if labels.ndim == 2 else ""
        raise DataError(f"{where}: need one integer for each image, (N,) or (N, 1), got shape {labels.shape}{hint}")
    if len(labels) != examples:
        raise DataError(f"{where}: need one label for each image, got {len(labels)} labels for {examples} images")
    if labels.dtype.kind not in "uib":
        fix = (
            "convert them with .astype('int64')"
            if labels.dtype.kind == "f"
            else "number them with numpy.unique(labels, return_inverse=True)[1]"
        )
        raise DataError(f"{where}: labels must be integers from 0, got {labels.dtype} ({labels[0]!r} first); {fix}")
    numbers = labels.astype(np.int64)
    if numbers.min() < 0:
        index = int((numbers < 0).argmax())
        raise DataError(f"{where}: labels must be integers from 0, got {labels[index]} at index {index}")
    return torch.from_numpy(numbers)
