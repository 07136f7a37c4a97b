"""Inputs that are several tensors by name, such as token ids with their mask: one row of each for every example."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

__all__ = ["Named", "blank_named", "is_named", "tensors_of"]


class Named:
    """Tensors of as many rows by name; slices, row numbers and devices are taken of all of them alike.

    tensors: name -> (n, ...).

    >>> rows = Named({"ids": torch.zeros(5, 3, dtype=torch.int64), "mask": torch.ones(5, 3, dtype=torch.bool)})
    >>> len(rows), rows[:2].table
    (5, ('ids: int64 3', 'mask: bool 3'))
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @property
    def table(self) -> tuple[str, ...]:
        """Name, dtype and shape of an example of each tensor, by which a trained net knows its inputs again."""
        return tuple(
            f"{name}: {str(t.dtype).removeprefix('torch.')} {'x'.join(map(str, t.shape[1:]))}".rstrip()
            for name, t in self.tensors.items()
        )

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return next(iter(self.tensors.values())).device

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Any) -> "Named":
        return Named({name: tensor[rows] for name, tensor in self.tensors.items()})

    @staticmethod
    def joined(parts: "Sequence[Named]") -> "Named":
        """Return the rows of several, one after another."""
        return Named({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})

    def to(self, device: str | torch.device) -> "Named":
        """Return the same rows on a device."""
        return Named({name: tensor.to(device) for name, tensor in self.tensors.items()})


def is_named(inputs: Any) -> TypeGuard[Named]:
    """Say whether inputs are several tensors by name."""
    return isinstance(inputs, Named)


def tensors_of(inputs: Any) -> list[Any]:
    """Return the tensors, or rows in a file, that inputs consist of, in an order of their own: of a mapping by name."""
    return [inputs.tensors[name] for name in sorted(inputs.tensors)] if is_named(inputs) else [inputs]


def blank_named(table: tuple[str, ...], count: int, device: torch.device) -> dict[str, Tensor]:
    """Return zeros of the dtypes and shapes of a table, `count` rows of each."""
    found = {}
    for entry in table:
        name, _, kind = entry.rpartition(": ")
        dtype, _, sides = kind.partition(" ")
        shape = [int(side) for side in sides.split("x") if side]
        found[name] = torch.zeros(count, *shape, dtype=getattr(torch, dtype), device=device)
    return found
