"""What `Step.save` writes and `Step.load` reads: one file with model, optimiser and position, whole or absent."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sidestep import checkpoint
from sidestep.errors import CheckpointError
from sidestep.files import make_folder
from sidestep.nets.trained import trained
from sidestep.steplog.header import DTYPES

__all__ = ["Saved", "load_attached", "opened", "save_attached", "saved_example"]

Saved: TypeAlias = tuple[dict[str, Tensor], dict[str, Any]]

FILE = "state.safetensors"
KIND = "attached"
_OWN = ("rule", "seed")  # what has to be the same


def save_attached(folder: Path, record: Mapping[str, Any], net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a net and its optimiser, and a record, to the folder's one file; an earlier one is replaced.

    Frozen weights are left out where the record's `frozen` is false.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder}: {error.strerror}") from error
    moments, groups = checkpoint.optimizer_tensors(optimizer)
    tensors = {f"net/{name}": value.detach() for name, value in _values(net, record).items()}
    tensors |= {f"optimizer/{name}": value for name, value in moments.items()}
    checkpoint.save(folder / FILE, tensors, {"kind": KIND, **record, "optimizer": groups})


def load_attached(folder: Path, saved: Saved, net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put back what was `opened` in a folder and return its record; nothing is changed if it does not fit.

    Raises:
        CheckpointError: if it is of another model or optimiser.
    """
    tensors, record = saved
    values = _values(net, record)
    weights = {name.removeprefix("net/"): value for name, value in tensors.items() if name.startswith("net/")}
    there, here = _table(weights), _table(values)
    if there != here:
        first = min(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        raise CheckpointError(
            f"{folder / FILE} is of another model: {first} is {there.get(first, 'missing')} there and "
            f"{here.get(first, 'missing')} here"
        )
    moments = {name.removeprefix("optimizer/"): t for name, t in tensors.items() if name.startswith("optimizer/")}
    checkpoint.restore_optimizer(optimizer, moments, record["optimizer"])
    with torch.no_grad():
        for name, value in weights.items():
            values[name].copy_(value)
    return record


def opened(folder: Path, own: Mapping[str, Any]) -> Saved:
    """Return the tensors and the record that `save_attached` wrote.

    Raises:
        CheckpointError: if there are none, or they are damaged, or of another rule or seed.
    """
    tensors, record = checkpoint.load(folder / FILE)
    if record.get("kind") != KIND:
        raise CheckpointError(f"{folder / FILE} was not written by step.save: use the folder that was given to it")
    for name in _OWN:
        here = json.loads(json.dumps(own[name]))
        if record[name] != here:
            raise CheckpointError(
                f"{folder / FILE} is of another {name}: {_words(record[name], here)}; attach with what was saved"
            )
    return tensors, record


def saved_example(saved: Saved) -> Tensor:
    """Return zeros of the shape and dtype of inputs that what a rule added to the stages was made for."""
    shape, dtype = saved[1]["example"]
    return torch.zeros(shape, dtype=DTYPES[dtype])


def _values(net: nn.Module, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters and buffers, each once; also buffers that are not in the `state_dict`."""
    parameters = dict(net.named_parameters()) if record.get("frozen", True) else dict(trained(net))
    return {**parameters, **dict(net.named_buffers())}


def _table(values: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(v.dtype).removeprefix('torch.')} {list(v.shape)}" for name, v in values.items()}


def _words(there: Any, here: Any) -> str:
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return f"{there} there, {here} here"
    if there.get("name") != here.get("name"):  # whose other entries have little in common
        return f"{there.get('name')} there, {here.get('name')} here"
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    return "; ".join(f"{key} is {there.get(key)} there, {here.get(key)} here" for key in keys)
