"""Running independent units of a net: one after another, or several at once on the cores of one machine."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["kept_statistics", "run_units"]

T = TypeVar("T")


def run_units(tasks: Sequence[Callable[[], T]], device: torch.device, together: bool = True) -> list[T]:
    """Run independent tasks, one per unit, and return their results in order.

    On a CPU with several cores, each task gets one core and as many run at once as there are cores: small convolutions
    gain more from that than from being split. A task's numbers do not depend on which others run beside it.
    Autocast and grad mode of the caller hold inside the tasks.

    Args:
        tasks: functions without arguments that share nothing they write to.
        device: where the tasks compute.
        together: False runs them one after another on all cores (for modules that are not known to be safe together).
    """
    workers = min(len(tasks), torch.get_num_threads())
    if device.type != "cpu" or workers < 2 or not together:
        return [task() for task in tasks]
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")
    gradients = torch.is_grad_enabled()

    def run(task: Callable[[], T]) -> T:
        # without the cache of cast weights: it is one for all threads, and each weight is used once anyway
        context = torch.autocast("cpu", dtype=dtype, enabled=autocast, cache_enabled=False)
        with torch.set_grad_enabled(gradients), context:
            return task()

    pool = _pool(workers, max(1, torch.get_num_threads() // workers))
    futures = [pool.submit(run, task) for task in tasks]
    wait(futures)  # all of them, also where one fails: none may still run when the caller tidies up
    return [future.result() for future in futures]


@cache
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    one_at_a_time, all_there = threading.Lock(), threading.Barrier(workers + 1)

    def prepare() -> None:
        with one_at_a_time:  # the count is per thread, but part of setting it is for the whole process
            torch.get_num_threads()  # a thread's first look takes over the process's count: let that come first
            torch.set_num_threads(threads)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="sidestep-unit", initializer=prepare)
    for _ in range(workers):
        pool.submit(all_there.wait)
    all_there.wait(timeout=60)  # every worker has its count before the first task runs
    torch.set_num_threads(torch.get_num_threads())  # and this thread, and the process, keep theirs
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


class kept_statistics:  # noqa: N801  (a class, no generator: every step of a small net enters it)
    """Leave the net's buffers as they were, and hand out what the code inside makes of them.

    Batch norm in training writes its running statistics during the forward pass. An estimate must write nothing, so it
    runs in here and calls the yielded function after the forward pass: that returns name -> new value of each buffer
    that changed, for `apply` to write. The old values are put back when the block ends.

    Args:
        net: the net, or one unit of it.
        prefix: what the names in the whole net begin with, where it is one unit.
    """

    def __init__(self, net: nn.Module, prefix: str = "") -> None:
        self._net, self._prefix = net, prefix

    def __enter__(self) -> Callable[[], dict[str, Tensor]]:
        """Note where the buffers are, since code inside may put another tensor there, and copy them."""
        self._places = _buffer_places(self._net)
        self._before = {name: held[key].clone() for name, (held, key) in self._places.items()}
        return self._changed

    def _changed(self) -> dict[str, Tensor]:
        found = [(name, held[key], self._before[name]) for name, (held, key) in self._places.items()]
        return {self._prefix + name: new.clone() for name, new, old in found if not torch.equal(new, old)}

    def __exit__(self, *error: object) -> None:
        """Put the old values back."""
        if not self._places:
            return
        with torch.no_grad():
            for name, (held, key) in self._places.items():
                if not torch.equal(held[key], self._before[name]):  # or a write would undo what autograd has kept
                    held[key].copy_(self._before[name])


def _buffer_places(net: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Return name -> where a buffer is held, for every buffer once: one walk, which a step of a small net feels."""
    places: dict[str, tuple[dict[str, Any], str]] = {}
    _collect(net, "", places, set())
    return places


def _collect(layer: nn.Module, prefix: str, places: dict[str, tuple[dict[str, Any], str]], seen: set[int]) -> None:
    seen.add(id(layer))
    for key, buffer in layer._buffers.items():
        if buffer is not None and id(buffer) not in seen:
            seen.add(id(buffer))
            places[prefix + key] = (layer._buffers, key)
    for name, part in layer._modules.items():
        if part is not None and (part._buffers or part._modules) and id(part) not in seen:
            _collect(part, f"{prefix}{name}.", places, seen)
