"""Raw arrays to tensors, with every way in which images and labels can be wrong named in words."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sidestep.data.labels import label_tensor
from sidestep.data.rows import is_mapped, stored
from sidestep.data.splits import Split
from sidestep.errors import DataError

__all__ = ["Array", "as_array", "image_layout", "image_tensor", "make_split", "pixel_tensor"]

Array = NDArray[Any]
CHANNELS = (1, 3, 4)


def make_split(images: Array, labels: Array, where: str) -> Split:
    """Images in any accepted form and their labels as a Split that shares no memory with them, unless they are a
    read-only memory map, which is read in batches.

    Images: (N, H, W), (N, H, W, C), (N, C, H, W) with C of 1, 3 or 4, or flat vectors (N, F), kept as (N, 1,
    1, F); uint8, other integers of 0..255, or finite floats (kept as float32). Labels: integers >= 0, (N,) or
    (N, 1). `where` names the arrays in the DataError that anything else raises.
    """
    pixels = stored(images, image_tensor, f"{where} images")
    return Split(pixels, label_tensor(labels, len(pixels), f"{where} labels"))


def as_array(values: Any, where: str) -> Array:
    """Anything array-like as a numpy array: torch tensors on any device, sparse ones too, lists of arrays or tensors,
    data frames.

    Raises DataError for what is none, for lists of arrays of different shapes, and for arrays with masked elements.
    """
    if is_mapped(values):
        mapped: Array = values
        return mapped
    if isinstance(values, list | tuple) and values and any(hasattr(value, "__array__") for value in values):
        values = [as_array(value, where) for value in values]  # numpy takes tensors apart, one number at a time
    if isinstance(values, Dataset | DataLoader) or values is None:
        raise _no_array(values, where)  # numpy would go through its items, images and labels in one
    if isinstance(values, Tensor):
        return _from_tensor(values, where)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(f"{where}: some elements are masked, and would count as numbers; fill or remove them first")
    if not isinstance(values, np.ndarray) and callable(getattr(values, "toarray", None)):
        values = values.toarray()  # SciPy's sparse arrays
    try:
        array: Array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: these cannot be one array, since their shapes differ ({error})") from None
    if array.ndim == 0:
        raise _no_array(values, where)
    return array


def _no_array(values: Any, where: str) -> DataError:
    return DataError(
        f"{where}: need an array, got {type(values).__name__}; of a torch.utils.data.Dataset, give the stacked "
        "tensors of its images and labels (those of a TensorDataset: *dataset.tensors)"
    )


def _from_tensor(values: Tensor, where: str) -> Array:
    try:
        values = values.detach().to_dense().cpu().resolve_conj().resolve_neg()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # numpy has no bfloat16, nor 8 bits
        return values.numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{where}: a tensor in {values.dtype} that cannot be a numpy array ({said})") from None


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


def image_tensor(images: Array, where: str) -> Tensor:
    """Images in any form that `make_split` accepts as (n, channels, height, width), uint8 or float32."""
    _check_kind(images, where)
    shape, channels_last = image_layout(images.shape, where)
    pixels = _pixels(images, where)
    if channels_last:
        pixels = pixels.transpose(0, 3, 1, 2)
    pixels = np.ascontiguousarray(pixels.reshape(len(images), *shape))
    if np.may_share_memory(pixels, images):  # what the caller does to his array later must not reach ours
        pixels = pixels.copy()
    return torch.from_numpy(pixels)


def _check_kind(images: Array, where: str) -> None:
    if images.dtype.kind in "uif":
        return
    kind = "Python objects" if images.dtype == object else str(images.dtype)
    hints = {
        "b": "convert them with .astype('uint8') * 255",
        "O": "make one array of numbers of them, with numpy.stack or .astype('float32')",
        "c": "take their magnitude (numpy.abs)",
    }
    raise DataError(
        f"{where}: pixels must be uint8, other integers of 0 to 255, or floats; got {kind}; "
        + hints.get(images.dtype.kind, "give the pixels as numbers")
    )


def _pixels(images: Array, where: str) -> Array:
    """The same array, of integers or floats, in uint8 or float32."""
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what passes float32's range is infinite then, and named below
            pixels = images.astype(np.float32, copy=False)
        _check_finite(pixels, where)
        return pixels
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
        f"the first at index {first}; remove those images, or give these pixels values in the units of the others"
    )


def pixel_tensor(images: Array, where: str) -> Tensor:
    """Images (n, channels, height, width) in that order as a tensor of its own, uint8 or float32."""
    _check_kind(images, where)
    return torch.from_numpy(np.array(_pixels(images, where), order="C")) if images.size else _none_of(images)


def _none_of(images: Array) -> Tensor:
    return torch.zeros(images.shape, dtype=torch.float32 if images.dtype.kind == "f" else torch.uint8)
