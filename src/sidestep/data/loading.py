"""One door for all data: a known name, a `.npz` file, a table or a text in a file, an image folder, or arrays."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from sidestep.data.check import Array, as_array
from sidestep.data.default_folder import default_folder
from sidestep.data.download import fetch, find_local
from sidestep.data.images.catalogue import KNOWN, Known
from sidestep.data.images.folder import folder_source
from sidestep.data.images.npz import npz_source
from sidestep.data.labels import check_targets, class_names_from
from sidestep.data.npy_folder import holds_arrays, npy_source
from sidestep.data.rows import is_mapped
from sidestep.data.sequences.tokens import from_file
from sidestep.data.source import Source, assemble
from sidestep.data.splits import DataSet, PictureForm
from sidestep.data.tables.file_set import file_set
from sidestep.data.tables.files import is_table_file
from sidestep.data.tables.form import TableForm
from sidestep.data.tables.mapping import mapping_set
from sidestep.errors import DataError, InputError
from sidestep.keywords import known_keywords
from sidestep.wording import meant

__all__ = ["from_arrays", "load"]


@known_keywords()
def load(
    name_or_path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    validation: float = 0.1,
    size: int | None = None,
    form: PictureForm | TableForm | None = None,
    progress: bool = False,
    targets: str = "auto",
    target: str | None = None,
) -> DataSet:  # long: a name or a path, and what may be said of each
    """A data set by name (see `names`), or from a path to a `.npz` file, to a table (`.csv`, `.tsv`, `.parquet`), to
    a text (`.txt`: the next characters are the targets, see `from_text`), or to a folder with one folder per class.

    data_dir (by default what the variable SIDESTEP_DATA names) is looked in first for NAME.npz (bloodmnist_64.npz
    for another size) and for the original files, also in data_dir/NAME; only what is not there is downloaded, into
    the user's cache. `validation` of train, at most half, is held out unless the set has a validation split of its
    own. `size` chooses among a known set's sizes, or stretches the images of a folder, which `form` reads as those
    of another set were (grey or colour, bytes or floats, stretched or not); bloodmnist without it takes the
    smallest size found in data_dir, else 28. `targets` says what the targets in a .npz file are: classes (auto),
    labels (several for an example) or values (real numbers). Of a table `target` names the column to be predicted;
    auto takes texts and up to 20 different whole numbers for classes, other numbers for values; `form` encodes the
    columns as those of another set were. Raises DataError for data that are missing or wrong,
    InputError for a wrong argument.

    >>> load("digits", validation=0.2)
    DataSet('digits', 1150 train + 287 validation images of 1 x 8 x 8, 10 classes)
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise InputError(
            f"give the name of a data set or a path, got {type(name_or_path).__name__}; arrays become a data set with "
            "from_arrays(images, labels)"
        )
    name = os.fspath(name_or_path)
    asked: dict[str, float] = {"validation": float(validation)} if isinstance(validation, Real) else {}
    asked |= {"size": size} if size is not None else {}
    text = name not in KNOWN and name.endswith(".txt")
    if targets != "auto" and not (text and targets == "tokens"):
        check_targets(targets, "classes", "labels", "values")
    if text and target is None and _place(name)[2]:
        return _text(_place(name)[0], validation, size, targets, asked)
    table = name not in KNOWN and is_table_file(Path(name))
    if target is not None and not table:
        raise InputError(f"target={target!r} names a column of a table (.csv, .tsv, .parquet), and {name} is none")
    if table:
        return _table(name, target, targets, validation, size, form)
    targets = "classes" if targets == "auto" else targets
    if name in KNOWN:
        if targets != "classes":
            raise InputError(f"the targets of {name} are classes, so that targets={targets!r} does not fit")
        if data_dir is None and KNOWN[name].download != "nothing":
            data_dir = default_folder()
        found = assemble(known_source(KNOWN[name], data_dir, size, progress), validation)
        folder = {"data_dir": os.path.abspath(Path(data_dir).expanduser())} if data_dir is not None else {}
        return replace(found, source={"name": name, **folder, **asked})
    path, source = _source(name, size, form if isinstance(form, PictureForm) else None)
    if targets != "classes" and source.pictures is not None:
        raise InputError(f"the targets of a folder are its classes, so that targets={targets!r} does not fit")
    kind = {"targets": targets} if targets != "classes" else {}
    found = assemble(replace(source, targets=targets), validation)
    return replace(found, source={"name": os.path.abspath(path), **asked, **kind})


