"""A folder of `.npy` files, one for each array, which are mapped into memory and stay in their files."""

from functools import partial
from pathlib import Path

from sidestep.data.check import Array
from sidestep.data.images.npz import roles
from sidestep.data.labels import class_names_from
from sidestep.data.npz_file import npy_array, npy_map
from sidestep.data.source import Source
from sidestep.errors import DataError

__all__ = ["holds_arrays", "npy_source"]


def holds_arrays(folder: Path) -> bool:
    """Whether a folder has `.npy` files of its own, which makes it no folder of pictures."""
    return bool(_arrays(folder))


def npy_source(name: str, folder: Path) -> Source:
    """A folder with x_train.npy and y_train.npy, and the others that a `.npz` may have, called by the same names.

    Inputs are read in batches; an array `class_names` of strings names the classes. Raises DataError.
    """
    keys, name_key = roles(folder, _arrays(folder), [])
    names = class_names_from(npy_array(folder / f"{name_key}.npy"), str(folder)) if name_key is not None else None
    readers = {split: partial(_pair, folder, pair["images"], pair["labels"]) for split, pair in keys.items()}
    return Source(
        name,
        train=readers["train"],
        validation=readers.get("validation"),
        test=readers.get("test"),
        class_names=names,
        checks_test=True,
    )


def _arrays(folder: Path) -> list[str]:
    try:
        return sorted(path.stem for path in folder.iterdir() if path.suffix == ".npy" and path.is_file())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error


def _pair(folder: Path, inputs: str, targets: str) -> tuple[Array, Array]:
    return npy_map(folder / f"{inputs}.npy"), npy_map(folder / f"{targets}.npy")
