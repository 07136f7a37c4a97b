"""What training sees of a data set: splits of image and label tensors, and the set that holds them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from sidestep.errors import DataError, InputError

__all__ = ["DataSet", "PictureForm", "Split"]


@dataclass(frozen=True)
class PictureForm:
    """How a picture becomes an array: grey or colour, stretched or not, in bytes or in floats."""

    channels: int  # 1 or 3
    pixels: str = "uint8"  # or float32: from 0 to 1, for pictures of 16 bits
    size: tuple[int, int] | None = None  # height and width to stretch it to; None: it stays as large as it is


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images with their labels: images (n, channels, height, width) uint8 or float32, labels (n,) int64.

    Raises InputError if the shapes or dtypes are others.

    >>> Split(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
    Split(5 images of 1 x 8 x 8, uint8)
    """

    images: Tensor  # (n, channels, height, width), uint8 or float32
    labels: Tensor  # (n,), int64

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise InputError(
                "images must be (n, channels, height, width) in uint8 or float32, "
                f"got {tuple(self.images.shape)} in {_dtype_name(self.images)}; "
                "data.from_arrays converts other forms"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise InputError(
                f"labels must be ({len(self.images)},) in int64 for {len(self.images)} images, "
                f"got {tuple(self.labels.shape)} in {_dtype_name(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.image_shape))
        return f"Split({len(self)} images of {shape}, {_dtype_name(self.images)})"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: str | torch.device) -> "Split":
        """The same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False, repr=False)
class DataSet:
    """A data set for classification; its test split is read when `.test` is first asked for.

    Of arrays and `.npz` files it is looked at once before, for what is wrong with it, and let go of.

    mean and std are per channel and of the train split alone, in units of 1 for white where images are uint8
    (pixel / 255), and in the images' own units where they are floats; a channel that never changes has std 1.

    >>> from sidestep import data
    >>> digits = data.load("digits")
    >>> digits
    DataSet('digits', 1293 train + 144 validation images of 1 x 8 x 8, 10 classes)
    >>> len(digits.test)
    360
    """

    name: str
    train: Split
    validation: Split  # no images where no validation split was asked for
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # (channels,)
    std: tuple[float, ...]  # (channels,)
    read_test: Callable[[], Split] | None = None  # None: this set has no test images
    source: Mapping[str, Any] = field(default_factory=dict)  # what `load` gives it again by; empty for arrays in memory
    cut_test: bool = False  # whether test is a part of one set of images, cut off by us: a folder without train/
    pictures: PictureForm | None = None  # how picture files were read; None: it was given as arrays

    @cached_property
    def test(self) -> Split:
        """The test split, read at first use; raises DataError if the set has none or if it is damaged."""
        if self.read_test is None:
            raise DataError(
                f"{self.name} has no test images, so there is no test accuracy; "
                "add x_test and y_test (or a folder test/) to measure one"
            )
        return self.read_test()

    def every_image(self) -> Split:
        """The images of all splits as one, to judge a net by that was trained on another set."""
        parts = [part for part in (self.train, self.validation, self.test if self.has_test else None) if part]
        return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))

    @property
    def has_test(self) -> bool:
        """Whether there are test images; asking does not read them."""
        return self.read_test is not None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.train.image_shape

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def to(self, device: str | torch.device) -> "DataSet":
        """The same set with its tensors on `device`; the test split follows when it is read."""
        read_test = partial(_moved_test, self, device) if self.has_test else None
        train, validation = self.train.to(device), self.validation.to(device)
        return replace(self, train=train, validation=validation, read_test=read_test)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.image_shape))
        counts = f"{len(self.train)} train + {len(self.validation)} validation"
        return f"DataSet({self.name!r}, {counts} images of {shape}, {self.classes} classes)"


def _moved_test(data: DataSet, device: str | torch.device) -> Split:
    return data.test.to(device)


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
