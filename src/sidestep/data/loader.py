"""A data set of a loader: a torch `DataLoader`, or any iterable of batches of inputs and targets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sidestep.data.check import Array, as_array, image_tensor
from sidestep.data.feed import Feed
from sidestep.data.images.pixel_scale import moments
from sidestep.data.labels import check_class_names, check_label_range, check_targets, class_names_from
from sidestep.data.named import Named
from sidestep.data.sequences.tokens import target_ids, token_tensor
from sidestep.data.splits import DataSet, Split
from sidestep.data.tables.columns import row_tensor, target_tensor
from sidestep.data.tables.mapping import named_tensors
from sidestep.errors import DataError, InputError
from sidestep.keywords import known_keywords

__all__ = ["from_loader", "is_loader"]

_NO_LOADER = (str, bytes, Mapping, Dataset, Split, DataSet)


def is_loader(given: Any) -> bool:
    """Whether something is a DataLoader or another iterable of batches, and no array, table, mapping or pair of arrays.

    >>> is_loader([(np.zeros((2, 3)), np.zeros(2))]), is_loader((np.zeros((2, 3)), np.zeros(2))), is_loader("digits")
    (True, False, False)
    """
    if isinstance(given, _NO_LOADER) or hasattr(given, "__array__") or hasattr(given, "tensors"):
        return False
    return isinstance(given, DataLoader) or (isinstance(given, Iterable) and not _is_pair(given))


@known_keywords()
def from_loader(  # long: what the batches are, and what belongs to them
    loader: Any,
    *,
    validation: Any = None,
    test: Any = None,
    targets: str = "classes",
    classes: int | Sequence[str] | None = None,
    vocabulary: int | None = None,
    keys: tuple[str, str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    same_order: bool | None = None,
    epoch: int | None = None,
    name: str = "loader",
) -> DataSet:
    """A data set whose training batches come from a loader, in the loader's order and of its sizes.

    The first batch says what all are like: images, tables, rows of token ids (where there is a vocabulary) or mappings
    of arrays, in the forms that `from_arrays` takes. A batch of another form ends the training with its number.

    Args:
        loader: a torch `DataLoader`, or any iterable of (inputs, targets).
        validation: images that are not trained on, kept in memory: a pair of arrays, a split, or another loader.
        test: likewise, for the end.
        targets: classes, labels, values or tokens, as in `from_arrays`.
        classes: how many outputs there are, or their names; by default what the loader's data set or its first batch
            has.
        vocabulary: how many token ids there are; of other inputs None.
        keys: the keys of inputs and targets, where batches are mappings.
        mean, std: of each channel or column, by which inputs are scaled; by default they stay as given (bytes: / 255).
        same_order: whether every pass gives the same batches in the same order, so that a run can be resumed; by
            default where that is known: lists, and a DataLoader that does not shuffle.
        epoch: batches after which the validation images are looked at; by default a pass, where its length is known.
        name: of the set.

    Raises:
        DataError: for a loader that yields nothing, or whose first batch is none.

    >>> from_loader([(np.zeros((4, 3)), np.array([0, 1, 2, 1]))])
    DataSet('loader', batches of 4 rows of 3 features, 3 classes)
    """
    if not is_loader(loader):
        raise InputError(
            f"from_loader takes a DataLoader or another iterable of (inputs, targets), got {type(loader).__name__}; "
            "arrays are for data.from_arrays, a Dataset for DataLoader(dataset, batch_size=...)"
        )
    _check(targets, vocabulary, epoch, classes)
    form = Form(name, targets, vocabulary, keys)
    feed = Feed(loader, form.convert, same_order, name)
    feed.epoch = epoch or feed.length
    inputs, wanted = form.convert(feed.peek(), 1)
    form.outputs = _outputs(form, loader, wanted, classes)
    train = Split(inputs, wanted)
    form.check_range(wanted, f"{name}: batch 1")
    held = _read(form, validation, "validation")
    read = _read(form, test, "test")
    scale = _scale(inputs, mean, std)
    values = moments(wanted) if targets == "values" else None
    return DataSet(
        name, train, held or Split(train.images[:0], train.labels[:0]), form.outputs, *scale,
        read_test=partial(_same, read) if read is not None else None, targets=targets,
        target_mean=values.mean if values else (), target_std=values.std if values else (), feed=feed,
    )  # fmt: skip


@dataclass
class Form:
    """What the batches of a loader are: taken from the first one, and held to by the others."""

    name: str
    targets: str
    vocabulary: int | None
    keys: tuple[str, str] | None
    outputs: tuple[str, ...] = ()
    _known: dict[str, str] = field(default_factory=dict)

    def convert(self, batch: Any, number: int) -> tuple[Any, Tensor]:
        """Raw inputs and targets of a batch; raises DataError for what is none, or is unlike the first one."""
        where = f"{self.name}: batch {number}"
        inputs, wanted = self._pair(batch, where)
        arrays: dict[str, Array] = {"targets": as_array(wanted, f"{where}: targets")}
        named = isinstance(inputs, Mapping)
        if named:
            arrays |= {str(key): as_array(value, f"{where}: {key}") for key, value in inputs.items()}
        else:
            arrays["inputs"] = as_array(inputs, f"{where}: inputs")
        self._check_alike(arrays, where)
        rows = len(arrays["targets"])
        if not rows or any(len(array) != rows for array in arrays.values()):
            said = ", ".join(f"{len(array)} {name}" for name, array in arrays.items())
            raise DataError(f"{where} has {said}, but needs as many targets as inputs, and one at least")
        found: Any = named_tensors(inputs, where) if named else self._inputs(arrays["inputs"], f"{where}: inputs")
        made = self._targets(arrays["targets"], rows, f"{where}: targets")
        if self.outputs:
            self.check_range(made, where)
        return found, made

    def check_range(self, wanted: Tensor, where: str) -> None:
        """Raise DataError for classes beyond those that are known."""
        if self.targets == "classes" and int(wanted.max()) >= len(self.outputs):
            raise DataError(
                f"{where} has the class {int(wanted.max())}, but there are {len(self.outputs)}, 0 to "
                f"{len(self.outputs) - 1}, as the first batch has; say how many there are: data.from_loader(loader, "
                "classes=...)"
            )

    def _pair(self, batch: Any, where: str) -> tuple[Any, Any]:
        if self.keys and isinstance(batch, Mapping):
            missing = [key for key in self.keys if key not in batch]
            if missing:
                raise DataError(f"{where} has no {missing[0]!r}; its keys are {', '.join(map(str, batch))}")
            return batch[self.keys[0]], batch[self.keys[1]]
        if isinstance(batch, list | tuple) and len(batch) == 2 and not self.keys:
            return batch[0], batch[1]
        kind = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, list | tuple) else "")
        hint = "; name the two that count: data.from_loader(loader, keys=(INPUTS, TARGETS))"
        raise DataError(
            f"{where} is {kind}, but must be {'a mapping' if self.keys else '(inputs, targets)'}"
            + hint * (isinstance(batch, Mapping) and not self.keys)
        )

    def _check_alike(self, arrays: Mapping[str, Array], where: str) -> None:
        found = {
            name: f"{array.dtype}{' ' * (array.ndim > 1)}{' x '.join(map(str, array.shape[1:]))}"
            for name, array in arrays.items()
        }
        known = self._known or found
        self._known = known
        if found.keys() != known.keys():
            raise DataError(
                f"{where} has {', '.join(sorted(found))}, but the first one had {', '.join(sorted(known))}; give every "
                "batch the same keys"
            )
        for name, kind in found.items():
            if kind != known[name]:
                raise DataError(
                    f"{where} has {name} of {kind} for each example, but the first one had {known[name]}; give every "
                    "batch the same shape and dtype"
                )

    def _inputs(self, array: Array, where: str) -> Tensor:
        if self.vocabulary is not None:
            return token_tensor(array, self.vocabulary, where)
        return row_tensor(array, where) if array.ndim == 2 else image_tensor(array, where)

    def _targets(self, array: Array, rows: int, where: str) -> Tensor:
        if self.targets == "tokens":
            return target_ids(array, where, self.vocabulary or 0, None)
        return target_tensor(array, rows, self.targets, where)


def _check(targets: str, vocabulary: int | None, epoch: int | None, classes: Any) -> None:
    check_targets(targets, "classes", "labels", "values", "tokens")
    if targets == "tokens" and vocabulary is None:
        raise InputError("targets = tokens needs the number of token ids: give vocabulary=...")
    for name, value in (("vocabulary", vocabulary), ("epoch", epoch), ("classes", classes)):
        if isinstance(value, int) and value < 1:
            raise InputError(f"{name} must be 1 or more, got {value}")


def _outputs(form: Form, loader: Any, wanted: Tensor, classes: int | Sequence[str] | None) -> tuple[str, ...]:
    """A name for each output: as given, as the loader's data set has them, or as many as the first batch needs."""
    if form.targets == "tokens":
        return tuple(map(str, range(form.vocabulary or 0)))
    if form.targets != "classes":
        count = wanted.shape[1]
        given = tuple(map(str, range(count))) if classes is None or isinstance(classes, int) else tuple(classes)
        if len(given) != count:
            raise DataError(f"{form.name}: the targets have {count} columns, but {len(given)} names were given")
        return given
    if isinstance(classes, int):
        return tuple(map(str, range(classes)))
    data_set = getattr(loader, "dataset", None)
    names = classes if classes is not None else getattr(data_set, "classes", None)  # as torchvision's sets have them
    if names is not None:
        found = class_names_from(names, form.name)
        check_class_names(found, form.name)
        return found
    tensors = getattr(data_set, "tensors", None)  # of a TensorDataset: all its labels are at hand
    most = int(tensors[-1].max()) if tensors and tensors[-1].ndim == 1 and len(tensors) == 2 else int(wanted.max())
    if most < 1:
        raise DataError(
            f"{form.name}: every target of the first batch is 0; say how many classes there are: classes=..."
        )
    check_label_range(wanted, most + 1, form.name)
    return tuple(map(str, range(most + 1)))


