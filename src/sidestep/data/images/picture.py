"""Data as pictures: a grid of labelled images in one PNG."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sidestep.data.check import Array
from sidestep.data.splits import Split
from sidestep.errors import CheckpointError, DataError, InputError
from sidestep.files import write_bytes
from sidestep.keywords import known_keywords
from sidestep.wording import spelled

__all__ = ["grid"]

CELL = 1.05  # inches for each picture
LONGEST = 22  # characters of a class name that stay readable above one


@known_keywords()
def grid(split: Split, class_names: tuple[str, ...], path: str | Path, rows: int = 4, columns: int = 8) -> Path:
    """Write rows x columns images as one PNG, each under its class name, and return its path.

    The first image of every class comes first, then the second of every class, and so on, so that no class is
    missed where there is room. Float images are scaled from their least to their greatest value; flat vectors
    are shown as a square where they fill one. Raises InputError for a wrong argument, DataError if the file
    cannot be written.
    """
    path = Path(path)
    if rows < 1 or columns < 1 or not len(split):
        raise InputError(f"a grid needs at least one row, column and image, got {rows}, {columns} and {len(split)}")
    if path.suffix.lower() != ".png":
        raise InputError(f"the picture is written as PNG, so its name must end in .png, got {path.name!r}")
    chosen = _by_turns(split.targets)[: rows * columns]
    labels = split.labels[chosen].tolist()
    if max(labels) >= len(class_names):
        raise InputError(f"label {max(labels)} has no name: {len(class_names)} class names were given")
    pictures = _displayable(split.images[chosen])
    _draw(pictures, [class_names[label] for label in labels], path, rows, columns)
    return path


def _by_turns(labels: Tensor) -> Tensor:
    """Indices with the classes taking turns: by rank within the class, then by class."""
    by_class = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels), device=labels.device) - starts[labels[by_class]]
    return by_class[rank.argsort(stable=True)]


def _displayable(images: Tensor) -> Array:
    """Pixels (n, height, width) of grey or (n, height, width, 3 or 4) of colour, uint8 or floats of 0..1."""
    pixels = images.detach().cpu().numpy()
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = (pixels - low) / ((high - low) or 1.0)
    count, channels, height, width = pixels.shape
    side = round(width**0.5)
    if channels == 1 and height == 1 and side * side == width:
        return pixels.reshape(count, side, side)
    return pixels[:, 0] if channels == 1 else pixels.transpose(0, 2, 3, 1)


def _draw(pictures: Array, titles: list[str], path: Path, rows: int, columns: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = max(map(len, titles))
    figure = Figure(figsize=(columns * CELL, rows * (CELL + 0.2)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    white = 255 if pictures.dtype == np.uint8 else 1.0
    for axis, picture, title in zip(axes, pictures, titles, strict=False):
        short = title if len(title) <= LONGEST else title[: LONGEST - 1] + "…"
        axis.imshow(picture, cmap="gray", vmin=0, vmax=white, interpolation="nearest")
        axis.set_title(spelled(short), fontsize=8 if longest <= 12 else 5.5, pad=2, parse_math=False)
    picture_bytes = io.BytesIO()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for such a letter
            figure.savefig(picture_bytes, format="png")
        write_bytes(path, picture_bytes.getvalue())  # whole or not at all, and never through a link
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    except CheckpointError as error:
        raise DataError(str(error)) from error
