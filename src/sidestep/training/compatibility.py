"""Whether data are of the kind that a run was trained on, and cut into splits as they were."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sidestep.data import DataSet, PictureForm, Split, names
from sidestep.data.named import tensors_of
from sidestep.data.rows import Stored, blocks
from sidestep.data.source import channel_statistics
from sidestep.data.tables.form import TableForm
from sidestep.errors import CheckpointError, InputError
from sidestep.rules.protocol import Task
from sidestep.training.config import read_config
from sidestep.training.folder import RunFolder
from sidestep.wording import counted

__all__ = [
    "check_cut",
    "check_task",
    "check_test",
    "data_record",
    "difference",
    "in_saved_units",
    "in_units_of",
    "picture_form",
    "pixel_scale_warning",
    "pixels_digest",
    "table_form",
]

_SAME = 1e-6  # of a standard deviation: sums in float64 differ by far less from one machine to another
_FACTOR = 8.0  # between two contrasts: pixels in 0 .. 16 in place of 0 .. 255 differ by 16


def check_task(task: Task, found: DataSet) -> None:
    """Raise InputError for data of another kind than trained on.

    Classes of a file that are only numbered are taken to be those trained on.
    """
    if tuple(found.image_shape) != task.shape:
        image = task.inputs == "image"
        raise InputError(
            f"{found.name} has {'images' if image else 'rows'} of shape {tuple(found.image_shape)}, but the net was "
            f"trained on {task.shape}{' (channels, height, width)' if image else ''}; give data of that shape with "
            "--data"
        )
    if found.targets != task.targets:
        raise InputError(f"{found.name} has {found.targets} as targets, but the net was trained on {task.targets}")
    if found.classes != task.classes:
        raise InputError(
            f"{found.name} has {found.classes} classes, but the net was trained on {task.classes}; "
            "give data with the same classes with --data"
        )
    known = found.name in {known.name for known in names()}
    numbered = not known and all(name.isdecimal() for name in found.class_names)
    if tuple(found.class_names) != task.class_names and not numbered:
        raise InputError(
            f"{found.name} has the classes {', '.join(found.class_names[:10])}, but the net was trained on "
            f"{', '.join(task.class_names[:10])}; give data with the same classes with --data"
        )
    task.check_pixels(found.train.images)


def data_record(data: DataSet, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's configuration says of its data: how they are loaded again, how many, and a digest of labels.

    Mean and standard deviation of the training images, which tell data of one path from others, too, stand in its task.

    Args:
        data: what is trained on.
        source: what whoever trains has to say of where they came from; what `load` noted counts more.
    """
    return {
        "name": data.name,
        **source,
        **data.source,
        "in_memory": None if data.source or "name" in source else True,
        "loader": True if data.feed else None,
        "train_images": None if data.feed else len(data.train),
        "validation_images": len(data.validation),
        "labels": _labels_digest(data),
        "pixels": pixels_digest(*_known_again(data)),
        "pictures": {"stretched": data.pictures.size is not None} if data.pictures else None,
    }


def _known_again(data: DataSet) -> tuple[Split, ...]:
    """The splits that are the same each time the data are made: not the first batch of a loader that shuffles."""
    shuffled = data.feed is not None and not data.feed.in_order
    return (data.validation,) if shuffled else (data.train, data.validation)


def _labels_digest(data: DataSet) -> str:
    digest = hashlib.sha256()
    for split in _known_again(data):
        kind = "<f4" if split.labels.is_floating_point() else "<i8"
        for labels in blocks(split.labels):
            digest.update(labels.cpu().numpy().astype(kind).tobytes())
        digest.update(b"|")
    return digest.hexdigest()[:32]


