"""How much memory a run has needed, and whether what is freed is kept for the next step or goes back to the system."""

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sidestep.machine import free_memory

__all__ = [
    "Growth",
    "free_memory_bytes",
    "keep_freed_memory",
    "memory_growth",
    "peak_memory_bytes",
    "restart_peak_memory",
    "return_freed_memory",
]

# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
_LARGE = 1 << 18  # bytes: where freed memory goes back, larger buffers have pages of their own, and heaps end so close


def peak_memory_bytes(device: str | torch.device = "cpu") -> int:
    """The most memory in use at any time so far, in bytes.

    On the CPU: the process's resident set, with Python, torch and the data in it, since the process began. On
    a CUDA device: what torch's tensors took there, since the start or torch.cuda.reset_peak_memory_stats.

    >>> peak_memory_bytes() > 10_000_000
    True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return _peak_on_windows()
    return _peak_on_linux() or _peak_of_getrusage()


def restart_peak_memory(device: str | torch.device = "cpu") -> int:
    """Let `peak_memory_bytes` begin anew, and return the bytes in use now, to be taken from it.

    On Linux and on CUDA the peak from now on is exact. Elsewhere a process's peak cannot be reset: the number returned
    is the peak so far, so that what is taken above it later is what the process grew by, and at most too small.

    >>> before = restart_peak_memory()
    >>> peak_memory_bytes() >= before > 10_000_000
    True
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
    except OSError:
        return peak_memory_bytes(device)
    return _status_on_linux("VmRSS")


@dataclass
class Growth:
    """What `memory_growth` found; `bytes` is 0 until its block ends."""

    bytes: int = 0


@contextmanager
def memory_growth(device: str | torch.device = "cpu") -> Iterator[Growth]:
    """Measure the most memory in use at any time inside, over that in use at entry, as `peak_memory_bytes` counts it.

    On the CPU this is what the process grows by, with all that the operations and the allocator take beside the
    tensors; see `peak_allocation` for the tensors alone. Linux forgets the earlier peak at entry; elsewhere the process
    must not have had a higher one before, so use a fresh process.
    """
    device, growth = torch.device(device), Growth()
    before = restart_peak_memory(device)
    try:
        yield growth
    finally:
        growth.bytes = max(0, peak_memory_bytes(device) - before)


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next allocation; returns whether it could.

    By default glibc hands large freed buffers back to the kernel, and each training step then faults its
    activations in anew, page by page (7,000 faults a step of a small convolutional network; without them
    the step is 1.2 to 1.4 times as fast). The process then holds its high-water mark of memory until it
    ends. Call it before threads start. Where the C library is not glibc it does nothing and returns False.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    # an older glibc refuses a threshold above 32 MiB
    large = mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25)
    never_trim, one_arena = mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_ARENA_MAX, 1)
    mallopt(
        M_TOP_PAD, 1 << 27
    )  # threads that have an arena of their own already give back heaps of 64 MiB but for this
    return bool(large and never_trim and one_arena)


def return_freed_memory() -> bool:
    """Let the C library give large freed buffers back to the system, always; returns whether it could.

    By itself glibc does so only at first: with each large buffer that is freed it raises the size from which on buffers
    have pages of their own, up to 32 MiB, and what is below that stays in the process. What `keep_freed_memory` has
    kept before is not given back by this, but what is freed from now on is. Where the C library is not glibc it does
    nothing and returns False.
    """
    mallopt = _mallopt()
    settings = (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD)
    return mallopt is not None and all(mallopt(setting, _LARGE) for setting in settings)


def _mallopt() -> Callable[[int, int], int] | None:
    """Return glibc's function that sets how memory is kept, or None where there is none."""
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return None
    try:
        found: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return None
    return found


def _peak_on_linux() -> int:
    """VmHWM of this process, or 0; unlike ru_maxrss it does not begin with what the parent had in use."""
    return _status_on_linux("VmHWM")


def _status_on_linux(name: str) -> int:
    """Return a line of the process's status in bytes, or 0."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def free_memory_bytes(device: str | torch.device = "cpu") -> int | None:
    """Return how much memory can still be had on a device, in bytes, or None where the system does not say."""
    device = torch.device(device)
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


def _peak_of_getrusage() -> int:
    """ru_maxrss, which counts bytes on macOS and KiB elsewhere."""
    import resource  # there is none on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_on_windows() -> int:
    """PeakWorkingSetSize of GetProcessMemoryInfo, or 0 if the call fails."""
    size_t = ctypes.c_size_t
    names = ["size", "faults", "peak", "working", "a", "b", "c", "d", "pagefile", "peak_pagefile"]
    types = [ctypes.c_uint32, ctypes.c_uint32] + [size_t] * 8
    counters_type = type("Counters", (ctypes.Structure,), {"_fields_": list(zip(names, types, strict=True))})
    counters = counters_type()
    windll = getattr(ctypes, "windll", None)
    if windll is None:
        return 0
    process = ctypes.c_void_p(windll.kernel32.GetCurrentProcess())
    windll.psapi.GetProcessMemoryInfo(process, ctypes.byref(counters), ctypes.sizeof(counters))
    return int(counters.peak)
