"""Whether data are of the kind that a run was trained on, and cut into splits as they were."""

from pathlib import Path

from sidestep.data import DataSet, names
from sidestep.errors import InputError
from sidestep.rules.protocol import Task
from sidestep.training.folder import RunFolder

__all__ = ["check_cut", "check_task"]


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