def pixels_digest(*splits: Split) -> str:
    """Return a digest of the pixels of splits, in their order, the same on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for split in splits:
        for images in _blocks(split.images):
            pixels = images.cpu().contiguous().numpy()
            digest.update(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def _blocks(images: Any) -> Iterator[Tensor]:
    """Tensors of some rows, of a mapping one after another, by name."""
    for tensor in tensors_of(images):
        yield from blocks(tensor)


def check_test(folder: Path, test: Split) -> None:
    """Raise InputError for a test split that is not the one that a finished run was evaluated on at its end."""
    saved = (RunFolder(folder).result() or {}).get("test_pixels")
    if saved is not None and saved != pixels_digest(test):
        rows = f"{test.example}s"
        raise InputError(
            f"the test {rows} are not those that {folder} was evaluated on at its end, though its training {rows} are: "
            "bring these data back, or give those that you mean with --data"
        )


def difference(config: Mapping[str, Any], data: DataSet) -> str | None:
    """Return in what data differ from those that a run was trained on, in a few words; None if they are the same.

    Compared are the numbers of training and validation examples, mean and standard deviation of each channel or column
    of the training ones, within a millionth of the standard deviation, and by digests the labels and the pixels or
    other inputs, in order.
    """
    saved, task, row = config.get("data", {}), config.get("task", {}), Task.of(data).example
    inputs = "pixels" if row == "image" else "inputs"
    for name, split in (("train", data.train), ("validation", data.validation)):
        count = saved.get(f"{name}_images", len(split))
        if count != len(split):
            return f"{counted(len(split), f'{name} {row}')}, not {count:,}"
    for name, found in (("mean", data.mean), ("standard deviation", data.std)):
        had = task.get("mean" if name == "mean" else "std", found)
        near = [abs(one - other) <= _SAME * std for one, other, std in zip(had, found, data.std, strict=False)]
        if len(had) != len(found) or not all(near):
            return f"train {inputs} with a {name} of {_numbers(found)}, not {_numbers(had)}"
    if saved.get("labels", _labels_digest(data)) != _labels_digest(data):
        return "other labels, or the same in another order"
    if saved.get("pixels", own := pixels_digest(*_known_again(data))) != own:
        return f"other {inputs}, or the same in another order"
    return None


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.7g}" for value in values)


def in_saved_units(folder: RunFolder, data: DataSet) -> DataSet:
    """Return the data with the mean and standard deviation that a run was started with, to the bit, if they are its
    data: another machine may have summed up in another order.
    """
    try:
        config = read_config(folder.config_file)[0]
    except CheckpointError:  # there is no run yet, or what makes the folder ready will say what is wrong
        return data
    return in_units_of(config, data)


def in_units_of(config: Mapping[str, Any], data: DataSet) -> DataSet:
    """Return the data in the units (mean, standard deviation) that a configuration has, if they are its data."""
    if difference(config, data):
        return data  # the comparison of all options will say in what
    mean, std = (tuple(config.get("task", {}).get(name, ())) for name in ("mean", "std"))
    if not mean or (mean, std) == (tuple(data.mean), tuple(data.std)):
        return data
    return replace(data, mean=mean, std=std)


def check_cut(folder: Path, found: DataSet, instead: str) -> None:
    """Raise InputError for data that are not a run's, cut as they were: it may have been trained on these images.

    Args:
        folder: the run's.
        found: the data that it was trained on, loaded again.
        instead: what to do, for the error.
    """
    other = difference(RunFolder(folder).config(), found)
    if other:
        raise InputError(f"{found.name} is not what {folder} was trained on, or is cut otherwise ({other}): {instead}")


def table_form(folder: Path) -> TableForm | None:
    """Return how rows of a table are encoded for a run, as in training; None for one that was trained on other data.

    Raises:
        CheckpointError: if its configuration has no such columns.
    """
    config = RunFolder(folder).config()
    task = config.get("task", {})
    return TableForm.from_record(config.get("data", {}), task.get("targets", "classes"), task.get("class_names", ()))


def picture_form(folder: Path) -> PictureForm | None:
    """Return how pictures are to be read for a run: grey or colour, bytes or floats, and stretched, as in training.

    None for a run on tables or tokens, which takes no pictures.

    Args:
        folder: the run's; one that was not trained on picture files takes them as bytes, of the size trained on.

    Raises:
        CheckpointError: if its configuration lacks the shape of the images.
    """
    config = RunFolder(folder).config()
    data = config.get("data", {})
    if config.get("task", {}).get("inputs", "image") != "image":
        return None
    try:
        channels, *size = config["task"]["image_shape"]
        known = data.get("name") in {known.name for known in names()}
        # without a record they were arrays, or the run is from before there was one
        stretched = data["pictures"]["stretched"] if "pictures" in data else "size" in data and not known
        pixels = config["task"]["pixels"] if "pictures" in data else "uint8"
        height, width = size
        return PictureForm(1 if channels == 1 else 3, pixels, (height, width) if stretched else None)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the config.toml of {folder} lacks or misnames an entry: {error}") from error


def pixel_scale_warning(task: Task, images: Stored) -> str | None:
    """Return a sentence for images whose pixels can hardly be in the units of those trained on, else None.

    What is compared is the standard deviation of the pixels of all given images, sqrt(mean over channels of
    variance), with that of the training split; more than 8 times less or more is taken for other units.

    Args:
        task: of the run; a channel that did not change in training does not count.
        images: raw, (n, channels, height, width); of images of one colour nothing can be said.

    Raises:
        InputError: for pixels of another dtype than trained on.
    """
    task.check_pixels(images)
    if task.inputs != "image":  # columns have units of their own
        return None
    counted = [channel for channel, std in enumerate(task.std) if std != 1.0]  # 1 stands for a channel that is constant
    found = channel_statistics(images)[1] if len(images) else ()
    if not counted or all(std == 1.0 for std in found):
        return None
    unit = 255 if task.pixels == "uint8" else 1
    given, trained = (
        unit * math.sqrt(sum(std[channel] ** 2 for channel in counted) / len(counted))
        for std in ([0.0 if std == 1.0 else std for std in found], task.std)
    )
    if trained / _FACTOR <= given <= trained * _FACTOR:
        return None
    units = "uint8, 0 to 255" if task.pixels == "uint8" else task.pixels
    example = "pixels from 0 to 16 times 255 / 16, from 0 to 1 times 255" if given < trained else "from 0 to 255 / 255"
    return (
        f"the pixels have a standard deviation of {given:.3g}, those trained on {trained:.3g} ({units}): are they in "
        f"other units? Convert them to the units of the training images, for instance {example}"
    )
