"""Batches that a loader of the user's hands out one after another, and where in them a run stands."""

import base64
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from sidestep.errors import DataError, InputError
from sidestep.wording import error_text

__all__ = ["BatchError", "Feed"]


class BatchError(DataError):
    """A batch that a loader gave, or did not give, in the middle of a run: what was trained before is saved."""


class Feed:
    """The batches of a loader in their order, pass after pass.

    length: batches in a pass, where the loader says so.
    given: batches handed out so far.
    """

    def __init__(
        self, loader: Any, convert: Callable[[Any, int], tuple[Any, Tensor]], same_order: bool | None, name: str
    ) -> None:
        """Args:
        loader: an iterable of batches.
        convert: a batch as the loader gives it, and its number from 1 -> raw inputs and targets, or DataError.
        same_order: whether every pass gives the same batches in the same order; None: where that is known.
        name: for errors.
        """
        self._loader, self._convert, self._name = loader, convert, name
        self.length, self.given = _length(loader), 0
        self.once = hasattr(loader, "__next__")
        self.in_order = not self.once and (_in_order(loader) if same_order is None else same_order)
        self.stateful = all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))
        self._iterator: Iterator[Any] | None = None
        self._restored = self._lost = False
        self._known: tuple[int, Any] | None = None  # a position from which a later one can be reached, as it was saved
        self._first: Any = None
        self.epoch = self.length  # batches after which an epoch ends; None: all of a run are one

    def peek(self) -> Any:
        """The first batch as the loader gives it, which will be handed out first all the same."""
        if self._first is None:
            self._first = self._pull()
        return self._first

    def begin(self, step: int, saved: Any = None) -> None:
        """Stand before the batch of a step: at the first one, or where a run goes on.

        Args:
            step: batches that were handed out before.
            saved: what `state` gave then.

        Raises:
            InputError: if the loader cannot be brought there.
        """
        if step == self.given and not self._lost:
            return
        if self.once:
            raise InputError(
                f"{self._name} can be gone through only once, and has given {self.given:,} batches, but the run needs "
                f"the one after {step:,}; make a new iterator for a new run, or give a loader that can begin again"
            )
        why = self.why_not_resumed(saved)
        if step and why:
            raise InputError(
                f"the run stands after step {step:,}, and {self._name} cannot be brought there: {why}; give a loader "
                "whose position can be restored (state_dict and load_state_dict), say same_order=True where every pass "
                "gives the same batches, or begin anew with overwrite"
            )
        self._iterator = self._first = None
        if step and self.stateful:
            self._load(step, saved)
        else:
            for _ in range(step % self.length if self.length else step):
                self._pull()
        self.given, self._lost = step, False

    def back_to(self, step: int) -> bool:
        """Stand before the batch of a step that was begun and not done, and return whether that can be.

        A loader with a state goes there from its state at the last checkpoint, so that it can be saved.
        """
        if not self.stateful or (step == self.given and not self._lost):
            return True
        self._lost = True
        if self._known is None or self._known[0] > step:
            return False
        self._load(*self._known)
        try:
            for _ in range(step - self._known[0]):
                self._pull()
        except BatchError:  # it does not give again what it gave
            return False
        self.given, self._lost = step, False
        return True

    def _load(self, step: int, saved: Any) -> None:
        self._iterator = self._first = None
        self._loader.load_state_dict(_decoded(saved))
        self._restored, self._known = True, (step, saved)

    def why_not_resumed(self, saved: Any = True) -> str | None:
        """Why the loader cannot be brought to a position, in a few words; None where it can."""
        if self.stateful:
            return None if saved else "its state was not saved"
        if self.in_order:
            return None
        if self.once:
            return "it can be gone through only once"
        return "nothing says that it gives the same batches in the same order again"

    def next(self, step: int) -> tuple[Any, Tensor]:
        """Raw inputs and targets of a step; raises BatchError for a batch that is none, or of another form."""
        self.begin(step)
        batch, self._first = self.peek(), None
        try:
            found = self._convert(batch, step + 1)
        except DataError as error:
            self._lost = True  # this batch is gone
            raise BatchError(str(error)) from error
        self.given += 1
        return found

    def state(self) -> Any:
        """Plain values from which `begin` restores the position, or None where the loader has no state of its own.

        Raises:
            InputError: if its state holds what no file without pickles can.
        """
        if not self.stateful or self._lost or not self.given:
            return None
        self._known = self.given, _encoded(self._loader.state_dict())
        return self._known[1]

    def _pull(self) -> Any:
        while True:
            fresh = self._iterator is None
            if fresh and self.stateful and self._known is None:
                with suppress(Exception):  # a state that cannot be kept is told when it is to be saved
                    self._known = 0, _encoded(self._loader.state_dict())
            try:
                if self._iterator is None:
                    self._iterator = iter(self._loader)
                return next(self._iterator)
            except StopIteration:
                self._iterator = None
            except Exception as error:  # it is the user's code: anything may come out of it
                self._iterator, self._lost = None, True
                raise BatchError(
                    f"{self._name}: batch {self.given + 1} could not be read: {error_text(error)}"
                ) from error
            if self.once and self.given:
                raise BatchError(
                    f"{self._name} has given {self.given:,} batches and has no more; ask for that many steps, or give "
                    "a loader that can begin again"
                )
            if fresh and not self._restored:
                raise BatchError(f"{self._name} yields no batch; is its data set empty, or used up?")
            self._restored = False  # it was restored to the end of a pass


def _length(loader: Any) -> int | None:
    try:
        found = len(loader)
    except TypeError:  # an IterableDataset, or a generator
        return None
    return found or None


def _in_order(loader: Any) -> bool:
    """Whether every pass is known to give the same examples in the same order."""
    if isinstance(loader, list | tuple):
        return True
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.sampler) is SequentialSampler
        and type(loader.batch_sampler) in (BatchSampler, type(None))
    )


def _encoded(value: Any) -> Any:
    """A loader's state as plain JSON: tensors, arrays, bytes and tuples by their contents."""
    if isinstance(value, Tensor):
        return {"tensor": _encoded(value.detach().cpu().numpy())}
    if isinstance(value, np.ndarray) and value.dtype.kind in "uifb":
        raw = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": [value.dtype.str, list(value.shape), raw]}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(each) for each in value]}
    if isinstance(value, list):
        return [_encoded(each) for each in value]
    if isinstance(value, dict):
        return {"dict": [[_encoded(key), _encoded(each)] for key, each in value.items()]}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"the loader's state_dict() holds a {type(value).__name__}, which cannot be kept without a pickle; give a "
        "loader whose state is numbers, texts, arrays and tensors"
    )


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "dict":
        return {_decoded(key): _decoded(each) for key, each in content}
    if kind == "tuple":
        return tuple(_decoded(each) for each in content)
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "tensor":
        return torch.from_numpy(_decoded(content))
    dtype, shape, raw = content
    return np.frombuffer(base64.b64decode(raw), np.dtype(dtype)).reshape(shape).copy()
