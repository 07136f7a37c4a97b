"""What a step of the user's own loop says of a batch that the model or its loss cannot take."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sidestep.errors import InputError

__all__ = ["check_batch", "check_outputs", "check_rows", "explained"]

_OUT_OF_RANGE = re.compile(
    r"index out of range in self|Target -?\d+ is out of bounds"
)  # an embedding's, a loss's words
_COMPARE = "compare these with what the model and the loss take, or the model's parts with each other"
_MISFITS = {  # torch's words for shapes and types that do not fit -> what to do
    "must have the same dtype": "give inputs in the type of the model's weights, mostly inputs.float()",
    "expected target dtype": "class labels are whole numbers, targets.long()",
    "for target with class probabilities": "give class numbers, targets.argmax(1), or shares of classes as floats",
    "multi-target not supported": "give one class number for each example, targets.squeeze(1)",
    "Expected target size": "outputs for classes are (batch, classes), and for tokens (batch, places, tokens)",
    "must be Tensor, not": "give tensors, torch.as_tensor(...)",
    **dict.fromkeys(
        (
            "cannot be multiplied",
            "should be the same",
            "channels, but got",
            "channels instead",
            "must match the size",
            "must match the existing size",
            "size mismatch",
            "is invalid for input of size",
            "expected input with shape",
            "running_mean should contain",
            "(unbatched) or ",
            "input.size(-1) must be equal",
            "target tensor expected",
            "expected scalar type",
            "Expected dtype int",
            "Expected tensor for argument",
        ),
        _COMPARE,
    ),
}


def check_batch(inputs: Any, targets: Any) -> None:
    """Raise InputError for inputs without an example, or with another number of targets."""
    if not isinstance(inputs, Tensor) or not inputs.ndim:
        return
    if not len(inputs):
        raise InputError(
            f"the batch is empty: its inputs have the shape {tuple(inputs.shape)}; give an example or more"
        )
    _check_number(inputs, targets)


def check_rows(rule: str, inputs: Any) -> None:
    """Raise InputError for inputs that the stages of a rule, given by its name, cannot take."""
    if not isinstance(inputs, Tensor) or inputs.ndim < 2:
        kind = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        more = "" if isinstance(inputs, Tensor | Mapping) else "; give torch.as_tensor(inputs)"
        raise InputError(f"{rule} trains stages that take one tensor, (batch, ...), got {kind}{more}")


def check_outputs(outputs: Any, targets: Any) -> None:
    """Raise InputError for outputs that are not as many as the targets."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return
    if targets.ndim and not outputs.ndim:
        raise InputError(
            f"the model gives one number for the whole batch, and the targets are {_form(targets)}: outputs for each "
            "example are needed; if that number is the loss already, call step(lambda: model(...)), else "
            "step(lambda: loss_function(model(inputs), targets))"
        )
    _check_number(outputs, targets)


@contextmanager
def explained(inputs: Any, targets: Any) -> Iterator[None]:
    """Say what was given where torch's words are of shapes, types or ranges; other errors pass as they are.

    >>> import torch
    >>> with explained(torch.zeros(4, 9), None):  # doctest: +ELLIPSIS
    ...     torch.nn.Linear(8, 3)(torch.zeros(4, 9))
    Traceback (most recent call last):
        ...
    sidestep.errors.InputError: torch cannot run the model or its loss on this batch (mat1 ...): the inputs are ...
    """
    try:
        yield
    except IndexError as error:
        if not _OUT_OF_RANGE.match(str(error)):
            raise
        raise InputError(
            f"an input or a target is out of range ({error}); class labels count from 0 to the outputs' width - 1, "
            "token ids to the rows of the embedding - 1"
        ) from error
    except (RuntimeError, TypeError) as error:
        advice = next((advice for words, advice in _MISFITS.items() if words in str(error)), None)
        if advice is None:
            raise
        of_targets = "" if targets is None else f", the targets {_form(targets)}"
        raise InputError(
            f"torch cannot run the model or its loss on this batch ({error}): the inputs are {_form(inputs)}"
            f"{of_targets}; {advice}"
        ) from error


def _check_number(rows: Tensor, targets: Any) -> None:
    if isinstance(targets, Tensor) and not targets.ndim:
        raise InputError(
            f"a step takes a batch, and the targets are one number beside {_form(rows)}; give one example as "
            "inputs[None] and targets[None]"
        )
    if isinstance(targets, Tensor) and targets.shape[:1] != rows.shape[:1]:
        raise InputError(f"there are {len(rows)} examples, and targets of shape {tuple(targets.shape)}; each needs one")


def _form(given: Any) -> str:
    """Return a tensor's shape, type and device, those of a mapping's tensors, or what something else is.

    >>> import torch
    >>> _form({"ids": torch.zeros(2, 3)}), _form([1.0])
    ('{ids: (2, 3) of float32}', 'of type list')
    """
    if isinstance(given, Mapping):
        return f"{{{', '.join(f'{name}: {_form(each)}' for name, each in given.items())}}}"
    if not isinstance(given, Tensor):
        return f"of type {type(given).__name__}"
    where = "" if given.device.type == "cpu" else f" on {given.device}"
    return f"{tuple(given.shape)} of {str(given.dtype).removeprefix('torch.')}{where}"
