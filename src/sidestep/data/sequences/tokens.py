"""Rows of token ids, with a class for each row or the next token at each place; text cut into such rows."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidestep.data.check import Array, as_array
from sidestep.data.cut import check_validation, cut_rows
from sidestep.data.labels import check_targets
from sidestep.data.objective import IGNORED
from sidestep.data.rows import is_mapped, stored
from sidestep.data.splits import DataSet, Split
from sidestep.data.tables.columns import data_set, target_tensor
from sidestep.errors import DataError, InputError
from sidestep.keywords import known_keywords

__all__ = ["from_file", "from_text", "from_tokens", "target_ids", "token_tensor"]

_MOST = 1 << 31  # token ids


def token_tensor(ids: Array, vocabulary: int, where: str) -> Tensor:
    """Token ids, (n, length) integers from 0 to vocabulary - 1, as int64 of their own; raises DataError for others."""
    if ids.dtype.kind not in "ui" or ids.ndim != 2 or 0 in ids.shape:
        raise DataError(f"{where}: need token ids, integers of shape (n, length), got {ids.dtype} of shape {ids.shape}")
    wrong = (ids < 0) | (ids >= vocabulary)
    if bool(wrong.any()):
        row, place = (int(index) for index in np.argwhere(wrong)[0])
        raise DataError(
            f"{where}: token ids must be 0 to {vocabulary - 1}, for a vocabulary of {vocabulary:,}, got "
            f"{ids[row, place]} in row {row} at place {place}; give the vocabulary that the ids were made with"
        )
    return torch.from_numpy(ids.astype(np.int64))


@known_keywords()
def from_tokens(  # long: two splits, and what they mean
    x_train: Any,
    y_train: Any = None,
    x_test: Any = None,
    y_test: Any = None,
    *,
    vocabulary: int | Sequence[str],
    targets: str = "tokens",
    padding: int | None = None,
    class_names: Sequence[str] | None = None,
    validation: float = 0.1,
    name: str = "tokens",
) -> DataSet:
    """A data set of rows of token ids; those of a read-only memory map stay in their file, and are read in batches.

    Without `y_train` the target at each place is the token that follows: of rows (N, length + 1) the inputs are all
    but the last, and the targets all but the first.

    Args:
        x_train: ids, (N, length) integers; shorter rows end in `padding`.
        y_train: (N, length) ids for `targets = tokens`, or what the kind of targets asks for (see `from_arrays`).
        x_test: as x_train, or None.
        y_test: as y_train.
        vocabulary: how many ids there are, or what they stand for.
        targets: tokens, one for each place, or classes, labels, values, one row for each row.
        padding: the id that fills rows; as a target it does not count. The model has to leave it out by itself.
        class_names: of classes, labels or values; numbered by default.
        validation: share of the train rows that is held out, from 0 to 0.5.
        name: of the set.

    Raises:
        DataError: for ids beyond the vocabulary, or targets of another kind.

    >>> from_tokens([[0, 1, 2, 1], [2, 1, 0, 0]], vocabulary=3, validation=0)
    DataSet('tokens', 2 train + 0 validation rows of 3 tokens, 3 tokens)
    """
    check_targets(targets, "tokens", "classes", "labels", "values")
    check_validation(validation)
    words = tuple(map(str, range(vocabulary))) if isinstance(vocabulary, int) else tuple(map(str, vocabulary))
    if not 2 <= len(words) < _MOST:
        raise InputError(f"a vocabulary has two tokens or more, got {len(words)}")
    read = partial(_rows, words=words, targets=targets, padding=padding)
    whole = read(x_train, y_train, f"{name}: train")
    kept, aside = cut_rows(whole, validation)
    test = read(x_test, y_test, f"{name}: test") if x_test is not None else None
    if test is not None and test.image_shape != kept.image_shape:
        raise DataError(f"{name}: test rows have {test.image_shape[0]} tokens, those of train {kept.image_shape[0]}")
    outputs = words if targets == "tokens" else _outputs(whole.targets, class_names, targets, name)
    return replace(data_set(name, kept, aside, test, outputs, targets), vocabulary=len(words))


@known_keywords()
def from_text(
    text: str, *, length: int = 64, validation: float = 0.1, test: float = 0.1, name: str = "text"
) -> DataSet:
    """A data set of the characters of a text, each to be told from those before it in a window of `length`.

    Validation and test are the last parts of the text, so that no window of train has been seen there. Windows follow
    each other without overlap.

    >>> from_text("to be or not to be, that is the question", length=4, test=0)
    DataSet('text', 8 train + 0 validation rows of 4 tokens, 14 tokens)
    """
    if not isinstance(text, str) or not isinstance(length, int) or length < 1:
        raise InputError("from_text takes a text and a length of at least 1 character")
    for share in (validation, test):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 0.5:
            raise InputError(f"validation and test must be shares of the text from 0 to 0.5, got {share!r}")
    words = tuple(sorted(set(text)))
    number = {word: index for index, word in enumerate(words)}
    ids = torch.tensor([number[sign] for sign in text], dtype=torch.int64)
    ends = [0, round(len(ids) * (1 - validation - test)), round(len(ids) * (1 - test)), len(ids)]
    parts = [_windows(ids[a:b], length) for a, b in pairwise(ends)]
    if not len(parts[0]) or len(words) < 2:
        raise DataError(f"{name}: a text of {len(text):,} characters has no window of {length} to train on")
    return data_set(name, parts[0], parts[1], parts[2] if test else None, words, "tokens")


def from_file(path: Path, validation: float = 0.1) -> DataSet:
    """A data set of the characters of a UTF-8 file, in windows of 64; see `from_text`."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start:,}): write it in UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return from_text(text, validation=validation, name=path.stem)


