"""Where a data set comes from, and how its parts become one: checks, the validation cut, mean and std."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sidestep.data.check import Array, check_label_range, image_layout, label_tensor, make_split
from sidestep.data.cut import cut_validation
from sidestep.data.sameness import tell_sameness
from sidestep.data.splits import DataSet, PictureForm, Split
from sidestep.errors import DataError, InputError

__all__ = ["Reader", "Source", "assemble", "channel_statistics"]

Reader = Callable[[], tuple[Array, Array]]  # images, labels


@dataclass(frozen=True)
class Source:
    """A data set before it is read: one function for each split."""

    name: str
    train: Reader
    validation: Reader | None = None  # None: cut from train
    test: Reader | None = None
    class_names: tuple[str, ...] | None = None  # None: numbered by the train labels
    image_shape: tuple[int, int, int] | None = None  # what the images must be, where that is known
    test_shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # known without reading: images', labels'
    test_labels: Callable[[], Array] | None = None  # where they can be read without the images
    pictures: PictureForm | None = None  # how picture files were read


def assemble(source: Source, validation: float = 0.1) -> DataSet:
    """Read train and validation, check them, and cut `validation` of train off where the source has no such
    split.

    Raises InputError unless validation is in [0, 0.5], DataError for anything wrong with the arrays.
    """
    if isinstance(validation, bool) or not 0.0 <= validation <= 0.5:  # also refuses NaN
        raise InputError(f"validation must be a fraction of the train split from 0 to 0.5, got {validation!r}")
    train = make_split(*source.train(), f"{source.name}: train")
    if source.image_shape is not None and train.image_shape != source.image_shape:
        raise DataError(
            f"{source.name}: its images are {source.image_shape} (channels, height, width), this file has "
            f"{train.image_shape}; give the file by its path to use it as a set of its own"
        )
    class_names = _class_names(source, train.labels)
    check_label_range(train.labels, len(class_names), f"{source.name}: train labels")
    _check_test_shapes(source, train)
    _check_test_labels(source, len(class_names))
    tell_sameness(source.name, train, class_names)
    if source.validation is not None:
        held = _read_like(source.validation, f"{source.name}: validation", train, len(class_names))
    else:
        train, held = cut_validation(train, validation, class_names, source.name)
    mean, std = channel_statistics(train.images)
    read_test = None
    if source.test is not None:
        example = Split(train.images[:1].clone(), train.labels[:1].clone())  # so that train itself is not kept alive
        read_test = partial(_read_like, source.test, f"{source.name}: test", example, len(class_names))
    return DataSet(source.name, train, held, class_names, mean, std, read_test, source.pictures)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in float64; of pixel / 255, exactly, where images are
    uint8.

    A channel that does not change has std 1, so that it becomes 0 and nothing is divided by 0.

    >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    mean, std = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].reshape(-1)
        if images.dtype == torch.uint8:
            counts = torch.bincount(pixels, minlength=256).double()
            values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
            centre = float((counts * values).sum() / counts.sum())
            variance = float((counts * (values - centre) ** 2).sum() / counts.sum())
        else:
            chunks = torch.split(pixels, 1 << 22)  # float64 copies of 32 MB, never of the whole set
            centre = sum(float(chunk.double().sum()) for chunk in chunks) / len(pixels)
            squares = (float(((chunk.double() - centre) ** 2).sum()) for chunk in chunks)
            variance = sum(squares) / len(pixels)
        mean.append(centre)
        deviation = math.sqrt(variance)
        std.append(deviation if deviation > 1e-6 * abs(centre) else 1.0)
    return tuple(mean), tuple(std)


def _class_names(source: Source, labels: Tensor) -> tuple[str, ...]:
    """The source's own names, or the numbers of the classes; every class must then occur."""
    present = torch.unique(labels).tolist()
    if len(present) < 2:
        raise DataError(f"{source.name}: need at least two classes, but every train label is {present[0]}")
    if source.class_names is not None:
        return source.class_names
    classes = present[-1] + 1
    if len(present) < classes:
        missing = next(place for place, label in enumerate(present) if place != label)
        raise DataError(
            f"{source.name}: train labels must be 0 to K-1 with every class present, got {present[0]} to "
            f"{present[-1]} without any {missing}; renumber them with "
            "numpy.unique(labels, return_inverse=True)[1], or give class_names if a class has no example"
        )
    return tuple(str(label) for label in present)


def _check_test_shapes(source: Source, train: Split) -> None:
    """Find a test split that cannot fit before training, not after it, without reading an image of it."""
    if source.test_shapes is None:
        return
    images, labels = source.test_shapes
    _check_alike(image_layout(images, f"{source.name}: test images")[0], train, f"{source.name}: test")
    if labels[:1] != images[:1]:
        raise DataError(f"{source.name}: test has {images[0]} images but labels of shape {labels}")


def _check_test_labels(source: Source, classes: int) -> None:
    """Find a test label that no net of so many classes can answer before training; nothing else is made of them."""
    if source.test_labels is None:
        return
    labels, where = source.test_labels(), f"{source.name}: test labels"
    check_label_range(label_tensor(labels, labels.size, where), classes, where)


def _check_alike(image_shape: tuple[int, int, int], train: Split, where: str) -> None:
    if image_shape != train.image_shape:
        raise DataError(
            f"{where} images are {image_shape} (channels, height, width), "
            f"those of train {train.image_shape}; they must agree"
        )


def _read_like(reader: Reader, where: str, train: Split, classes: int) -> Split:
    split = make_split(*reader(), where)
    _check_alike(split.image_shape, train, where)
    if split.images.dtype != train.images.dtype:
        raise DataError(
            f"{where} images are {split.images.dtype}, those of train {train.images.dtype}; "
            "store both as uint8 or both as floats, since uint8 is divided by 255"
        )
    check_label_range(split.labels, classes, f"{where} labels")
    return split
