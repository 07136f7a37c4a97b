"""Data sets in one `.npz` file, with the keys that Keras, MedMNIST or their like use; arrays are read one by one when
needed.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sidestep.data.check import Array
from sidestep.data.labels import class_names_from
from sidestep.data.notices import report
from sidestep.data.npz_file import npz_array, npz_members
from sidestep.data.source import Reader, Source
from sidestep.errors import DataError

__all__ = ["npz_source", "roles"]

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
PARTS = {"images": ("x", "images", "image", "data"), "labels": ("y", "labels", "label", "targets", "target")}
ROLES = {  # x_train, trainX and training-images alike, without what is no letter
    word: (split, part)
    for split, split_words in SPLITS.items()
    for part, part_words in PARTS.items()
    for one in split_words
    for other in part_words
    for word in (one + other, other + one)
}
NAMES = ("classnames", "labelnames", "targetnames")

Keys = dict[str, dict[str, str]]  # split -> images, labels -> the key in the file


def npz_source(name: str, paths: tuple[Path, ...], class_names: tuple[str, ...] | None) -> Source:
    """A `.npz` with Keras keys (x_train, y_train, x_test, y_test) or MedMNIST keys (train_images,
    train_labels, val_*, test_*), in capitals or not: the validation split is the file's own where it has one (x_val,
    x_valid, val_images and so on), and test may be missing.

    An array `class_names` of strings in the file names the classes. Arrays that have no such name are reported, and not
    used. Raises DataError.
    """
    (path,) = paths
    keys, name_key = roles(path, *npz_members(path))
    if class_names is None and name_key is not None:
        class_names = class_names_from(npz_array(path, name_key), str(path))
    return Source(
        name,
        train=_reader(path, keys["train"]),
        validation=_reader(path, keys["validation"]) if "validation" in keys else None,
        test=_reader(path, keys["test"]) if "test" in keys else None,
        class_names=class_names,
        checks_test=True,
    )


def roles(path: Path, arrays: Sequence[str], others: Sequence[str]) -> tuple[Keys, str | None]:
    """What each array of a file, or of a folder, is for, and the key of the class names, if any; the others are
    reported.

    Args:
        path: where they are, for errors.
        arrays: their names.
        others: names of what else lies there.
    """
    keys: Keys = {}
    name_key: str | None = None
    unused = list(others)
    for key in arrays:
        word = "".join(sign for sign in key.lower() if sign.isalnum())
        if word in NAMES:
            _check_one(path, "class names", name_key, key)
            name_key = key
        elif word in ROLES:
            split, part = ROLES[word]
            _check_one(path, f"{split} {part}", keys.setdefault(split, {}).get(part), key)
            keys[split][part] = key
        else:
            unused.append(key)
    if "train" not in keys or any(len(pair) < 2 for pair in keys.values()):
        alone = next((next(iter(pair.values())) for pair in keys.values() if len(pair) < 2), None)
        raise DataError(
            f"{path}: {f'{alone} stands alone: ' if alone else ''}needs x_train and y_train (with x_test and y_test, "
            "x_val and y_val), or train_images and train_labels (with val_images, val_labels, test_images and "
            f"test_labels); found {_listed([*arrays, *others]) or 'none'}"
        )
    if unused:
        used = [key for pair in keys.values() for key in pair.values()] + ([name_key] if name_key else [])
        report(f"{path}: not used: {_listed(unused)}; used are {_listed(used)}")
    return keys, name_key


def _check_one(path: Path, what: str, earlier: str | None, key: str) -> None:
    if earlier is not None:
        raise DataError(f"{path}: {earlier} and {key} are both {what}; keep one of them, or name the other otherwise")


def _listed(names: list[str]) -> str:
    found = sorted(names)
    return ", ".join(name[:80] for name in found[:12]) + (f" and {len(found) - 12:,} more" if len(found) > 12 else "")


def _reader(path: Path, pair: dict[str, str]) -> Reader:
    return partial(_pair, path, pair["images"], pair["labels"])


def _pair(path: Path, image_key: str, label_key: str) -> tuple[Array, Array]:
    return npz_array(path, image_key), npz_array(path, label_key)
