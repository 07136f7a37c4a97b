"""Named tensors from one rank to others, in pieces: no message holds more than some megabytes, whatever a net has.

The names, dtypes and shapes go before, as JSON; then the tensors' bytes as one stream, cut into pieces of one length.
Nothing is pickled, and nobody holds a second copy of all tensors as one message.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from sidestep.errors import RankError
from sidestep.world import World

__all__ = ["PIECE_BYTES", "broadcast_each", "broadcast_tensors", "tensors_of"]

PIECE_BYTES = 1 << 20  # of a message, of which several copies are in memory while it is sent


def broadcast_tensors(world: World, tensors: Mapping[str, Tensor], most: int = PIECE_BYTES) -> dict[str, Tensor]:
    """Return the tensors of rank 0, on the CPU; on rank 0 those that it gave. What others give is not looked at.

    Args:
        world: the ranks, all of which call this.
        tensors: by name.
        most: bytes of one message.

    Raises:
        RankError: if a rank has failed or has gone, or sent something else.
    """
    return dict(broadcast_each(world, tensors, most))


def broadcast_each(
    world: World, tensors: Mapping[str, Tensor], most: int = PIECE_BYTES
) -> Iterator[tuple[str, Tensor]]:
    """Yield what `broadcast_tensors` returns, one tensor after another; all ranks go through it to its end."""
    return _passed(world, 0, True, world.broadcast, tensors, most)


def tensors_of(
    world: World, source: int, tensors: Mapping[str, Tensor], most: int = PIECE_BYTES
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one rank on rank 0, one after another, on the CPU, and on that rank those that it gave.

    All ranks call this and go through it to its end; on the others there is nothing to yield. Arguments and errors are
    those of `broadcast_tensors`.
    """
    return _passed(world, source, world.leads, lambda message: world.to_first(source, message), tensors, most)


def _passed(  # long: who gives and takes what, how
    world: World,
    source: int,
    takes: bool,
    send: Callable[[bytes], bytes],
    tensors: Mapping[str, Tensor],
    most: int,
) -> Iterator[tuple[str, Tensor]]:
    gives = world.rank == source
    table = [[name, str(value.dtype), list(value.shape)] for name, value in tensors.items()] if gives else None
    said = world.gather(json.dumps(table).encode() if gives else b"")[source]
    entries = _entries(said, source)
    pieces = _pieces(tensors.values() if gives else (), most)
    total = sum(_bytes(dtype, shape) for _, dtype, shape in entries)
    received = (send(next(pieces, b"")) for _ in range(-(-total // most)))
    if gives:
        for _ in received:
            pass
        yield from tensors.items()
    elif takes:
        yield from _read(entries, received)
    else:
        for _ in received:
            pass


def _entries(said: bytes, source: int) -> list[tuple[str, torch.dtype, list[int]]]:
    found = []
    for name, dtype, shape in json.loads(said):
        kind = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(kind, torch.dtype):
            raise RankError(f"rank {source} sent a tensor of dtype {dtype}: install the same torch on all machines")
        found.append((name, kind, shape))
    return found


def _bytes(dtype: torch.dtype, shape: list[int]) -> int:
    return dtype.itemsize * math.prod(shape)


def _pieces(tensors: Iterable[Tensor], most: int) -> Iterator[bytes]:
    """Return the bytes of all tensors, `most` at a time."""
    waiting = bytearray()
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        while len(data):
            room = most - len(waiting)
            waiting += data[:room]
            data = data[room:]
            if len(waiting) == most:
                yield bytes(waiting)
                waiting.clear()
    if waiting:
        yield bytes(waiting)


def _read(entries: list[tuple[str, torch.dtype, list[int]]], pieces: Iterator[bytes]) -> Iterator[tuple[str, Tensor]]:
    piece = memoryview(b"")
    for name, dtype, shape in entries:
        data, at = torch.empty(_bytes(dtype, shape), dtype=torch.uint8), 0
        while at < len(data):
            piece = piece or memoryview(bytearray(next(pieces)))
            some = piece[: len(data) - at]
            data[at : at + len(some)] = torch.frombuffer(some, dtype=torch.uint8)
            at, piece = at + len(some), piece[len(some) :]
        yield name, data.view(dtype).reshape(shape)