def _table(
    name: str,
    target: str | None,
    targets: str,
    validation: float,
    size: int | None,
    form: PictureForm | TableForm | None,
) -> DataSet:
    """The set of a table in a file, with what it is loaded again by."""
    if size is not None:
        raise InputError(f"size={size} is for known sets and image folders, and {name} is a table")
    path = _place(name)[0]
    found = file_set(path, target, targets, validation, form if isinstance(form, TableForm) else None)
    asked = {"validation": float(validation), "targets": found.targets}
    record = found.table.record() if found.table else {}
    return replace(found, source={"name": os.path.abspath(path), **asked, **record})


def _text(path: Path, validation: float, size: int | None, targets: str, asked: Mapping[str, float]) -> DataSet:
    """A text in a file, each of whose characters is to be told from those before it."""
    if targets not in ("auto", "tokens"):
        raise InputError(f"the targets of a text are its next characters, so that targets={targets!r} does not fit")
    if size is not None:
        raise InputError(f"size={size} is for known sets and image folders, and {path} is a text")
    return replace(from_file(path, validation), source={"name": os.path.abspath(path), **asked})


def _source(name: str, size: int | None, form: PictureForm | None) -> tuple[Path, Source]:
    """The path, and what lies there."""
    path, is_folder, is_file = _place(name)
    if is_folder and holds_arrays(path):
        if size is not None:
            raise InputError(f"size={size} is for known sets and image folders; arrays in .npy files stay as they are")
        return path, npy_source(path.resolve().name, path)
    if is_folder:
        return path, folder_source(path.resolve().name, path, size, form)
    if path.suffix == ".npz" or is_file:
        if is_file and path.suffix != ".npz":
            raise DataError(
                f"{path}: a data file must be .npz, .csv, .tsv, .parquet or .txt; write arrays with numpy.savez(path, "
                "x_train=..., ...)"
            )
        if size is not None:
            raise InputError(f"size={size} is for known sets and image folders; images in a .npz file stay as they are")
        return path, npz_source(path.stem, (path,), None)
    raise DataError(_unknown(name))


@known_keywords()
def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any = None,
    y_test: Any = None,
    *,
    validation: float = 0.1,
    name: str = "arrays",
    class_names: Sequence[str] | None = None,
    targets: str = "classes",
) -> DataSet:
    """A data set from arrays or tensors in memory, which are copied, or from memory-mapped files, which are not.

    What `numpy.load(path, mmap_mode="r")` or a read-only `numpy.memmap` gives as inputs stays in its file, and is read
    in batches; the file must not change while it is used.

    Images: (N, H, W), (N, H, W, C), (N, C, H, W) with C of 1, 3 or 4 (channels are taken to be last where
    both could be); uint8, integers of 0..255, or finite floats, which stay in their own units. Tables: (N, F) numbers,
    scaled by column. Targets by kind: `classes`, integers 0..K-1, (N,) or (N, 1), with every class present unless
    class_names says how many there are; `labels`, (N, K) of 0 and 1, several for an example; `values`, real numbers
    (N,) or (N, K), which nets are trained on in units of their standard deviation. class_names names the columns of
    labels and values, too. A mapping of arrays, `{"ids": ..., "mask": ...}`, with a row of each for every example, is
    given to a whole model by name, unscaled (`train(rule, data, model=...)`); padding and masks are then arrays among
    them, and targets may be `tokens`, too: ids (N, length), of which -100 do not count. Raises DataError for anything
    else, InputError for a wrong argument.

    >>> import numpy
    >>> from_arrays(numpy.zeros((20, 4, 4)), numpy.arange(20) % 2)
    DataSet('arrays', 18 train + 2 validation images of 1 x 4 x 4, 2 classes)
    """
    named = isinstance(x_train, Mapping)
    if not (named and targets == "tokens"):
        check_targets(targets, "classes", "labels", "values")
    if (x_test is None) != (y_test is None):
        raise InputError("x_test and y_test go together: give both or neither")
    if named:
        test = (x_test, y_test) if x_test is not None else None
        return mapping_set(name, (x_train, y_train), test, validation, targets, class_names)
    train = as_array(x_train, f"{name}: train images"), as_array(y_train, f"{name}: train labels")
    arrays = None
    if x_test is not None:
        inputs = as_array(x_test, f"{name}: test images")
        inputs = inputs if is_mapped(inputs) else inputs.copy()
        arrays = inputs, as_array(y_test, f"{name}: test labels").copy()
    source = Source(
        name,
        train=lambda: train,
        test=partial(_given, *arrays) if arrays is not None else None,
        class_names=class_names_from(class_names, name) if class_names is not None else None,
        checks_test=True,
        targets=targets,
    )
    return assemble(source, validation)


