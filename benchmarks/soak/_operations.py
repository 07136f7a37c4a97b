"""A patched layer of file operations, in which a process dies, writes half, or is told of an error, at operation k."""

import builtins
import errno
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KILLED = 9  # exit status of a process that died at an operation
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NUMBERS = {"open": errno.ENOSPC, "write": errno.ENOSPC, "mkdir": errno.ENOSPC}  # errors by operation; others: EIO


@dataclass(frozen=True)
class Fault:
    """What happens at which operation, counted from 0."""

    at: int
    kind: str  # kill: before it; torn: after a part of a write; error: it fails, and the process goes on
    share: float = 0.5  # of a torn write that lands


@dataclass
class Operations:
    """Counts the operations under a folder that change files, and strikes at one of them."""

    folder: Path
    fault: Fault | None = None
    seen: list[str] = field(default_factory=list)

    def meet(self, name: str, path: Any, data: Any = None, put: Callable[[Any], Any] | None = None) -> None:
        """Count an operation; `data` and `put` are what is written and how."""
        index = len(self.seen)
        self.seen.append(f"{name} {Path(os.fsdecode(path)).name if isinstance(path, str | bytes | Path) else path}")
        if self.fault is None or index != self.fault.at:
            return
        if self.fault.kind == "error":
            number = NUMBERS.get(name, errno.EIO)
            raise OSError(number, os.strerror(number), os.fsdecode(path) if not isinstance(path, int) else None)
        if self.fault.kind == "torn" and data is not None and put is not None:
            size = memoryview(data).nbytes
            put(memoryview(data).cast("B")[: max(1, int(size * self.fault.share))] if size > 1 else b"")
        os._exit(KILLED)

    def inside(self, path: Any) -> bool:
        """Whether a path is the folder, or in it, or above it."""
        if isinstance(path, int):
            return False
        there = os.path.abspath(os.fsdecode(path))
        return there.startswith(str(self.folder)) or str(self.folder).startswith(there + os.sep)

    def install(self) -> None:
        """Patch this process, which is not to be used for anything else afterwards."""
        opened, real_open, real_fsync = self._opened(), os.open, os.fsync

        def open_descriptor(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & WRITES and self.inside(path):
                self.meet("open", path)
            return real_open(path, flags, *rest, **more)

        def fsync(descriptor: int) -> None:
            self.meet("fsync", "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
            real_fsync(descriptor)

        os.open, os.fsync = open_descriptor, fsync
        builtins.open = io.open = opened
        for name in ("unlink", "remove", "mkdir", "rmdir", "replace", "rename", "truncate", "link", "symlink"):
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *rest: Any, **more: Any) -> Any:
            if self.inside(path):
                self.meet(name, path)
            return real(path, *rest, **more)

        return counted

    def _opened(self) -> Callable[..., Any]:
        real, operations = io.open, self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                operations.meet("write", self.name, data, super().write)
                return super().write(data)

            def truncate(self, size: int | None = None) -> int:
                operations.meet("truncate", self.name)
                return super().truncate(size)

        def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            writes = bool(set(mode) & set("wax+")) and "b" in mode
            if not writes or not (isinstance(file, int) or operations.inside(file)):
                if set(mode) & set("wax+") and operations.inside(file):
                    operations.meet("open", file)
                return real(file, mode, *rest, **more)
            if not isinstance(file, int):
                operations.meet("open", file)
            raw = Raw(file, mode.replace("b", ""), closefd=more.get("closefd", True))
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        return opened
