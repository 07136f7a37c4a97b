"""Images without labels, to be classified: from a `.npz`, a `.npy`, picture files, or folders of these."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sidestep.data.check import Array, image_tensor
from sidestep.data.images.folder import read_pictures, report_lost
from sidestep.data.images.image_file import for_all, read_header
from sidestep.data.images.layout import entries_of
from sidestep.data.npz_file import npy_array, npy_map, npz_array, npz_keys
from sidestep.data.rows import Stored, stored
from sidestep.data.splits import PictureForm
from sidestep.errors import DataError

__all__ = ["mapped_images", "read_images", "read_named_images"]

KEYS = ("images", "x", "x_test", "test_images", "x_train", "train_images")  # the first of these that is there
ARRAYS = (".npz", ".npy")


def read_images(path: Path, image_shape: tuple[int, int, int], form: PictureForm | None = None) -> Tensor:
    """Images (n, channels, height, width), uint8 or float32, from a file or a folder, in the shape that a net was
    trained on; see `read_named_images`.
    """
    return read_named_images([path], image_shape, form)[0]


def mapped_images(path: Path, image_shape: tuple[int, int, int]) -> Stored:
    """Images (n, channels, height, width) of a `.npy` file, as `read_named_images` has them, which stay in the file.

    Raises:
        DataError: if the file is missing or damaged, or its images have another shape.
    """
    _check_there(path)
    return _shaped(path, npy_map(path), image_shape)


def read_named_images(
    paths: Sequence[Path],
    image_shape: tuple[int, int, int],
    form: PictureForm | None = None,
    lost: dict[Path, str] | None = None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Images (n, channels, height, width), uint8 or float32, with the name of each, in the shape that a net was
    trained on.

    A `.npz` gives the array called images, x, x_test or test_images, or its only one; a `.npy` its array; any
    other file is read as one picture, and a folder stands for all pictures in it and in its folders, by name. A
    picture is read in the given form, by default as bytes, turned to grey or colour as needed, and not stretched.
    Images of an array are called FILE[0], FILE[1] and so on. With `lost`, pictures that cannot be read are left out,
    and noted there with what is wrong, as long as there are others.

    Raises:
        DataError: if a file is missing or damaged, or its images have another shape.
    """
    form = form or PictureForm(1 if image_shape[0] == 1 else 3)
    parts: list[tuple[Tensor | None, list[Path]]] = []  # an array's images with its file, or pictures
    for path in paths:
        _check_there(path)
        if not path.is_dir() and path.suffix in ARRAYS:
            parts.append((_array(path, image_shape), [path]))
        else:
            parts.append((None, _pictures_in(path)))
    pictures = [path for images, files in parts if images is None for path in files]
    where = paths[0] if len(paths) == 1 else Path("pictures")
    decoded = iter(_decoded(pictures, image_shape, form, where, lost))
    left = lost or {}
    if left and len(left) == len(set(pictures)) and len(pictures) == sum(len(files) for _, files in parts):
        _decoded(pictures, image_shape, form, where, None)  # there is nothing else: raises an error that names them
    images: list[Tensor] = []
    names: list[str] = []
    for found, files in parts:
        if found is not None:
            images.append(found)
            names.extend(f"{files[0]}[{i}]" for i in range(len(found)))
        else:
            there = [path for path in files if path not in left]
            images.extend(next(decoded)[None] for _ in there)
            names.extend(map(str, there))
    if len({part.dtype for part in images}) > 1:
        raise DataError("some of these images are uint8 (0 to 255), others float32; give them one after another")
    return torch.cat(images), tuple(names)


def _check_there(path: Path) -> None:
    try:
        path.stat()
    except (FileNotFoundError, ValueError):  # ValueError: a name with NUL in it
        raise DataError(f"{path}: no such file") from None
    except OSError as error:  # a name too long, a link that leads to itself, a folder that is closed
        raise DataError(f"{path!s:.200}: cannot be read ({error.strerror or error})") from error


def _array(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    pixels = npy_array(path) if path.suffix == ".npy" else _npz(path)
    images = _shaped(path, pixels, image_shape)
    assert isinstance(images, Tensor)  # for the type checker: the array is in memory
    return images


def _shaped(path: Path, pixels: Array, image_shape: tuple[int, int, int]) -> Stored:
    if pixels.ndim == 3 and pixels.shape in (image_shape, (*image_shape[1:], image_shape[0])):
        pixels = pixels[None]  # one image on its own
    if pixels.ndim == 2 and pixels.shape == image_shape[1:]:
        pixels = pixels[None]
    images = stored(pixels, image_tensor, f"{path} images")
    if tuple(images.shape[1:]) != image_shape:
        read = "" if pixels.ndim == 2 else f", read as images of {tuple(images.shape[1:])}"  # one image, or flat ones
        raise DataError(
            f"{path}: an array of shape {pixels.shape}{read}, but the net was "
            f"trained on {image_shape} (channels, height, width); resize or convert them first"
        )
    return images


def _npz(path: Path) -> Array:
    keys = npz_keys(path)
    lower = {name.lower(): name for name in sorted(keys)}  # X_test is x_test
    key = next((lower[name] for name in KEYS if name in lower), next(iter(keys)) if len(keys) == 1 else None)
    if key is None:
        raise DataError(f"{path}: name the array of images 'images'; found {', '.join(sorted(keys)) or 'no array'}")
    return npz_array(path, key)


def _pictures_in(path: Path) -> list[Path]:
    """The path itself, or all files in the folder and the folders in it, by name; no folder is entered twice."""
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    entered: set[Path] = set()
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        if (real := folder.resolve()) in entered:  # a link that leads back
            continue
        entered.add(real)
        files, inside = entries_of(folder)
        found.extend(files)
        waiting.extend(reversed(inside))
    if not found:
        raise DataError(f"{path}: no pictures in this folder")
    return found


def _decoded(
    files: list[Path], image_shape: tuple[int, int, int], form: PictureForm, where: Path, lost: dict[Path, str] | None
) -> Tensor:
    def odd(height: int, width: int) -> str:
        return f"the picture has shape {(form.channels, height, width)}"

    hint = (
        f"the net was trained on {image_shape} (channels, height, width), on images that were not stretched; resize "
        "first"
    )
    headers = for_all(files, read_header, lost)
    files = [path for path in files if path not in (lost or {})]
    report_lost(where, files, headers, form)
    pixels = read_pictures(files, form, image_shape[1:], where, odd, hint, lost)
    return image_tensor(pixels, str(where)) if len(pixels) else torch.empty(0)
