"""What the functions of the Python interface are given, taken in the forms that people have it in, or refused."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sidestep.data import DataSet, Split, from_loader, load, steps_per_epoch
from sidestep.data.check import Array, as_array, pixel_tensor
from sidestep.data.labels import check_label_range
from sidestep.data.loader import is_loader
from sidestep.data.named import Named
from sidestep.data.rows import Rows, Stored, stored
from sidestep.data.sequences.tokens import token_tensor
from sidestep.data.tables.columns import feature_rows
from sidestep.data.tables.mapping import named_tensors
from sidestep.errors import InputError
from sidestep.rules.protocol import Task
from sidestep.training.options import Options

__all__ = ["given_data", "given_images", "given_options", "given_split", "settled_options"]

_TABLE_STEPS = 300  # at least, on a table in a file, where neither epochs nor steps are given


def given_data(data: Any, loaders: bool = False, target: str | None = None) -> DataSet:
    """The data set, loaded if it is a name or a path; raises InputError for other forms of data, with what to do."""
    if isinstance(data, str | os.PathLike):
        return load(data, target=target)
    if target is not None:
        raise InputError(f"target={target!r} names a column of a table in a file; give data its path")
    if isinstance(data, DataSet):
        return data
    if loaders and is_loader(data):
        return from_loader(data)
    if isinstance(data, Split):
        hint = "data.from_arrays(split.images, split.labels)"
    elif hasattr(data, "tensors"):  # torch.utils.data.TensorDataset
        hint = "data.from_arrays(*dataset.tensors)"
    elif not loaders and is_loader(data):
        hint = "data.from_arrays(images, labels): only train takes loaders"
    elif isinstance(data, torch.utils.data.Dataset):
        hint = "data.from_loader(DataLoader(dataset, batch_size=128, shuffle=True))"
    else:
        hint = "data.from_arrays(images, labels)"
    raise InputError(
        f"data must be a data set, the name of one or a path, got {type(data).__name__}; make a data set of it with "
        f"{hint}"
    )


def given_options(options: Any, steps: int | None = None) -> Options:
    """The options, those by default for None, with so many steps; raises InputError for another form of them."""
    if options is None:
        return Options(steps=steps)
    if not isinstance(options, Options):
        hint = "Options(**options)" if isinstance(options, Mapping) else "for instance Options(epochs=3)"
        raise InputError(f"options must be Options, got {type(options).__name__}; give {hint}")
    return options if steps is None else dataclasses.replace(options, steps=steps)


def settled_options(options: Options, data: DataSet) -> Options:
    """The options with the number of epochs; for a loader with its batches and the number of steps.

    Raises InputError for a loader of unknown length without a number of steps.
    """
    if data.feed is None:
        if options.steps is not None:
            return options
        epochs = options.epochs_for(len(data.train))
        if data.table is not None and options.epochs is None:  # a table of few rows has few steps in an epoch
            epochs = max(epochs, math.ceil(_TABLE_STEPS / steps_per_epoch(len(data.train), options.batch)))
        return dataclasses.replace(options, epochs=epochs)
    steps, epoch = options.steps, data.feed.epoch
    if steps is None and epoch is None:
        raise InputError(
            f"{data.name} does not say how many batches a pass has, so that epochs have no end; give steps=..., or "
            "data.from_loader(loader, epoch=...)"
        )
    if steps is None:
        steps = options.epochs_for(len(data.train) * (epoch or 1)) * (epoch or 1)
    return dataclasses.replace(options, steps=steps, epochs=None, batch=len(data.train))


def given_images(task: Task, images: Any) -> Any:
    """Raw images as the net takes them, (n, channels, height, width) in the dtype trained on; those of a read-only
    memory map stay in their file.

    Args:
        task: of the net.
        images: a tensor or anything array-like, also with channels last, or (n, height, width) for one channel;
            float64 becomes float32, integers of 0 to 255 become uint8.

    Raises:
        InputError: for images of another shape or dtype than trained on, or with pixels that are no numbers.
    """
    if isinstance(images, DataSet | Split):
        hint = "data.test.images" if isinstance(images, DataSet) else "split.images"
        raise InputError(f"images must be an array of images, got {type(images).__name__}; give {hint}")
    if task.inputs == "mapping":
        return _given_mapping(task, images)
    if task.inputs != "image":
        return _given_rows(task, images)
    if isinstance(images, Rows) and tuple(images.shape[1:]) == task.image_shape:
        task.check_pixels(images)
        return images
    plain = isinstance(images, Tensor) and images.layout == torch.strided and not images.requires_grad
    if not plain or tuple(images.shape[1:]) != task.image_shape or images.dtype not in (torch.uint8, torch.float32):
        images = stored(_shaped(as_array(images, "images"), task.image_shape), pixel_tensor, "images")
    task.check_pixels(images)
    return images  # on the device where they lie


def _given_mapping(task: Task, inputs: Any) -> Named:
    """Tensors by name, as they lie in a split, of the names, dtypes and shapes trained on."""
    if not isinstance(inputs, Named | Mapping):
        raise InputError(
            f"the net was trained on a mapping of tensors ({', '.join(task.named)}), got {type(inputs).__name__}"
        )
    found = inputs if isinstance(inputs, Named) else named_tensors(inputs, "inputs")
    task.check_pixels(found)
    return found


def _given_rows(task: Task, rows: Any) -> Stored:
    """Rows as they lie in a split: of a table, (n, columns), float32; of token ids, (n, length), int64."""
    array = as_array(rows, "rows")
    if array.shape[1:] != task.shape:
        one = array.shape == task.shape
        raise InputError(
            f"rows have shape {array.shape[1:]}, but the net was trained on {task.shape}"
            + ("; give one row as rows[None]" if one else "")
        )
    if task.inputs == "tokens":
        vocabulary = task.vocabulary or (task.classes if task.targets == "tokens" else 1 << 62)
        if not len(array):
            return torch.zeros(0, *task.shape).long()
        return stored(array, lambda ids, where: token_tensor(ids, vocabulary, where), "rows")
    return feature_rows(array, "rows") if len(array) else torch.zeros(0, *task.shape)


def _shaped(images: Array, wanted: tuple[int, int, int]) -> Array:
    channels, height, width = wanted
    shape = images.shape[1:]
    if shape == wanted:
        return images
    if channels == 1 and shape in ((height, width), (width,) if height == 1 else ()):
        return images.reshape(-1, *wanted)
    if shape == (height, width, channels):
        return images.transpose(0, 3, 1, 2)
    one = images.shape in (wanted, (height, width, channels), (height, width))
    flat = len(images.shape) < 3  # one image, or rows: what is left without the first axis is the shape of neither
    raise InputError(
        f"{f'an array of shape {images.shape}' if flat else f'images have shape {shape}'}, but the net was trained on "
        f"{wanted} (channels, height, width)" + ("; give one image as images[None]" if one else "")
    )


def given_split(task: Task, split: Any) -> Split:
    """The split, if its images and labels are of the kind that the net was trained on; raises InputError otherwise."""
    if isinstance(split, DataSet):
        raise InputError("evaluate takes one split, got a data set; give data.test, data.validation or data.train")
    if not isinstance(split, Split):
        hint = "data.from_arrays(images, labels, validation=0).train makes one of arrays"
        raise InputError(f"evaluate takes a split of a data set, got {type(split).__name__}; {hint}")
    if not len(split):
        raise InputError(f"there are no {task.example}s to evaluate; give a split with at least one")
    if split.image_shape != task.shape:
        raise InputError(
            f"{task.example}s have shape {split.image_shape}, but the net was trained on {task.shape}"
            + (" (channels, height, width)" if task.inputs == "image" else "")
        )
    task.check_pixels(split.images)
    if task.targets == "classes":
        check_label_range(split.targets, task.classes, "the split")
    elif task.targets != "tokens" and split.labels.shape[1:] != (task.classes,):
        raise InputError(
            f"targets have shape {tuple(split.labels.shape[1:])}, but the net gives {task.classes} {task.targets} for "
            "each row"
        )
    return split
