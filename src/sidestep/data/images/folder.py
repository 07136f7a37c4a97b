"""Image folders: one folder per class, read with Pillow."""

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path

import numpy as np
import torch

from sidestep.data.check import Array
from sidestep.data.cut import hold_out, keep_classes, report_kept
from sidestep.data.images.image_file import Header, for_all, listed, read_header, read_picture
from sidestep.data.images.layout import Listing, find_layout
from sidestep.data.notices import report
from sidestep.data.source import Source
from sidestep.data.splits import PictureForm
from sidestep.errors import DataError, InputError
from sidestep.machine import free_memory
from sidestep.wording import counted

__all__ = ["folder_source", "read_pictures", "report_lost"]

TEST_FRACTION = 0.2  # of a folder that has no train/ and test/


def folder_source(name: str, root: Path, size: int | None = None, form: PictureForm | None = None) -> Source:
    """Images under root/train/CLASS/ with root/test/ and root/val/ where they exist, or directly under
    root/CLASS/, in which case a fifth is held out for test by counter noise, the same fifth whatever the
    run's seed.

    Classes are the folder names in alphabetical order. The set has colour if any image has, and floats from 0 to 1
    if any has 16 bits of grey, unless `form` says how it is to be read; what is converted or left out is reported. All
    images need one size unless `size` is given, which stretches each to size x size. The headers of all files are
    looked at here, and those that cannot be read are named in one DataError.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, Integral)):
        raise InputError(f"size must be one whole number of pixels, for height and width, got {size!r:.80}")
    if size is not None and size < 1:
        raise InputError(f"size must be at least 1 pixel, got {size}")
    layout = find_layout(root)
    train, test = layout.train, layout.test
    if not layout.split:
        train, test = _hold_out_test(name, train, layout.class_names)
    files = [path for part in (train, layout.validation, test) for path, _ in part or ()]
    headers = for_all(files, read_header)
    form = _form(headers, size, form)
    report_lost(layout.root, files, headers, form)
    shape = form.size or read_picture(train[0][0], form).array.shape[:2]
    _check_memory(layout.root, len(files), (*shape, form.channels), form)
    read = partial(_read, form=form, shape=shape, first=train[0][0], root=layout.root)
    return Source(
        name,
        train=partial(read, train),
        validation=partial(read, layout.validation) if layout.validation is not None else None,
        test=partial(read, test) if test else None,
        class_names=layout.class_names,
        cut_test=not layout.split,
        pictures=form,
    )


def _hold_out_test(name: str, files: Listing, class_names: tuple[str, ...]) -> tuple[Listing, Listing]:
    cut = hold_out(len(files), max(1, round(len(files) * TEST_FRACTION)), "folder test")
    kept, held, lost = keep_classes(*cut, torch.tensor([label for _, label in files]))
    report_kept(name, "test", [class_names[label] for label in lost], len(held))
    return tuple(files[i] for i in kept.tolist()), tuple(files[i] for i in held.tolist())


def read_pictures(  # what to read, how, and two parts of a message
    files: Sequence[Path],
    form: PictureForm,
    shape: tuple[int, int],
    root: Path,
    odd: Callable[[int, int], str],
    hint: str = "images must have one size: give size= (--image-size) to stretch them all",
    lost: dict[Path, str] | None = None,
) -> Array:
    """All pictures as (n, height, width) or (n, height, width, 3), in the form's dtype; losses are reported.

    `odd` says what is wrong with a picture of another height and width than `shape`, `hint` what to do. Raises one
    DataError for all files that cannot be read, or else for all of another shape; with `lost` both are left out, and
    noted there.
    """
    pixels = np.empty((len(files), *shape, *((3,) if form.channels == 3 else ())), form.pixels)
    rows = iter(pixels)
    wrong: list[str] = []

    def read(path: Path) -> bool:
        found = read_picture(path, form)
        height, width = found.array.shape[:2]
        if (height, width) == shape:
            next(rows)[...] = found.array
        elif lost is not None:
            raise DataError(f"{path}: {odd(height, width)}; {hint}")
        else:
            wrong.append(f"{path}: {odd(height, width)}")
        return found.transparent

    transparent = for_all(files, read, lost)
    if wrong:
        raise DataError(f"{listed(wrong)}; {hint}")
    if any(transparent):
        some = _of(sum(transparent), len(transparent), "is")
        report(f"{root}: {some} transparent, in parts at least, and laid on white")
    return pixels[: len(transparent)]


def _form(headers: list[Header], size: int | None, given: PictureForm | None) -> PictureForm:
    stretch = (int(size), int(size)) if size else None
    if given is not None:
        return PictureForm(given.channels, given.pixels, stretch or given.size)
    channels = 1 if all(header.grey for header in headers) else 3
    return PictureForm(channels, "float32" if any(header.deep for header in headers) else "uint8", stretch)


def report_lost(root: Path, files: Sequence[Path], headers: list[Header], form: PictureForm) -> None:
    """Say which files are converted, and what of them is left out."""
    count = len(files)
    grey, deep, halved = (sum(getattr(each, name) for each in headers) for name in ("grey", "deep", "halved"))
    if form.channels == 3 and 0 < grey < count:
        report(f"{root}: {_of(grey, count, 'is')} grey, and others have colour or a palette: all are read as colour")
    if form.channels == 1 and grey < count:
        report(f"{root}: {_of(count - grey, count, 'has')} colour, which is turned to grey, as in training")
    if form.pixels == "float32" and deep < count:
        report(f"{root}: {_of(deep, count, 'has')} 16 bits, and others 8: all are read as floats, 0 to 1")
    if form.pixels == "uint8" and deep:
        report(f"{root}: {_of(deep, count, 'has')} 16 bits, of which 8 are kept (divided by 257), as in training")
    if halved:
        report(
            f"{root}: {_of(halved, count, 'has')} 16 bits for each colour (or some more than 8), "
            "of which the upper 8 are read"
        )
    pages = [(path, header.pages) for path, header in zip(files, headers, strict=True) if header.pages > 1]
    if pages:
        left = sum(number - 1 for _, number in pages)
        named = ", ".join(f"{path.name} has {number:,}" for path, number in pages[:3]) + ", ..." * (len(pages) > 3)
        report(
            f"{root}: of {counted(len(pages), 'file')} with several pages or frames ({named}) only the first is read: "
            f"{counted(left, 'page')} left out"
        )


def _of(some: int, count: int, verb: str) -> str:
    """`1 of 20 images has`, `2 of 20 images have`."""
    return f"{some:,} of {counted(count, 'image')} {verb if some == 1 else {'is': 'are', 'has': 'have'}[verb]}"


def _check_memory(root: Path, count: int, shape: tuple[int, ...], form: PictureForm) -> None:
    """Refuse a set that this machine cannot hold before most of it is decoded."""
    need = count * int(np.prod(shape)) * (4 if form.pixels == "float32" else 1)
    there = free_memory()
    if there is not None and 2 * need > there:  # twice: while the array becomes a tensor
        raise DataError(
            f"{root}: {counted(count, 'image')} of {shape[1]} x {shape[0]} pixels take {need / 2**30:,.1f} GiB, twice "
            f"that while they are read, and {there / 2**30:,.1f} GiB of memory are free; give size= (--image-size) to "
            "shrink them"
        )


def _read(files: Listing, *, form: PictureForm, shape: tuple[int, int], first: Path, root: Path) -> tuple[Array, Array]:
    """Pixels (n, height, width) or (n, height, width, 3), uint8 or float32, and labels (n,)."""

    def odd(height: int, width: int) -> str:
        return f"{width} x {height} pixels, but {first.name} has {shape[1]} x {shape[0]}"

    pixels = read_pictures([path for path, _ in files], form, shape, root, odd)
    return pixels, np.array([label for _, label in files], np.int64)
