"""How much memory tensors take at once inside a piece of code, over what was there before it."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sidestep.errors import InputError

__all__ = ["PeakAllocation", "peak_allocation"]


@dataclass
class PeakAllocation:
    """What `peak_allocation` found; `bytes` is 0 until its block ends."""

    bytes: int = 0


@contextmanager
def peak_allocation(device: str | torch.device = "cpu", one_thread: bool = True) -> Iterator[PeakAllocation]:
    """Measure the most bytes that tensors took on `device` at any time inside, over those there at entry.

        peak = max over time of (bytes of live storages) - (bytes of live storages at entry)

    On CUDA these are torch's own counts, in blocks of 512 bytes. On the CPU every storage that an operation makes is
    counted, to the byte, until it is freed, also on the way back of autograd and where autograd alone holds it: views
    and in-place operations take nothing. Not counted there are buffers inside of a single operation, sparse tensors,
    memory that numpy made, and the freeing of what was there at entry.

    The CPU's count follows the thread that entered: **what other threads make is not seen**. Units of a net run in
    threads where torch has several (`sidestep.nets.run_units`), so while this measures torch has one, and they run one
    after another, which also takes less memory. Each operation takes some microseconds longer: measure time apart.

    Args:
        device: `cpu` or a CUDA device.
        one_thread: set torch to one thread inside (CPU only). False is right for code that makes no tensors in threads.

    Raises:
        InputError: for a device of another kind.

    >>> with peak_allocation() as peak:
    ...     for _ in range(3):
    ...         one = torch.ones(256)  # the next one is made while this one is still there
    >>> peak.bytes
    2048
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"peak_allocation can count on cpu and on cuda, got {device}")
    with _on_cuda(device) if device.type == "cuda" else _on_cpu(one_thread) as peak:
        yield peak


@contextmanager
def _on_cuda(device: torch.device) -> Iterator[PeakAllocation]:
    peak = PeakAllocation()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        yield peak
    finally:
        peak.bytes = torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _on_cpu(one_thread: bool) -> Iterator[PeakAllocation]:
    peak, count, threads = PeakAllocation(), _LiveStorages(), torch.get_num_threads()
    if one_thread:
        torch.set_num_threads(1)
    try:
        with count:
            yield peak
    finally:
        peak.bytes = count.most
        if one_thread:
            torch.set_num_threads(threads)


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages that operations of this thread make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._live: dict[int, tuple[int, weakref.ref[Any]]] = {}  # address of the storage -> its bytes, and its end

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        # `torch.tensor` makes its storage out of sight, and hands it to this operation
        fresh = func is torch.ops.aten.lift_fresh.default
        there = set() if fresh else {storage._cdata for storage in _storages((args, given))}
        made = func(*args, **given)
        for storage in _storages(made):
            if storage._cdata in self._live or storage._cdata not in there:
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        before, end = self._live.get(address, (0, None))  # known before: it may have grown, as in `resize_`
        self._live[address] = size, end or weakref.ref(storage, lambda _: self._free(address))
        self.bytes += size - before
        self.most = max(self.most, self.bytes)

    def _free(self, address: int) -> None:
        self.bytes -= self._live.pop(address)[0]


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the CPU storages of the dense tensors in nested lists, tuples and dicts."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.device.type == "cpu" and leaf.layout is torch.strided:
            yield leaf.untyped_storage()
