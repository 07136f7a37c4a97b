"""What other ranks hold of a net, for a checkpoint: sent to rank 0, and kept in a nameless file until it is written.

One tensor at a time is in memory, so rank 0 needs no more of it than the others.
"""

import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from sidestep.errors import CheckpointError

__all__ = ["NET", "OPTIMIZER", "Gathered", "own_moments", "places_of"]

NET, OPTIMIZER = "net/", "optimizer/"


class Gathered:
    """Tensors of other ranks by their names in a checkpoint, and what of their optimisers is no tensor.

    not_finite: names of weights that hold an infinity or no number.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.tensors = _Spool(cast(BinaryIO, tempfile.TemporaryFile(dir=folder)))  # noqa: SIM115
        except OSError as error:
            raise CheckpointError(f"nothing can be written in {folder}: {error.strerror}") from error
        self.values: dict[str, Any] = {}
        self.not_finite: list[str] = []

    def put(self, name: str, tensor: Tensor) -> None:
        """Take a tensor."""
        if name.startswith(NET) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            self.not_finite.append(name.removeprefix(NET))
        self.tensors.put(name, tensor)

    def completed(self, own: Mapping[str, Tensor], elsewhere: Collection[str], prefix: str) -> Mapping[str, Tensor]:
        """Return a net's tensors by name, of which those elsewhere are read from here when they are asked for."""
        return _Completed(own, {name: f"{prefix}{name}" for name in elsewhere}, self.tensors)

    def add_to(self, record: dict[str, Any]) -> None:
        """Add what an optimiser's record (`checkpoint.optimizer_tensors`) says of moments that are here."""
        moments = [name.removeprefix(OPTIMIZER) for name in self.tensors if name.startswith(OPTIMIZER)]
        record["tensors"] = sorted([*record["tensors"], *moments], key=lambda name: int(name.split(".")[0]))
        record["values"] = {**record["values"], **self.values}


class _Spool(Mapping[str, Tensor]):
    """Tensors in a file, read from it whenever one is asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._end = file, 0
        self._places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        try:
            self._file.seek(self._end)
            self._file.write(data)
        except OSError as error:
            raise CheckpointError(
                f"the blocks of other processes cannot be kept: {os.strerror(error.errno or 0)}"
            ) from error
        self._places[name] = (self._end, tensor.dtype, tensor.shape)
        self._end += len(data)

    def __getitem__(self, name: str) -> Tensor:
        at, dtype, shape = self._places[name]
        data = torch.empty(shape, dtype=dtype)
        room = data.view(-1).view(torch.uint8).numpy().data
        self._file.seek(at)
        if self._file.readinto(room) != len(room):  # type: ignore[attr-defined]
            raise CheckpointError("the blocks of other processes cannot be read again: is the disk full?")
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Completed(Mapping[str, Tensor]):
    def __init__(self, own: Mapping[str, Tensor], elsewhere: Mapping[str, str], spool: Mapping[str, Tensor]) -> None:
        self._own, self._elsewhere, self._spool = own, elsewhere, spool

    def __getitem__(self, name: str) -> Tensor:
        return self._spool[self._elsewhere[name]] if name in self._elsewhere else self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def places_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of an optimiser's parameters, in the order in which a checkpoint counts them."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def own_moments(
    record: Mapping[str, Any], net: nn.Module, optimizer: torch.optim.Optimizer, elsewhere: Collection[str]
) -> Mapping[str, Any]:
    """Return an optimiser's record without what it says of parameters that other ranks hold."""
    if not elsewhere:
        return record
    places = places_of(net, optimizer)
    here = lambda entry: places[int(entry.split(".")[0])] not in elsewhere  # noqa: E731
    values = {name: value for name, value in record["values"].items() if here(name)}
    return {**record, "tensors": [name for name in record["tensors"] if here(name)], "values": values}
