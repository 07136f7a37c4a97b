"""Errors in the middle of a run: what they say of where it stands, and whose code they come from."""

import sysconfig
import traceback
from pathlib import Path

import numpy as np
import torch

from sidestep.data.feed import BatchError
from sidestep.data.task import Task
from sidestep.errors import InputError, SidestepError
from sidestep.training.folder import RunFolder
from sidestep.training.observers import ObserverError
from sidestep.wording import error_text

__all__ = ["StepError", "kept", "with_position"]

_OURS = Path(__file__).parents[1]
_LIBRARIES = tuple(Path(str(module.__file__)).parent for module in (torch, np))
_LAYERS = Path(str(torch.nn.modules.__file__)).parent
_STANDARD = Path(sysconfig.get_paths()["stdlib"])


class StepError(SidestepError):
    """A step failed in code of the user's, such as a loss or a model: what was trained before is saved."""


def kept(folder: RunFolder | None, saved_step: int) -> str:
    """Return which checkpoint is there, in a few words."""
    if folder is None:
        return "there is no checkpoint, since the run has no folder"
    if saved_step < 0:
        return "there is no checkpoint yet"
    return f"the checkpoint of step {saved_step} in {folder.path} is kept"


def with_position(error: Exception, step: int, kept: str, task: Task | None = None) -> Exception:
    """Return an error that ended a run as one that says where the run stands.

    An error of the user's code becomes a StepError, which names the function and the line; one of torch's layers at the
    first step of a model of theirs an InputError; another one that none of their code was on the way of stays what it
    is, with the position as a note (from Python 3.11 on).

    Args:
        error: what was raised.
        step: how many steps were taken.
        kept: what `kept` says.
        task: of a whole model of the user's; none of other nets, which are made to fit.
    """
    after = f"after step {step}, {kept}"
    if isinstance(error, BatchError | ObserverError) or (type(error) is InputError and step):
        return _from(type(error)(f"{error}; {after}"), error.__cause__)
    place = None if isinstance(error, SidestepError) or _is_memory(error) else _place(error)
    if place:
        return _from(StepError(f"a step failed in {place}: {error_text(error)}; {after}"), error)
    if task and step == 0 and type(error) in (RuntimeError, ValueError, IndexError) and _in_a_layer(error):
        return _from(InputError(_misfit(error, task)), error)
    if not isinstance(error, SidestepError) and hasattr(error, "add_note"):
        error.add_note(after)
    return error


def _from(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def _place(error: Exception) -> str | None:
    """Return where in code that is neither ours nor of the libraries below us an error was raised, if it was."""
    outside = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_outside(frame.filename)]
    return f"{outside[-1].name} ({outside[-1].filename}, line {outside[-1].lineno})" if outside else None


def _in_a_layer(error: Exception) -> bool:
    """Whether a size did not fit in the forward pass of one of torch's layers, such as Linear."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    inner = [file for file in files if file.parent == _LAYERS and file.stem not in ("module", "container")]
    elsewhere = any(word in str(error).lower() for word in ("cuda", "cudnn", "device", "type"))
    below = (_LAYERS, _LAYERS.parent)  # layers, and the functions that they call
    return bool(inner) and inner[-1].stem != "loss" and files[-1].parent in below and not elsewhere


def _misfit(error: Exception, task: Task) -> str:
    """Say that a layer does not fit, what the model is given, and what helps if images were to be rows."""
    kind = "token ids" if task.inputs == "tokens" else f"{task.example}s"
    given = f"{kind} of shape (batch, {', '.join(map(str, task.shape))})"
    rows = task.inputs == "image" and f"x{task.shape[-1]} and" in str(error)
    fix = (
        "begin the model with nn.Flatten(), which makes rows of images" if rows else "change its layers, or the inputs"
    )
    return f"a layer of the model does not fit what it gets ({error_text(error)}); the model is given {given}: {fix}"


def _is_outside(name: str) -> bool:
    path = Path(name)
    if name.startswith("<frozen") or any(path.is_relative_to(folder) for folder in (_OURS, *_LIBRARIES)):
        return False
    return not path.is_relative_to(_STANDARD) or "site-packages" in path.parts