def _given(images: Array, labels: Array) -> tuple[Array, Array]:
    return images, labels


def known_source(
    known: Known,
    data_dir: str | os.PathLike[str] | None = None,
    size: int | None = None,
    progress: bool = False,
    cache: Path | None = None,
) -> Source:
    """A known set before it is read: from data_dir where it is there, else from the cache (default: the
    user's own), which is filled from the network.
    """
    if size is not None and size not in known.sizes:
        raise InputError(f"{known.name} has images of {', '.join(map(str, known.sizes))} pixels, got size={size}")
    folder = Path(data_dir).expanduser() if data_dir is not None else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"the data folder {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    if folder is not None:
        for candidate in known.sizes if size is None else (size,):
            path = folder / _npz_name(known, candidate)
            if path.is_file() and known.files[candidate]:
                source = npz_source(known.name, (path,), known.class_names)
                return replace(source, image_shape=known.image_shape(candidate))
    chosen = size if size is not None else known.sizes[0]
    paths = _original_files(known, chosen, folder, progress, cache)
    return replace(known.opener(known.name, paths, known.class_names), image_shape=known.image_shape(chosen))


def _place(name: str) -> tuple[Path, bool, bool]:
    """The path, and whether a folder or a file lies there; raises DataError for what can be no path."""
    try:
        name.encode("utf-8")  # a file name that is no text could not be written into a run's configuration
        path = Path(name).expanduser()
        return path, path.is_dir(), path.is_file()
    except UnicodeEncodeError:
        raise DataError(f"{name!r:.200} is not valid text, which a path must be here; rename the file") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: ~name, where there is no such user
        said = getattr(error, "strerror", None) or error
        raise DataError(f"{name[:200]}: no data can be read there ({said})") from error


def _npz_name(known: Known, size: int) -> str:
    return f"{known.name}.npz" if size == known.sizes[0] else f"{known.name}_{size}.npz"


def _original_files(
    known: Known, size: int, folder: Path | None, progress: bool, cache: Path | None
) -> tuple[Path, ...]:
    remotes = known.files[size]
    if remotes and cache is None:
        import pooch  # imported here, since digits need no network

        cache = Path(pooch.os_cache("sidestep"))
    places = (folder, folder / known.name) if folder is not None else ()
    others = {remote.md5 for other in KNOWN.values() for files in other.files.values() for remote in files}
    paths = []
    for remote in remotes:
        local = find_local(remote, places, others)
        paths.append(local or fetch(remote, (cache or Path()) / known.name, progress=progress))
    return tuple(paths)


def _unknown(name: str) -> str:
    known = ", ".join(KNOWN)
    if os.sep in name or "." in name:
        return f"{name}: no such file or folder; data are a .npz file, a table, a text, a folder, or one of {known}"
    hint = meant(name.lower().replace("_", "-"), KNOWN, cutoff=0.5)
    return (
        f"no data set is called {name!r}, and no folder here either; {hint}known are {known}, or give a path: of a "
        ".npz file, a table (.csv, .tsv, .parquet), a text (.txt) or a folder"
    )
