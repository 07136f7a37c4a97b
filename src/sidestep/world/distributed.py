"""Ranks over torch.distributed: messages by gloo, sums by gloo or nccl, whichever the tensor's device needs."""

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from sidestep.errors import InputError, RankError
from sidestep.wording import sentence
from sidestep.world.frames import HEADER_BYTES, MOST_BYTES, framed, opened, read_head
from sidestep.world.world import World, check_summable

__all__ = ["Distributed", "join"]

T = TypeVar("T")
_FIRST_SLOT = 256  # bytes that go in one round; what is longer takes another
_MEET = timedelta(minutes=5)  # for all ranks to start
_WAIT = timedelta(minutes=30)  # for a rank that computes something on its own


def join(store: Callable[[], Store], rank: int, size: int, generation: int) -> "Distributed":
    """Meet the other ranks at a store, and return the world of all of them.

    A restart takes another prefix: a launcher may hand out the store of the start before, whose entries would keep the
    ranks from finding each other. However the process ends, it leaves the group before (`Distributed.leave`).

    Raises:
        InputError: if the address is taken; RankError: if the others do not come.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        place = PrefixStore(f"sidestep restart {generation}", store())
        place.set_timeout(_MEET)
        dist.init_process_group(backend, store=place, rank=rank, world_size=size, timeout=_WAIT)
        dist.all_reduce(torch.zeros(1))  # a rank that ends at once, by an error, would keep others from meeting
    except (RuntimeError, ValueError, OSError) as error:  # DistNetworkError and DistStoreError are RuntimeErrors
        said = sentence(str(error).strip().partition("\n")[0])[:300]
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise InputError(
                f"the port at which the ranks meet is in use ({said}): choose another, MASTER_PORT or --master-port"
            ) from error
        raise RankError(
            f"rank {rank} of {size} did not meet the others ({said}): see whether all were started, and whether their "
            "address can be reached"
        ) from error
    world = Distributed(generation)
    atexit.register(world.leave)
    return world


class Distributed(World):
    """The world of the default process group, which is there already."""

    def __init__(self, generation: int = 0) -> None:
        self.rank, self.size, self.generation = dist.get_rank(), dist.get_world_size(), generation
        self._turn, self._slot, self._lost = 0, _FIRST_SLOT, False
        gloo = "gloo" in str(dist.get_backend_config(dist.group.WORLD))
        # None is the default group: whoever holds one keeps it from being destroyed
        self._bytes = None if gloo else dist.new_group(backend="gloo", timeout=_WAIT)

    def leave(self) -> None:
        """Destroy the process group; nothing can be exchanged after it.

        A group whose threads still run while the process ends makes it abort (SIGABRT), and its status is lost.
        """
        self._lost, self._bytes = True, None
        if dist.is_initialized():
            with suppress(RuntimeError):  # of a rank that has gone
                dist.destroy_process_group()

    def gather(self, message: bytes, known: bytes | None = None) -> list[bytes]:
        """Return the messages of all ranks, in one round if they are no longer than the longest of the last time."""
        return self._gathered(framed(message, self.generation, self._turn, known=known), known)

    def broadcast(self, message: bytes) -> bytes:
        """Return the message of rank 0, after all ranks have heard of its length."""
        data = self._announced(0, message)
        self.sent_bytes += len(data) if self.leads else 0
        with self._explained():
            dist.broadcast(data, 0, group=self._bytes)
        return self._opened(data, 0)

    def to_first(self, source: int, message: bytes) -> bytes:
        """Send the message of one rank to rank 0 alone, after all ranks have heard of its length."""
        data = self._announced(source, message)
        if self.rank not in (0, source):
            return b""
        with self._explained():
            if source == self.rank != 0:
                dist.send(data, 0, group=self._bytes)
                self.sent_bytes += len(data)
            elif source != 0:
                dist.recv(data, source, group=self._bytes)
        return self._opened(data, source)

    def _announced(self, source: int, message: bytes) -> Tensor:
        """Return the frame of one rank, and room for it on the others; a rank that has failed is heard of here."""
        frame = framed(message, self.generation, self._turn) if self.rank == source else b""
        said = len(frame).to_bytes(8, "little") if frame else b""
        length = int.from_bytes(self._gathered(framed(said, self.generation, self._turn))[source], "little")
        if length > HEADER_BYTES + MOST_BYTES:
            raise RankError(f"rank {source} announced a message of {length:,} bytes; one has at most {MOST_BYTES:,}")
        return torch.frombuffer(bytearray(frame or length), dtype=torch.uint8)

    def _opened(self, data: Tensor, source: int) -> bytes:
        found = data.numpy().tobytes()
        return opened(read_head(found, self.generation, self._turn - 1, source), found[HEADER_BYTES:], source)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks, on the tensor's device."""
        check_summable(values)
        total = values.clone()
        with self._explained():
            dist.all_reduce(total)
        self.summed_bytes += total.numel() * total.element_size()
        return total

    def _tell(self, said: str) -> None:
        if not self._lost:
            self._gathered(framed(said.encode(errors="replace")[:4000], self.generation, self._turn, failed=True))

    def _gathered(self, frame: bytes, known: bytes | None = None) -> list[bytes]:
        """Exchange one frame a rank: what fits into the slot, and in a second round the rest of longer ones."""
        turn, slot = self._turn, self._slot
        self._turn += 1
        parts = self._round(frame, slot)
        heads = [read_head(part, self.generation, turn, rank) for rank, part in enumerate(parts)]
        longest = max(head.size + head.length for head in heads)
        if longest > slot:
            parts = [first + rest for first, rest in zip(parts, self._round(frame[slot:], longest - slot), strict=True)]
        self._slot = max(longest, HEADER_BYTES)  # every rank has seen the same lengths
        found = [
            opened(head, part[head.size : head.size + head.length], rank, known)
            for rank, (head, part) in enumerate(zip(heads, parts, strict=True))
        ]
        for rank, (head, message) in enumerate(zip(heads, found, strict=True)):
            if head.failed and rank != self.rank:
                raise RankError(f"rank {rank} has stopped: {sentence(message.decode(errors='replace'))}")
        return found

    def _round(self, data: bytes, size: int) -> list[bytes]:
        own = torch.frombuffer(bytearray(data[:size].ljust(size, b"\0")), dtype=torch.uint8)
        all_ = [torch.empty(size, dtype=torch.uint8) for _ in range(self.size)]
        with self._explained():
            dist.all_gather(all_, own, group=self._bytes)
        self.sent_bytes += size
        return [each.numpy().tobytes() for each in all_]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        if self._lost:
            raise RankError("another rank has gone, so nothing more can be exchanged")
        try:
            yield
        except RuntimeError as error:
            self._lost = True
            said = sentence(str(error).strip().partition("\n")[0])[:200]
            raise RankError(
                f"rank {self.rank} has lost another rank, whose own message says why, if it could write one ({said}): "
                "start all again with --resume"
            ) from error
