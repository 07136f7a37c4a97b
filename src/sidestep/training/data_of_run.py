"""Whether data are of the kind that a run was trained on, and cut into splits as they were."""

import math
from pathlib import Path

from torch import Tensor

from sidestep.data import DataSet, PictureForm, names
from sidestep.data.source import channel_statistics
from sidestep.errors import CheckpointError, InputError
from sidestep.rules.protocol import Task
from sidestep.training.folder import RunFolder

__all__ = ["check_cut", "check_task", "picture_form", "pictures_record", "unlike_contrast"]

_FACTOR = 8.0  # between two contrasts: pixels in 0 .. 16 in place of 0 .. 255 differ by 16


def check_task(task: Task, found: DataSet) -> None:
    """Raise InputError for data of another kind than trained on.

    Classes of a file that are only numbered are taken to be those trained on.
    """
    if tuple(found.image_shape) != task.image_shape:
        raise InputError(
            f"{found.name} has images of shape {tuple(found.image_shape)}, but the net was trained on "
            f"{task.image_shape} (channels, height, width); give data of that shape with --data"
        )
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


def check_cut(folder: Path, found: DataSet, instead: str) -> None:
    """Raise InputError for data that are not cut as a run's were: a net was trained on some of the validation images.

    Args:
        folder: the run's.
        found: the data that it was trained on, loaded again.
        instead: what to do, for the error.
    """
    saved = RunFolder(folder).config().get("data", {})
    wanted = (saved.get("train_images"), saved.get("validation_images"))
    if wanted != (len(found.train), len(found.validation)):
        raise InputError(
            f"the run was trained on {wanted[0]} images and validated on {wanted[1]}, but {found.name} is now cut into "
            f"{len(found.train)} and {len(found.validation)}: {instead}"
        )


def pictures_record(data: DataSet) -> dict[str, dict[str, bool]]:
    """Return what a run's configuration says of how its pictures were read, beside their shape and dtype."""
    return {"pictures": {"stretched": data.pictures.size is not None}} if data.pictures else {}


def picture_form(folder: Path) -> PictureForm:
    """Return how pictures are to be read for a run: grey or colour, bytes or floats, and stretched, as in training.

    Args:
        folder: the run's; one that was not trained on picture files takes them as bytes, of the size trained on.

    Raises:
        CheckpointError: if its configuration lacks the shape of the images.
    """
    config = RunFolder(folder).config()
    data = config.get("data", {})
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


def unlike_contrast(task: Task, images: Tensor) -> str | None:
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
