"""What a step of the user's own loop says of a batch that the model or its loss cannot take."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sidestep.errors import InputError

__all__ = ["check_number", "explained"]

_OF_SHAPES = (
    "cannot be multiplied",
    "same dtype",
    "should be the same",
    "channels, but got",
    "must match the",
    "size mismatch",
    "is invalid for input of size",
    "expected input with shape",
    "to be unbatched or batched",
    "Expected dtype int",
    "Expected tensor for argument",
    "expected scalar type",
    "Kernel size can't be greater",
)


def check_number(rows: Any, targets: Any) -> None:
    """Raise InputError for a batch without examples, or with another number of targets."""
    if not isinstance(rows, Tensor) or not rows.ndim:
        return
    if not len(rows):
        raise InputError(f"the batch is empty: its shape is {tuple(rows.shape)}; give one example or more")
    if isinstance(targets, Tensor) and targets.shape[:1] != rows.shape[:1]:
        raise InputError(f"there are {len(rows)} examples, and targets of shape {tuple(targets.shape)}; each needs one")


@contextmanager
def explained(inputs: Any, targets: Any) -> Iterator[None]:
    """Say in a sentence what was given, where torch finds that a model and a batch do not fit; let other errors pass.

    >>> import torch
    >>> with explained(torch.zeros(4, 9), None):  # doctest: +ELLIPSIS
    ...     torch.nn.Linear(8, 3)(torch.zeros(4, 9))
    Traceback (most recent call last):
        ...
    sidestep.errors.InputError: the model or its loss does not fit the batch (mat1 ...): the inputs are (4, 9) of ...
    """
    try:
        yield
    except IndexError as error:
        raise _out_of_range(error) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _OF_SHAPES):
            raise
        of_targets = "" if targets is None else f", the targets {_form(targets)}"
        raise InputError(
            f"the model or its loss does not fit the batch ({error}): the inputs are {_form(inputs)}{of_targets}; give "
            "what the model takes"
        ) from error


def _out_of_range(error: IndexError) -> InputError:
    """Return the error that names classes and tokens which the model does not have."""
    return InputError(
        f"an input or a target is out of range ({error}); class labels count from 0 to the outputs' width - 1, "
        "token ids to the rows of the embedding - 1"
    )


def _form(given: Any) -> str:
    """Return a tensor's shape and type, or what something else is.

    >>> _form([1.0])
    'a list'
    """
    if isinstance(given, Tensor):
        return f"{tuple(given.shape)} of {str(given.dtype).removeprefix('torch.')}"
    return f"a {type(given).__name__}"
