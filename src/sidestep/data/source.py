"""Where a data set comes from, and how its parts become one: checks, the validation cut, mean and std."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sidestep.data.check import Array, make_split
from sidestep.data.cut import check_validation, cut_validation
from sidestep.data.images.pixel_scale import Moments, moments, unlike_split
from sidestep.data.labels import (
    NOT_CLASSES,
    NUMBERED_ALIKE,
    check_class_names,
    check_label_range,
    looks_like_numbers,
)
from sidestep.data.notices import report
from sidestep.data.rows import Stored
from sidestep.data.sameness import report_sameness
from sidestep.data.splits import DataSet, PictureForm, Split
from sidestep.data.tables.columns import is_table, table_set
from sidestep.errors import DataError

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
    checks_test: bool = False  # whether test is quick to read: once, before training, to find what is wrong with it
    cut_test: bool = False  # whether test was cut off a set without splits
    pictures: PictureForm | None = None  # how picture files were read
    targets: str = "classes"  # or labels, or values


def assemble(source: Source, validation: float = 0.1) -> DataSet:
    """Read train and validation, check them, and cut `validation` of train off where the source has no such
    split.

    Raises InputError unless validation is in [0, 0.5], DataError for anything wrong with the arrays.
    """
    check_validation(validation)
    arrays = source.train()
    if is_table(arrays[0]) or source.targets != "classes":
        own, test = (reader() if reader else None for reader in (source.validation, source.test))
        return table_set(source.name, arrays, own, test, float(validation), source.targets, source.class_names)
    train = make_split(*arrays, f"{source.name}: train")
    del arrays
    if source.image_shape is not None and train.image_shape != source.image_shape:
        raise DataError(
            f"{source.name}: its images are {source.image_shape} (channels, height, width), this file has "
            f"{train.image_shape}; give the file by its path to use it as a set of its own"
        )
    class_names = _class_names(source, train.targets)
    check_class_names(class_names, source.name)
    check_label_range(train.targets, len(class_names), f"{source.name}: train labels")
    if source.image_shape is None:  # that is, no known set
        _tell_of_many_classes(source.name, len(class_names), len(train))
    _tell_of_first_class(source.name, train.targets, class_names)
    report_sameness(source.name, train, class_names)
    if source.validation is not None:
        held = _read_like(source.validation, f"{source.name}: validation", train, len(class_names))
    else:
        train, held = cut_validation(train, validation, class_names, source.name)
    statistics = moments(train.images)
    if source.validation is not None:
        _tell_of_units(source.name, "validation", held, statistics)
    read_test = None
    if source.test is not None:
        example = Split(train.images[:1].clone(), train.targets[:1].clone())  # so that train itself is not kept alive
        read_test = partial(_read_like, source.test, f"{source.name}: test", example, len(class_names))
        if source.checks_test:  # nothing else is made of it, and it is released
            _tell_of_units(source.name, "test", read_test(), statistics)
    mean, std = statistics.mean, statistics.std
    return DataSet(
        source.name, train, held, class_names, mean, std, read_test, cut_test=source.cut_test, pictures=source.pictures
    )


def _tell_of_units(name: str, split: str, images: Split, train: Moments) -> None:
    unlike = unlike_split(split, images.images, train)
    if unlike:
        report(f"{name}: {unlike}")


def _tell_of_many_classes(name: str, classes: int, examples: int) -> None:
    if looks_like_numbers(classes, examples):
        report(
            f"{name}: {classes} classes for {examples} train images: if the labels are numbers to be predicted "
            "(regression), a classifier of their values learns nothing of use"
        )


def _tell_of_first_class(name: str, labels: Tensor, class_names: Sequence[str]) -> None:
    """Say so where the labels leave class 0 out, as those that begin at 1 do."""
    first = int(labels.min())
    if first:
        report(
            f"{name}: the train labels begin at {first}, so that no image shows {class_names[0]}, and label {first} "
            f"stands for {class_names[first]}: if it should stand for {class_names[0]}, number labels from 0"
        )


def channel_statistics(images: Stored) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in float64; of pixel / 255, exactly, where images are
    uint8.

    A channel that does not change has std 1, so that it becomes 0 and nothing is divided by 0.

    >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    found = moments(images)
    return found.mean, found.std


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
            f"{present[-1]} without any {missing}; {_renumber(len(present), len(labels))}"
        )
    return tuple(str(label) for label in present)


def _renumber(classes: int, examples: int) -> str:
    if looks_like_numbers(classes, examples):
        return f"{classes} different values for {examples} images look like {NOT_CLASSES}"
    return f"{NUMBERED_ALIKE}, or give class_names alone if a class has no example"


def _check_alike(image_shape: tuple[int, ...], train: Split, where: str) -> None:
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
            "give both in one dtype and in the same units: uint8 counts from 0 to 255"
        )
    check_label_range(split.targets, classes, f"{where} labels")
    return split
