"""One picture file: what its header says, and its pixels as a net gets them, the same in training and prediction.

A file is untrusted: only regular files are opened, only by decoders of the formats below (others of Pillow's start
programs, such as Ghostscript for EPS), and only pictures that the header says are of a bearable size.
"""

import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sidestep.data.check import Array
from sidestep.data.splits import PictureForm
from sidestep.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "MOST_PIXELS", "Header", "Pixels", "for_all", "listed", "read_header", "read_picture"]

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM")
MOST_PIXELS = 50_000_000  # of one picture
NAMED = 10  # files in one message
GREY = ("1", "L", "LA", "La")
FIX = f"remove what is no image, and save the others again (formats: {', '.join(FORMATS)})"

T = TypeVar("T")


@dataclass(frozen=True)
class Header:
    """What a file's header says of the picture, whose pixels are still to be decoded."""

    grey: bool
    deep: bool  # 16 bits of grey: kept, in floats
    halved: bool  # more than 8 bits a colour, of which Pillow's decoders give 8
    pages: int  # or frames


@dataclass(frozen=True)
class Pixels:
    """A decoded picture: (height, width) or (height, width, 3), uint8 or float32 from 0 to 1."""

    array: Array
    transparent: bool  # it was not opaque everywhere, and now lies on white


def read_header(path: Path) -> Header:
    """What the header says; raises DataError, `PATH: what is wrong`, for what is no picture or too large."""
    with _opened(path) as image:
        deep = _is_deep(image)
        return Header(
            grey=image.mode in GREY or deep,
            deep=deep,
            halved=not deep and any(map(_is_halved, getattr(image, "tile", ()))),
            pages=int(getattr(image, "n_frames", 1)),
        )


def read_picture(path: Path, form: PictureForm) -> Pixels:
    """The picture in the given form: its first page, upright, its palette looked up, on white where it is
    transparent.

    16 bits are v / 65535 as floats, or round(v / 257) as bytes; 8 bits are v / 255 as floats. Grey is Pillow's, the
    luma of ITU-R 601; colour profiles are not applied. A stretch is bilinear (Pillow's, which averages when it
    shrinks). Raises DataError, `PATH: what is wrong`, if the file cannot be read whole.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        deep = _is_deep(image)
        image.load()
        upright = ImageOps.exif_transpose(image)
        if deep:
            return Pixels(_deep_array(upright, form), transparent=False)
        opaque = _on_white(upright)
        array: Array = np.asarray(_stretch(_in_mode(opaque, "L" if form.channels == 1 else "RGB"), form.size))
    floats = form.pixels == "float32"
    return Pixels(array.astype(np.float32) / 255 if floats else array, transparent=opaque is not upright)


def _deep_array(image: "Image", form: PictureForm) -> Array:
    from PIL import Image

    floats = Image.fromarray(np.asarray(image).astype(np.float32) / 65535)
    array: Array = np.asarray(_stretch(floats, form.size), np.float32)
    if form.pixels == "uint8":
        array = np.rint(array * 255).astype(np.uint8)
    return array if form.channels == 1 else np.repeat(array[..., None], 3, axis=2)


def for_all(files: Iterable[Path], read: Callable[[Path], T], lost: dict[Path, str] | None = None) -> list[T]:
    """What `read` returns for each file; raises one DataError that names every file it has failed on.

    With `lost` these are left out, and what is wrong with each is noted there.
    """
    found: list[T] = []
    wrong: list[str] = []
    for path in files:
        try:
            found.append(read(path))
        except DataError as error:
            if lost is None:
                wrong.append(str(error))
            else:
                lost[path] = str(error)
    if wrong:
        raise DataError(f"{listed(wrong)}; {FIX}")
    return found


def listed(wrong: Sequence[str]) -> str:
    """What is wrong with each of some files as one clause: the first ten of them, and how many there are.

    >>> listed(["a: no image"]), listed(["a: no image", "b: no image"])
    ('a: no image', '2 files: a: no image; b: no image')
    """
    more = f"; and {len(wrong) - NAMED:,} more" if len(wrong) > NAMED else ""
    return (f"{len(wrong):,} files: " if len(wrong) > 1 else "") + "; ".join(wrong[:NAMED]) + more


@contextmanager
def _opened(path: Path) -> Iterator["Image"]:
    """The opened image, not yet decoded; everything that goes wrong with it becomes a DataError."""
    from PIL import Image, UnidentifiedImageError

    try:
        _check_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd in metadata that are not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_formats()) as image:
                _check_kind(path, image)
                yield image
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"{path}: more than {MOST_PIXELS:,} pixels, the most that are read") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image in a format that is read here") from None
    except Exception as error:  # a decoder on untrusted bytes: anything may come out of it
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: not an image that can be read ({reason})") from error


def _check_regular(path: Path) -> None:
    """A pipe or a device would be waited for, or read from, for ever."""
    if path.is_dir():
        raise DataError(f"{path}: a folder among the images of a class")
    if not stat.S_ISREG(path.stat().st_mode):  # follows links
        raise DataError(f"{path}: not a regular file (a pipe, a socket or a device)")


def _check_kind(path: Path, image: "Image") -> None:
    if image.width * image.height > MOST_PIXELS:
        raise DataError(
            f"{path}: {image.width} x {image.height} pixels, more than the {MOST_PIXELS:,} that are read; shrink it"
        )
    if image.mode[0] in "IF" and not _is_deep(image):
        raise DataError(
            f"{path}: pixels of 32 bits (mode {image.mode}), which do not say what is black and what white; "
            "save it with 8 or 16 bits, or give the set as arrays in a .npz file"
        )


def _is_deep(image: "Image") -> bool:
    """Whether it holds 16 bits of grey, 65535 for white; releases of Pillow before 11.3 give those of a PNG mode I."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _is_halved(tile: Any) -> bool:
    """Whether a part of a picture has more than 8 bits a colour: `RGB;16B`, or in a PPM more than 255 for white."""
    codec, *_, details = tile
    return ";16" in str(details) or (str(codec).startswith("ppm") and details[-1] > 255)


def _formats() -> tuple[str, ...]:
    """Those of the formats that this build of Pillow has."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _on_white(image: "Image") -> "Image":
    """The same image where all of it is opaque, else what it looks like on white paper."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    clear = image.convert("RGBA")
    lowest = clear.getchannel("A").getextrema()[0]
    if isinstance(lowest, (int, float)) and lowest == 255:
        return image
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)


def _in_mode(image: "Image", mode: str) -> "Image":
    return image.convert("RGB").convert(mode) if image.mode == "CMYK" else image.convert(mode)


def _stretch(image: "Image", size: tuple[int, int] | None) -> "Image":
    from PIL import Image

    return image if size is None else image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