def _windows(ids: Tensor, length: int) -> Split:
    count = max(0, len(ids) - 1) // length
    inputs, targets = ids[: count * length], ids[1 : count * length + 1]
    return Split(inputs.view(count, length).clone(), targets.view(count, length).clone())


def _rows(  # long: arrays, and what they mean
    inputs: Any, wanted: Any, where: str, *, words: tuple[str, ...], targets: str, padding: int | None
) -> Split:
    given = as_array(inputs, f"{where} tokens")
    if is_mapped(given):
        return _mapped_rows(given, wanted, where, len(words), targets, padding)
    ids = token_tensor(given, len(words), f"{where} tokens")
    if targets != "tokens":
        if wanted is None:
            raise InputError(f"{where}: targets that are {targets} have to be given")
        return Split(ids, target_tensor(as_array(wanted, f"{where} targets"), len(ids), targets, f"{where} targets"))
    if wanted is None:
        if ids.shape[1] < 2:
            raise DataError(f"{where}: a row needs two tokens or more, so that one follows another")
        ids, following = ids[:, :-1].clone(), ids[:, 1:].clone()
    else:
        following = target_ids(as_array(wanted, f"{where} targets"), f"{where} targets", len(words), None)
        if following.shape != ids.shape:
            raise DataError(
                f"{where}: need one target for each token, got shape {tuple(following.shape)} for {tuple(ids.shape)}"
            )
    if padding is not None:
        following[following == padding] = IGNORED
    return Split(ids, following)


def _mapped_rows(  # long: arrays, and what they mean
    ids: Array, wanted: Any, where: str, vocabulary: int, targets: str, padding: int | None
) -> Split:
    """The same of ids in a read-only memory map, which stay in their file."""
    known = partial(_known, vocabulary=vocabulary)
    if targets != "tokens":
        if wanted is None:
            raise InputError(f"{where}: targets that are {targets} have to be given")
        labels = target_tensor(as_array(wanted, f"{where} targets"), len(ids), targets, f"{where} targets")
        return Split(stored(ids, known, f"{where} tokens"), labels)
    if wanted is None:
        if ids.ndim == 2 and ids.shape[1] < 2:
            raise DataError(f"{where}: a row needs two tokens or more, so that one follows another")
        ids, following = (ids[:, :-1], ids[:, 1:]) if ids.ndim == 2 else (ids, ids)
    else:
        following = as_array(wanted, f"{where} targets")
        if following.shape != ids.shape:
            raise DataError(f"{where}: need one target for each token, got shape {following.shape} for {ids.shape}")
    kept = stored(ids, known, f"{where} tokens")
    found = stored(following, partial(target_ids, vocabulary=vocabulary, padding=padding), f"{where} targets")
    return Split(kept, found)


def _known(ids: Array, where: str, vocabulary: int) -> Tensor:
    return token_tensor(ids, vocabulary, where)


def target_ids(given: Array, where: str, vocabulary: int, padding: int | None) -> Tensor:
    """Ids as targets, of which those that do not count, and padding, are IGNORED."""
    ignored = given == IGNORED
    following = token_tensor(np.where(ignored, 0, given) if ignored.any() else given, vocabulary, where)
    following[torch.from_numpy(np.asarray(ignored))] = IGNORED
    if padding is not None:
        following[following == padding] = IGNORED
    return following


def _outputs(labels: Tensor, names: Sequence[str] | None, targets: str, where: str) -> tuple[str, ...]:
    count = int(labels.max()) + 1 if targets == "classes" else labels.shape[1]
    if names is not None and len(names) < count:
        raise DataError(f"{where}: the targets ask for {count} names, got {len(names)}")
    return tuple(names) if names is not None else tuple(map(str, range(count)))