def _is_pair(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) == 2 and all(hasattr(each, "__array__") for each in given)


def _read(form: Form, given: Any, which: str) -> Split | None:
    """A split that is kept in memory: of a pair of arrays, of a split, or of all batches of a loader."""
    if given is None or isinstance(given, Split):
        return given
    if not (_is_pair(given) or is_loader(given)):
        raise InputError(
            f"{which} must be a pair of arrays, a split or a loader, got {type(given).__name__}; give (inputs, targets)"
        )
    own = Form(f"{form.name}, {which}", form.targets, form.vocabulary, form.keys, form.outputs, dict(form._known))
    if _is_pair(given):
        own.keys = None
        return Split(*own.convert(given, 1))
    parts = [own.convert(batch, number) for number, batch in enumerate(given, start=1)]
    if not parts:
        raise DataError(f"{own.name} yields no batch; is its data set empty, or used up?")
    inputs = [part[0] for part in parts]
    joined = Named.joined(inputs) if isinstance(inputs[0], Named) else torch.cat(inputs)
    return Split(joined, torch.cat([part[1] for part in parts]))


def _same(split: Split) -> Split:
    return split


def _scale(
    inputs: Any, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if isinstance(inputs, Named) or inputs.dtype == torch.int64:
        return (), ()
    channels = inputs.shape[1]
    found = []
    for name, given, usual in (("mean", mean, 0.0), ("std", std, 1.0)):
        numbers = tuple(float(number) for number in np.atleast_1d(given)) if given is not None else (usual,) * channels
        if len(numbers) != channels or not all(map(np.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
            raise InputError(
                f"{name} must be {channels} numbers{' above 0' * (name == 'std')}, one for each channel or column, "
                f"got {numbers}"
            )
        found.append(numbers)
    return found[0], found[1]
