"""Data sets in one `.npz` file, with the keys that Keras or MedMNIST use; arrays are read one by one when
needed.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from sidestep.data.check import Array
from sidestep.data.source import Reader, Source
from sidestep.errors import DataError

__all__ = ["npz_array", "npz_keys", "npz_source"]

KERAS = (("x_train", "y_train"), None, ("x_test", "y_test"))
MEDMNIST = (("train_images", "train_labels"), ("val_images", "val_labels"), ("test_images", "test_labels"))
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    MemoryError,
    RuntimeError,  # an encrypted member; NotImplementedError, which is one, for an unknown compression
    SyntaxError,
)


def npz_source(name: str, paths: tuple[Path, ...], class_names: tuple[str, ...] | None) -> Source:
    """A `.npz` with Keras keys (x_train, y_train, x_test, y_test) or MedMNIST keys (train_images,
    train_labels, val_*, test_*): the validation split is the file's own where it has one, and test may be
    missing.

    An array `class_names` of strings in the file names the classes. Only train's arrays and, of the test
    arrays, the headers and the labels, whose range is looked at, are read before the test split is asked for.
    Raises DataError.
    """
    (path,) = paths
    keys = npz_keys(path)
    train, validation, test = MEDMNIST if MEDMNIST[0][0] in keys else KERAS
    for pair in (train, validation, test):
        if pair is not None and (pair is train or set(pair) & keys) and not set(pair) <= keys:
            raise DataError(
                f"{path}: needs x_train and y_train (with x_test and y_test), or train_images and "
                "train_labels (with val_images, val_labels, test_images and test_labels); "
                f"found {', '.join(sorted(keys)) or 'none'}"
            )
    if class_names is None and "class_names" in keys:
        class_names = tuple(str(label) for label in npz_array(path, "class_names").ravel())
    shapes = tuple(_shape(path, key) for key in test) if test and test[0] in keys else ()
    return Source(
        name,
        train=_reader(path, train),
        validation=_reader(path, validation) if validation and validation[0] in keys else None,
        test=_reader(path, test) if test and test[0] in keys else None,
        class_names=class_names,
        test_shapes=(shapes[0], shapes[1]) if shapes and shapes[0] and shapes[1] else None,
        test_labels=partial(npz_array, path, test[1]) if test and test[0] in keys else None,
    )


def _reader(path: Path, pair: tuple[str, str]) -> Reader:
    return partial(_pair, path, *pair)


def _pair(path: Path, image_key: str, label_key: str) -> tuple[Array, Array]:
    return npz_array(path, image_key), npz_array(path, label_key)


def npz_keys(path: Path) -> set[str]:
    """The names of the arrays in the file; raises DataError if it is not a whole `.npz`."""
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if not zipfile.is_zipfile(path):  # the directory of a zip is its end, which a cut file has lost
        raise DataError(f"{path}: not a whole .npz file ({path.stat().st_size} bytes): cut short, or another format")
    with _reading(path, "its list of arrays"), zipfile.ZipFile(path) as archive:
        return {member.removesuffix(".npy") for member in archive.namelist()}


def npz_array(path: Path, key: str) -> Array:
    """One array of the file; raises DataError if it is missing or damaged."""
    with _reading(path, key), np.load(path, allow_pickle=False) as arrays:
        array: Array = arrays[key]
        return array


def _shape(path: Path, key: str) -> tuple[int, ...] | None:
    """The array's shape from its header alone; None for a header of a form that only numpy's reader knows."""
    with _reading(path, key), zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)[0]
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)[0]
        return None


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Whatever zipfile, zlib or numpy find wrong, in one sentence."""
    try:
        yield
    except BROKEN as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path}: {what} holds Python objects, which can run code when read and are not accepted; "
                "save it as an array of numbers (or of strings, for class_names)"
            ) from error
        raise DataError(f"{path}: {what} cannot be read: damaged or cut short ({error}); write it again") from error
