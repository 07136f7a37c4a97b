"""What training sees of a data set: splits of input and target tensors, and the set that holds them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from sidestep.data.feed import Feed
from sidestep.data.named import Named, is_named
from sidestep.data.objective import Objective
from sidestep.data.rows import Rows, Stored, blocks
from sidestep.data.tables.form import TableForm
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
    """Inputs with their targets, one row for each example: tensors, or rows that stay in a file.

    images: the inputs: images (n, channels, height, width) in uint8 or float32, features (n, columns) in float32, or
        token ids (n, length) in int64; or several tensors by name (`Named`).
    labels: the targets: classes (n,) in int64, tokens (n, length) in int64, or several labels (0 or 1) or real values
        (n, columns) in float32.

    Raises InputError if the shapes or dtypes are others.

    >>> Split(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
    Split(5 images of 1 x 8 x 8, uint8)
    """

    images: Any  # (n, ...): a tensor, rows in a file (`Rows`), or several tensors by name (`Named`)
    labels: Stored  # (n,) or (n, columns)

    def __post_init__(self) -> None:
        if not is_named(self.images) and (self.images.ndim, self.images.dtype) not in _INPUTS:
            raise InputError(
                "images must be (n, channels, height, width) in uint8 or float32, features (n, columns) in float32, "
                f"tokens (n, length) in int64, got {tuple(self.images.shape)} in {_dtype_name(self.images)}; "
                "data.from_arrays converts other forms"
            )
        several = self.labels.ndim == 2 and self.labels.dtype in (torch.float32, torch.int64)
        if several and len(self.labels) == len(self.images):
            return
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            raise InputError(
                f"labels must be ({len(self.images)},) in int64 for {len(self.images)} images, "
                f"got {tuple(self.labels.shape)} in {_dtype_name(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        dtype = "" if is_named(self.images) else f", {_dtype_name(self.images)}"
        return f"Split({len(self)} {_described(self)}{dtype})"

    @property
    def example(self) -> str:
        """What one input is called when people are told of it: image or row."""
        return "image" if len(self.image_shape) == 3 else "row"

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one input: channels, height and width of an image, the number of features, the length in tokens."""
        return () if is_named(self.images) else tuple(self.images.shape[1:])

    @property
    def targets(self) -> Tensor:
        """The targets as a tensor in memory, read whole where they are in a file."""
        return self.labels if isinstance(self.labels, Tensor) else self.labels[:]

    def part(self, rows: Tensor | slice) -> "Split":
        """Some examples, by their numbers (n,) or as a slice; what is in a file stays there."""
        return Split(_part(self.images, rows), _part(self.labels, rows))

    def to(self, device: str | torch.device) -> "Split":
        """The same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False, repr=False)
class DataSet:
    """A data set; its test split is read when `.test` is first asked for.

    Of arrays and `.npz` files it is looked at once before, for what is wrong with it, and released.

    mean and std are per channel of images, or per column of features, and of the train split alone, in units of 1 for
    white where images are uint8 (pixel / 255), and in their own units where inputs are floats; a channel or column
    that never changes has std 1.

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
    class_names: tuple[str, ...]  # of each output: the classes, labels, values or tokens
    mean: tuple[float, ...]  # (channels,)
    std: tuple[float, ...]  # (channels,)
    read_test: Callable[[], Split] | None = None  # None: this set has no test images
    source: Mapping[str, Any] = field(default_factory=dict)  # what `load` gives it again by; empty for arrays in memory
    cut_test: bool = False  # whether test is a part of one set of images, cut off by us: a folder without train/
    pictures: PictureForm | None = None  # how picture files were read; None: it was given as arrays
    table: TableForm | None = None  # how columns of a file became features; None: they were given as numbers
    targets: str = "classes"  # or labels (several for an example), values (real numbers), tokens (one for each place)
    target_mean: tuple[float, ...] = ()  # of each value over the train split, and their standard deviation
    target_std: tuple[float, ...] = ()
    vocabulary: int = 0  # how many token ids there are, where the inputs are rows of them; 0: not known
    objective: Objective | None = None  # a loss of the user's own; None: that of the kind of targets
    feed: Feed | None = None  # where training batches come from; train is then the first one. None: they are drawn

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
        images = [block for part in parts for block in blocks(part.images)]
        together = Named.joined(images) if is_named(images[0]) else torch.cat(images)
        return Split(together, torch.cat([part.targets for part in parts]))

    @property
    def has_test(self) -> bool:
        """Whether there are test images; asking does not read them."""
        return self.read_test is not None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one input: channels, height and width of an image, the number of features, the length in tokens."""
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
        counts = f"{len(self.train)} train + {len(self.validation)} validation"
        if self.feed:
            counts = f"batches of {len(self.train)}"
        return f"DataSet({self.name!r}, {counts} {_described(self.train)}, {self.classes} {self.targets})"


_INPUTS = {(4, torch.uint8), (4, torch.float32), (2, torch.float32), (2, torch.int64)}  # dimensions, dtype


def _described(split: Split) -> str:
    if is_named(split.images):
        return f"rows of {', '.join(split.images.table)}"
    if split.images.ndim == 4:
        return f"images of {' x '.join(map(str, split.image_shape))}"
    return f"rows of {split.image_shape[0]} {'tokens' if split.images.dtype == torch.int64 else 'features'}"


def _moved_test(data: DataSet, device: str | torch.device) -> Split:
    return data.test.to(device)


def _part(of: Stored, rows: Tensor | slice) -> Stored:
    return of.part(rows) if isinstance(of, Rows) else of[rows]


def _dtype_name(tensor: Stored) -> str:
    return str(tensor.dtype).removeprefix("torch.")
