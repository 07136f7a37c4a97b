"""Labels and class names: what is no class of one image each is refused in words that do not lead to wrong data."""

import unicodedata
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidestep.errors import DataError, InputError
from sidestep.wording import meant

__all__ = [
    "NOT_CLASSES",
    "NUMBERED_ALIKE",
    "check_class_names",
    "check_label_range",
    "check_targets",
    "class_names_from",
    "label_tensor",
    "looks_like_numbers",
]

Labels = NDArray[Any]
NUMBERED_ALIKE = (
    "number them alike in all splits: names, y_train = numpy.unique(y_train, return_inverse=True) and "
    "y_test = numpy.searchsorted(names, y_test), with class_names = names"
)
NOT_CLASSES = (
    "numbers to be predicted (regression), for which from_arrays takes targets='values', and sidestep train --targets "
    "values"
)


def check_targets(targets: Any, *kinds: str) -> None:
    """Raise InputError for targets that are none of these kinds."""
    if targets not in kinds:
        hint = meant(str(targets), kinds)
        raise InputError(
            f"targets must be {', '.join(kinds[:-1])} or {kinds[-1]}, got {targets!r}"
            + (f"; {hint[:-1]}" if hint else "")
        )


def label_tensor(labels: Labels, examples: int, where: str) -> Tensor:
    """Labels, integers from 0 of shape (examples,) or (examples, 1), as int64 of shape (examples,).

    Raises DataError for anything else, with what it seems to be: one-hot rows, several labels for an image, numbers to
    be predicted, names.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        wanted = f"{where}: need one integer for each image, (N,) or (N, 1), got shape {labels.shape}"
        raise DataError(f"{wanted}; {_not_one_each(labels, examples)}")
    if len(labels) != examples:
        raise DataError(f"{where}: need one label for each image, got {len(labels)} labels for {examples} images")
    if labels.dtype.kind not in "uib":
        raise DataError(f"{where}: labels must be integers from 0, got {labels.dtype} {_not_integers(labels)}")
    numbers = labels.astype(np.int64)
    if numbers.min() < 0:
        index = int((numbers < 0).argmax())
        raise DataError(
            f"{where}: labels must be integers from 0, got {labels[index]} at index {index}; number the classes from "
            "0, and leave out images that have no class"
        )
    return torch.from_numpy(numbers)


def _not_one_each(labels: Labels, examples: int) -> str:
    """What labels of more than one dimension seem to be, and what can be done."""
    if labels.shape == (1, examples):
        return ".ravel() makes (N,) of it"
    if labels.ndim != 2 or labels.dtype.kind not in "uibf":
        return "several labels for an image are one row of 0 and 1, (N, K), with targets='labels'"
    counts = labels.astype(np.float64).sum(1)
    if bool(np.isin(labels, (0, 1)).all()):
        if bool((counts == 1).all()):
            return "one-hot rows become labels with .argmax(1)"
        row = int((counts != 1).argmax())
        return (
            f"these are several labels per image: row {row} has {int(counts[row])}; give from_arrays "
            "targets='labels', or one class for each image"
        )
    if labels.dtype.kind == "f" and bool((labels >= 0).all()) and np.allclose(counts, 1, atol=1e-3):
        return "rows of probabilities (soft labels) are not supported, only one class for each image"
    return f"several numbers for each image look like {NOT_CLASSES}"


def _not_integers(labels: Labels) -> str:
    """The rest of the sentence on labels of another dtype: the first one, and what can be done."""
    first = labels[0]
    if labels.dtype.kind == "f":
        wrong = ~np.isfinite(labels) | (labels != np.floor(labels))
        if bool(wrong.any()):
            index = int(wrong.argmax())
            if bool((np.isnan(labels) == wrong).all()):
                return f"({labels[index]} at index {index}): leave out images without a label, and number the classes"
            return (
                f"({labels[index]} at index {index}), which is no whole number: these are {NOT_CLASSES} "
                "(.astype('int64') would make classes of them that mean nothing)"
            )
        values = len(np.unique(labels))
        if looks_like_numbers(values, len(labels)):
            return f"with {values} different values for {len(labels)} images: they look like {NOT_CLASSES}"
        return f"({first!r} first); convert them with .astype('int64')"
    if labels.dtype.kind == "O":
        if all(isinstance(label, int | np.integer) for label in labels):
            return f"of integers ({first!r} first); convert them with .astype('int64')"
        if not all(isinstance(label, str | bytes) for label in labels):
            return f"of {type(first).__name__} ({first!r:.80} first); give one integer for each image"
    elif labels.dtype.kind not in "US":
        return f"({first!r:.80} first); give one integer for each image"
    return f"({first!r:.80} first); {NUMBERED_ALIKE}"


def looks_like_numbers(classes: int, examples: int) -> bool:
    """Whether there are so many classes for so few images that they may be numbers to be predicted, not classes."""
    return classes > 20 and examples < 5 * classes


def check_label_range(labels: Tensor, classes: int, where: str) -> None:
    """Raise DataError unless every label is below `classes`."""
    wrong = labels >= classes
    if bool(wrong.any()):
        if int(labels.min()) == 1 and int(labels.max()) == classes:
            raise DataError(
                f"{where}: labels are 1 to {classes}, for {classes} classes, but must be 0 to {classes - 1}: "
                "subtract 1 from them, and from those of the other splits where these begin at 1, too"
            )
        index, others = int(wrong.int().argmax()), int(wrong.sum()) - 1
        raise DataError(
            f"{where}: labels must be 0 to {classes - 1}, for {classes} classes; "
            f"label {int(labels[index])} (index {index}) {f'and {others} more are' if others else 'is'} out of range; "
            "give class_names (in a .npz file: an array of strings) with a name for every class, or without any, "
            "train images of that class"
        )


def class_names_from(values: Any, where: str) -> tuple[str, ...]:
    """Class names as text: strings as they are, bytes read as UTF-8, whole numbers by their digits; see also
    `check_class_names`.

    Raises DataError for what has no order or names nothing: a single string, a dict, a set, fractions, other objects.

    >>> class_names_from(["cat", b"dog", 3], "mine")
    ('cat', 'dog', '3')
    """
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise DataError(f"{where}: class_names must be a list of names, one for each class, got {values!r:.80}")
    if isinstance(values, np.ndarray):
        if values.ndim == 0:
            raise DataError(
                f"{where}: class_names must be a list of names, one for each class, got {values.item()!r:.80}"
            )
        values = values.ravel().tolist()
    return tuple(_name(value, where) for value in values)


def _name(value: Any, where: str) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise DataError(f"{where}: class_names must be text, or bytes in UTF-8, got {value!r:.80}")


def check_class_names(names: tuple[str, ...], where: str) -> None:
    """Raise DataError for a name that is empty, or no text that can be written down, and for two that are equal."""
    if len(names) < 2:
        raise DataError(f"{where}: class_names must name two classes or more, got {len(names)}")
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        try:
            key = unicodedata.normalize("NFC", name.encode("utf-8").decode())
        except UnicodeError:  # a lone surrogate, as file names that are not in UTF-8 have, or beyond Unicode
            raise DataError(f"{where}: the name of class {index}, {name!r:.80}, is not valid text; rename it") from None
        if not name.strip():
            raise DataError(f"{where}: class {index} has no name ({name!r:.80}); give each class one")
        if key in seen:
            raise DataError(
                f"{where}: classes {seen[key]} and {index} have the same name, {name!r:.80}; give each its own, or "
                "give their images one label"
            )
        seen[key] = index
