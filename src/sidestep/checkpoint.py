"""Tensors with a JSON record and a digest in one file that is whole or absent; writing of other files (`files`).

A record of numbers that are quoted later goes through `write_json`, which seals it with a digest, and `read_json`.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sidestep.errors import CheckpointError, InputError
from sidestep.files import (
    TEMPORARY_PREFIX,
    open_plain,
    read_json,
    write_bytes,
    write_json,
    write_parts,
    write_text,
)
from sidestep.tensorfile import layout, raw_bytes

__all__ = [
    "TEMPORARY_PREFIX",
    "check_name",
    "load",
    "opened",
    "optimizer_tensors",
    "read_json",
    "restore_optimizer",
    "save",
    "write_bytes",
    "write_json",
    "write_text",
]

FORMAT = 1  # raised when an older Sidestep could not read the file any more
_MAPPED = 1 << 26  # bytes of a file that may have been read before it is mapped anew, which frees their memory
METADATA_KEY = "sidestep"  # a single key, since safetensors may write several in any order
ADVICE = "use a copy or an earlier checkpoint, or train anew with --overwrite"


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Commit named tensors and a JSON record to one safetensors file, atomically; one tensor at a time is in use.

    Values, shapes and dtypes come back as they are; strides and devices do not (tensors are written from
    contiguous CPU memory), and names that share memory come back as separate tensors. Raises InputError if
    the record is not JSON, CheckpointError if the file cannot be written.
    """
    try:
        text = json.dumps(record)
    except (TypeError, ValueError) as error:
        raise InputError(f"a checkpoint's record must be plain JSON (no tensors, no sets), got {error}") from error
    check_name(Path(path))
    kinds: dict[str, tuple[torch.dtype, torch.Size]] = {}
    header = {"format": FORMAT, "digest": _digest(tensors, text, kinds), "record": json.loads(text)}
    head, places = layout(kinds, {METADATA_KEY: json.dumps(header)})
    data = (raw_bytes(tensors[name]) for name in places)
    size = sum(shape.numel() * dtype.itemsize for dtype, shape in kinds.values())
    write_parts(Path(path), itertools.chain([head], data), size)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record that `save` wrote, after checking every byte of them against the digest.

    Raises CheckpointError if the file is missing, damaged, not of this kind, or of a newer format.
    """
    tensors, record = opened(path)
    return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}, record


def check_name(path: Path) -> None:
    """Raise CheckpointError for a path that safetensors, which takes Unicode alone, could not open again."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"the name {path} is not valid UTF-8, so no weights in it could be read: rename it, or choose another"
        ) from error


def opened(path: str | os.PathLike[str]) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """As `load`, but a tensor is in memory from when it is asked for until it is released: copy what you keep."""
    path = Path(path)
    check_name(path)
    try:
        with open_plain(path, os.O_RDONLY):  # safetensors would say that a file is not there which may not be read
            pass
        tensors = _Stored(path)
        record = _verified_record(path, tensors, tensors.metadata)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}: check the path, or train first") from error
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    except (SafetensorError, LookupError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is cut short, damaged or not a safetensors file ({error}): {ADVICE}"
        ) from error
    return tensors, record


