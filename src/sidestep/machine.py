"""What this computer has left: memory that can still be had."""

from contextlib import suppress
from pathlib import Path

__all__ = ["free_memory"]

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Return how many bytes of memory can still be had, or None where the system does not say.

    On Linux it is the lesser of what the system has and what the limit of a container (cgroup v2) leaves.
    """
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = MEMINFO.read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit.isdecimal():
            found.append(max(0, int(limit) - int((CGROUP / "memory.current").read_text())))
    return min(found, default=None)
