"""A `.npz` or `.npy` file that may come from anybody: the names of its arrays, and one, read once its size is known."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from sidestep.data.check import Array
from sidestep.errors import DataError
from sidestep.machine import free_memory

__all__ = ["npy_array", "npy_map", "npz_array", "npz_keys", "npz_members"]


def npz_keys(path: Path) -> set[str]:
    """The names of the arrays in the file; raises DataError if it is not a whole `.npz`."""
    return set(npz_members(path)[0])


def npz_members(path: Path) -> tuple[list[str], list[str]]:
    """The names of the arrays in the file, and those of all else that lies in it; raises DataError if it is not a
    whole `.npz`, or holds two arrays of one name.
    """
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not zipfile.is_zipfile(path):  # the directory of a zip is its end, which a cut file has lost
        raise DataError(f"{path}: not a whole .npz file ({path.stat().st_size} bytes): cut short, or another format")
    with _reading(path, "its list of arrays"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    twice = next((name for index, name in enumerate(arrays) if name in set(arrays[:index])), None)
    if twice is not None:
        raise DataError(f"{path}: holds two arrays called {twice!r:.80}; write it again with one")
    return arrays, [name for name in names if not name.endswith((".npy", "/"))]


def npz_array(path: Path, key: str) -> Array:
    """One array of the file; raises DataError if it is missing, damaged, or larger than the memory that is free."""
    with _reading(path, key), zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{key}.npy")
        with archive.open(member) as file:
            _check_size(file, member.file_size, f"{path}: {key}")
        with archive.open(member) as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
            return array


def npy_array(path: Path) -> Array:
    """The array of a `.npy` file; raises DataError as `npz_array` does."""
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    with _reading(path, "its array"), path.open("rb") as file:
        _check_size(file, path.stat().st_size, str(path))
        file.seek(0)
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
        return array


def npy_map(path: Path) -> Array:
    """The array of a `.npy` file as a read-only memory map; raises DataError unless it is a whole array of numbers."""
    with _reading(path, "its array"), path.open("rb") as file:
        _check_size(file, path.stat().st_size, str(path), in_memory=False)
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def _check_size(file: IO[bytes], bytes_there: int, where: str, in_memory: bool = True) -> None:
    """Raise DataError if what the header says is not what is there, or (in memory) more than fits there."""
    shape, kind = _header(file, where)
    size = prod(shape) * kind.itemsize
    if file.tell() + size != bytes_there:
        raise DataError(
            f"{where} says {shape} in {kind}, {size:,} bytes, but has {bytes_there - file.tell():,}"
            ": damaged or cut short; write it again"
        )
    if in_memory:
        _check_memory(where, size + prod(shape) * min(kind.itemsize, 4))  # and its copy, as a tensor


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[np.void]]:
    """Shape and dtype, before a byte of the array is read."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, kind = np.lib.format.read_array_header_2_0(file)
    else:  # 3.0 is for fields with names
        raise DataError(f"{where} is of a form that is not read here (.npy {version}); save it as an array of numbers")
    if kind.hasobject:
        raise DataError(
            f"{where} holds Python objects, which can run code when read and are not accepted; "
            "save it as an array of numbers (or of strings, for class_names)"
        )
    if kind.names is not None or not kind.itemsize or any(length < 0 for length in shape):
        raise DataError(f"{where} is no array of numbers or strings ({kind}, {shape}); save it as one")
    return shape, kind


def _check_memory(where: str, wanted: int) -> None:
    free = free_memory()
    if free is not None and wanted > free:
        raise DataError(
            f"{where} needs {wanted / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free; store fewer images, "
            "or pixels as uint8 or float32"
        )


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Whatever zipfile, a decompressor or numpy find wrong, in one sentence."""
    try:
        yield
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{path}: holds no array {what}; write it again") from error
    except Exception as error:  # these parsers raise a dozen kinds, tokenize.TokenError and RecursionError among them
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{path}: {what} cannot be read: damaged or cut short ({said}); write it again") from error
