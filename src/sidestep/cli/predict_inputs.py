"""What `sidestep predict` is given: files, folders, patterns and standard input, as rows that a net takes."""

import glob
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import numpy as np

from sidestep.data import read_named_images
from sidestep.data.images.unlabelled import mapped_images
from sidestep.errors import DataError, InputError, SidestepError
from sidestep.training import Run
from sidestep.training.compatibility import picture_form

__all__ = ["Given", "given_inputs"]

_STDIN = Path("-")
_PATTERN = frozenset("*?[")
_KINDS = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz", b"PAR1": ".parquet"}  # by the first bytes


@dataclass(frozen=True)
class Given:
    """Inputs with a name for each, and what is wrong with each picture that is left out."""

    inputs: Any
    names: Sequence[str]
    noun: str  # image or row
    lost: tuple[str, ...] = ()


class Numbered(Sequence[str]):
    """The names FILE[0], FILE[1] and so on of the images of an array, made when they are asked for."""

    def __init__(self, file: Path, numbers: range) -> None:
        self._file, self._numbers = file, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Numbered": ...

    def __getitem__(self, index: int | slice) -> "str | Numbered":
        if isinstance(index, slice):
            return Numbered(self._file, self._numbers[index])
        return f"{self._file}[{self._numbers[index]}]"


def given_inputs(trained: Run, run: Path, files: Sequence[Path]) -> Given:
    """Return the inputs of all files in their order: pictures and arrays, or rows of tables, as the run was trained on.

    Args:
        trained: the run.
        run: its folder, which says how pictures are read.
        files: pictures, arrays, folders, tables; patterns that the shell has left as they are; `-` for standard input.

    Raises:
        DataError: for a file that is missing, a pattern that no file fits, or where nothing can be read.
        InputError: without files, or for a run that no files fit.
    """
    table = trained.table
    if not files:
        raise InputError("name the images to classify: sidestep predict RUN FILE ..., or a folder of pictures")
    if table is None and (trained.task.inputs != "image" or trained.task.targets != "classes"):
        texts = f"`sidestep generate {run}` writes text; " if trained.task.targets == "tokens" else ""
        raise InputError(
            f"sidestep predict shows the classes of images, and {run} was trained on {trained.task.inputs} with "
            f"{trained.task.targets} as targets; {texts}in Python: sidestep.load_run({str(run)!r}).predict(inputs)"
        )
    found = [path for given in files for path in _matching(given)]
    with _standard_input(found, tables=table is not None) as (paths, spelled):
        if table is not None:
            parts = [table.rows(path).astype(np.float32) for path in paths]
            names = [f"{path}[{row}]" for path, part in zip(paths, parts, strict=True) for row in range(len(part))]
            return Given(np.concatenate(parts), tuple(map(spelled, names)), "row")
        if len(paths) == 1 and paths == found and paths[0].suffix == ".npy" and paths[0].is_file():
            images = mapped_images(paths[0], trained.task.image_shape)  # stay in the file: there may be millions
            return Given(images, Numbered(paths[0], range(len(images))), "image")
        lost: dict[Path, str] = {}
        several = len(paths) > 1 or paths[0].is_dir()
        shape = trained.task.image_shape
        pixels, named = read_named_images(paths, shape, picture_form(run), lost if several else None)
        return Given(pixels, tuple(map(spelled, named)), "image", tuple(map(spelled, lost.values())))


def _matching(given: Path) -> list[Path]:
    """Return the path itself, or the files that a pattern stands for, by name."""
    if given == _STDIN or given.exists() or not _PATTERN & set(str(given)):
        return [given]
    found = [Path(path) for path in sorted(glob.glob(str(given.expanduser()), recursive=True))]
    if not found:
        raise DataError(f"{given}: no file fits this pattern")
    return found


@contextmanager
def _standard_input(paths: list[Path], tables: bool) -> Iterator[tuple[list[Path], Any]]:
    """Yield the paths, with a file of what standard input holds for `-`, and a function that calls it `stdin`."""
    if _STDIN not in paths:
        yield paths, str
        return
    if paths.count(_STDIN) > 1:
        raise InputError("- stands for standard input, which can be read once; give it once")
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("- stands for standard input, which is a terminal here; send a file: ... - < photo.jpg")
    content = sys.stdin.buffer.read()
    if not content:
        raise InputError("- stands for standard input, which is empty; send a file: ... - < photo.jpg")
    suffix = next((kind for start, kind in _KINDS.items() if content.startswith(start)), ".csv" if tables else "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"standard-input{suffix}"
        file.write_bytes(content)
        try:
            with _notices_of(str(file), "stdin"):
                yield (
                    [file if path == _STDIN else path for path in paths],
                    lambda text: text.replace(str(file), "stdin"),
                )
        except SidestepError as error:
            raise type(error)(str(error).replace(str(file), "stdin")) from error


@contextmanager
def _notices_of(file: str, name: str) -> Iterator[None]:
    """Have warnings about a file call it by a name."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        others(category(str(message).replace(file, name)) if file in str(message) else message, category, *where)

    warnings.showwarning = cast("Any", show)
    try:
        yield
    finally:
        warnings.showwarning = others
