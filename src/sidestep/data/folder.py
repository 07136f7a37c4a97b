"""Image folders: one folder per class, read with Pillow."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sidestep.data.check import Array
from sidestep.data.source import Source, hold_out
from sidestep.errors import DataError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["GREY_MODES", "folder_source", "open_picture"]

TEST_FRACTION = 0.2  # of a folder that has no train/ and test/
VALIDATION_NAMES = ("val", "valid", "validation")
GREY_MODES = ("1", "L", "LA")

Listing = tuple[tuple[Path, int], ...]  # image files with their labels


def folder_source(name: str, root: Path, size: int | None = None) -> Source:
    """Images under root/train/CLASS/ with root/test/ and root/val/ where they exist, or directly under
    root/CLASS/, in which case a fifth is held out for test by counter noise, the same fifth whatever the
    run's seed.

    Classes are the folder names in alphabetical order. The first image decides between grey and colour;
    transparency is dropped, and an EXIF rotation is carried out. All images need one size unless `size` is
    given, which stretches each to size x size. Hidden files are skipped; any other that is not an image
    raises DataError with its name.
    """
    if size is not None and size < 1:
        raise InputError(f"size must be at least 1 pixel, got {size}")
    split_layout = any(True for _ in _folders(root / "train"))
    class_names = tuple(folder.name for folder in _folders(root / "train" if split_layout else root))
    if len(class_names) < 2:
        raise DataError(
            f"{root}: need a folder for each of at least two classes (directly, or in train/), "
            f"found {', '.join(class_names) or 'none'}"
        )
    if not split_layout:
        files = _files(root, class_names)
        kept, held = hold_out(len(files), max(1, round(len(files) * TEST_FRACTION)), "folder test")
        train, test = (tuple(files[i] for i in part.tolist()) for part in (kept, held))
        validation: Listing | None = None
    else:
        train = _files(root / "train", class_names)
        test = _files(root / "test", class_names) if (root / "test").is_dir() else ()
        own = [root / folder for folder in VALIDATION_NAMES if (root / folder).is_dir()]
        validation = _files(own[0], class_names) if own else None
    first = open_picture(train[0][0])
    mode = "L" if first.mode in GREY_MODES else "RGB"
    shape = (size, size) if size else (first.height, first.width)
    read = partial(_read, mode=mode, shape=shape, resize=size is not None, first=train[0][0])
    return Source(
        name,
        train=partial(read, train),
        validation=partial(read, validation) if validation is not None else None,
        test=partial(read, test) if test else None,
        class_names=class_names,
    )


def _folders(root: Path) -> list[Path]:
    """The folders in `root` by name, hidden ones left out; none if `root` is not a folder."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path, class_names: tuple[str, ...]) -> Listing:
    """Every file with its label, by class and name; also for test and validation, which may lack a class."""
    files: list[tuple[Path, int]] = []
    for folder in _folders(root):
        if folder.name not in class_names:
            raise DataError(f"{folder}: there is no class of this name in train; classes are {', '.join(class_names)}")
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        if not found:
            raise DataError(f"{folder}: no images in it; add some, or remove the folder")
        files.extend((path, class_names.index(folder.name)) for path in found)
    if not files:
        raise DataError(f"{root}: no images in it; add a folder for each class, or remove it")
    return tuple(files)


def open_picture(path: Path) -> "Image":
    """The decoded image, upright; raises DataError naming the file if Pillow cannot read it whole."""
    from PIL import Image, ImageOps

    if path.is_dir():
        raise DataError(f"{path}: a folder inside a class's folder; put the images directly into the class's folder")
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not an image that can be read ({error}); remove it or save it again") from error
    if upright.mode[0] in "IF":
        raise DataError(f"{path}: {upright.mode} pixels, more than 8 bits each; convert it to 8 bits per channel")
    return upright


def _read(files: Listing, *, mode: str, shape: tuple[int, int], resize: bool, first: Path) -> tuple[Array, Array]:
    """Pixels (n, height, width) or (n, height, width, 3) in uint8, and labels (n,)."""
    from PIL import Image

    pixels = np.empty((len(files), *shape, *((3,) if mode == "RGB" else ())), np.uint8)
    for row, (path, _) in zip(pixels, files, strict=True):
        image = open_picture(path).convert(mode)
        if resize:
            image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
        if (image.height, image.width) != shape:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels, "
                f"but {first.name} has {shape[1]} x {shape[0]}; images must have one size: "
                "give size= to stretch them all"
            )
        row[...] = np.asarray(image)
    return pixels, np.array([label for _, label in files], np.int64)