class _Stored(Mapping[str, Tensor]):
    """The tensors of a safetensors file: views of the file, which is mapped anew from time to time."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._read = path, safe_open(path, "pt"), 0
        self._names, self.metadata = dict.fromkeys(self._file.keys()), self._file.metadata()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if self._read > _MAPPED:
            self._file, self._read = safe_open(self._path, "pt"), 0
        tensor: Tensor = self._file.get_tensor(name)
        self._read += tensor.nbytes
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and a JSON record, for `save`.

    Tensors are called "INDEX.KEY", say "0.exp_avg", by the parameter's place; the record holds the class, the
    parameters' shapes, each group's hyper-parameters, and what of the state is no tensor.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else values)[f"{index}.{key}"] = value
    record = {
        "class": type(optimizer).__name__,
        "shapes": [list(parameter.shape) for parameter in _parameters(optimizer)],
        "groups": state["param_groups"],
        "tensors": list(tensors),
        "values": values,
    }
    return tensors, record


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    settled: Callable[[], None] = lambda: None,
) -> None:
    """Put back, bit for bit, the state that `optimizer_tensors` took; the given tensors are copied.

    One parameter group follows the other, and `settled` is called after each.

    Raises CheckpointError if the record is of another class of optimizer or of other parameters.
    """
    parameters = _parameters(optimizer)
    _check_same_optimizer(optimizer, parameters, tensors, record)
    current = optimizer.state_dict()["param_groups"]
    groups = [
        {**group, **{key: _as_before(key, value, group[key]) for key, value in saved.items() if key in group}}
        for group, saved in zip(current, record["groups"], strict=True)
    ]
    optimizer.state.clear()
    for group in groups:
        before = dict(optimizer.state)  # loading one group's state would remove the others'
        state: dict[int, dict[str, Any]] = {index: {} for index in group["params"]}
        for name in (*record["tensors"], *record["values"]):
            place, key = name.split(".", 1)
            if int(place) in state and name in record["values"]:
                state[int(place)][key] = record["values"][name]
            elif int(place) in state:
                state[int(place)][key] = _like_parameter(tensors[name], parameters[int(place)])
        state = {index: entries for index, entries in state.items() if entries}
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        optimizer.state.update(before)
        settled()


def _digest(
    tensors: Mapping[str, Tensor], text: str, kinds: dict[str, tuple[torch.dtype, torch.Size]] | None = None
) -> str:
    """A blake2b hash over the format, the record, and each tensor's name, dtype, shape and bytes, by name.

    `kinds` is given each tensor's dtype and shape, so that one that comes from a file is not read for them again.
    """
    digest = hashlib.blake2b(digest_size=32)
    digest.update(json.dumps([FORMAT, text]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(raw_bytes(tensor))
        if kinds is not None:
            kinds[name] = tensor.dtype, tensor.shape
    return digest.hexdigest()


def _verified_record(path: Path, tensors: Mapping[str, Tensor], metadata: Any) -> dict[str, Any]:
    try:
        header = json.loads(metadata[METADATA_KEY])
        version, digest, record = int(header["format"]), header["digest"], header["record"]
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is a safetensors file without the record and digest of a Sidestep checkpoint: {ADVICE}"
        ) from error
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {version}, this Sidestep reads up to {FORMAT}: upgrade sidestep"
        )
    if digest != _digest(tensors, json.dumps(record)):
        raise CheckpointError(f"{path} is damaged: its content does not match its digest; {ADVICE}")
    return record


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _as_before(key: str, value: Any, current: Any) -> Any:
    """JSON has no tuples: a list where the optimizer has a tuple (betas) becomes one again; other kinds are refused."""
    kinds = (int, float, bool, type(None))
    if isinstance(current, tuple) and isinstance(value, list) and len(value) == len(current):
        return tuple(_as_before(key, one, other) for one, other in zip(value, current, strict=True))
    fits = isinstance(value, kinds) if isinstance(current, kinds) else type(value) is type(current)
    if not fits or (key == "params" and value != current):
        raise CheckpointError(f"the optimizer's {key} is {value!r:.80} in the checkpoint and {current!r:.80} here")
    return value


def _like_parameter(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy with the parameter's strides: fused optimizers walk through both memories side by side."""
    if tensor.shape != parameter.shape:
        return tensor.clone()
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _check_same_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
) -> None:
    needed = {"class", "shapes", "groups", "tensors", "values"}
    if not needed <= record.keys():
        raise CheckpointError(f"the optimizer's record lacks {sorted(needed - record.keys())}: {ADVICE}")
    given, found = type(optimizer).__name__, record["class"]
    if given != found:
        raise CheckpointError(f"the checkpoint holds the state of {found}, this run uses {given}: use {found}")
    shapes = [list(parameter.shape) for parameter in parameters]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if shapes != record["shapes"] or sizes != [len(group["params"]) for group in record["groups"]]:
        raise CheckpointError(
            f"the checkpoint's {found} has {len(record['shapes'])} parameters, {record['shapes'][:8]}, "
            f"this run's {len(shapes)} of {shapes[:8]}: build the same network and parameter groups"
        )
    missing = [name for name in record["tensors"] if name not in tensors]
    if missing:
        raise CheckpointError(f"the checkpoint lacks the optimizer's tensors {missing[:8]}: {ADVICE}")
