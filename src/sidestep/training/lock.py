"""One writer for a folder: a lock that is held while a run is written, and who holds it."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from sidestep.errors import BusyError, CheckpointError, InputError
from sidestep.files import check_plain, read_json, write_json
from sidestep.notices import tell

__all__ = ["LOCK_FILES", "only_writer"]

LOCK_FILES = (".lock", ".lock.json")  # the lock and its owner; what a killed process leaves does no harm
_CANNOT = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def only_writer(folder: Path, notice: Callable[[str], None] = tell) -> Iterator[None]:
    """Hold the lock of a folder that is there. The system lets go of it when the process ends, however it ends.

    Args:
        folder: to be written to.
        notice: told a sentence where the file system cannot lock; then nothing is locked. By default, a RunNotice.

    Raises:
        BusyError: if another process, or another part of this one, is writing there.
        InputError: if the folder cannot be written to.
    """
    lock_file, owner_file = (folder / name for name in LOCK_FILES)
    for file in (lock_file, owner_file):
        check_plain(file)
    lock, held = _lock(lock_file), False
    try:
        _acquire(lock, lock_file)
        held = True
    except Timeout as error:
        raise BusyError(f"{folder} is being written {_by_whom(owner_file)}: {_WHAT_NOW}") from error
    except (OSError, NotImplementedError) as error:
        number = getattr(error, "errno", errno.ENOSYS)
        if number not in _CANNOT:
            raise InputError(
                f"the folder {folder} cannot be written to ({getattr(error, 'strerror', error)}): eval and predict "
                "read it as it is; to train, copy it to where you may write, or choose another --out"
            ) from error
        notice(f"the file system of {folder} cannot lock files: see to it that no other process writes there")
    try:
        if held:
            _sign(owner_file)
        yield
    finally:
        if held:
            for file in (owner_file, lock_file):  # while it is held; `_acquire` knows that it may go meanwhile
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
            lock.release()


def _lock(file: Path) -> BaseFileLock:
    try:  # a mark in place of a lock would outlive a kill
        return FileLock(file, timeout=0, fallback_to_soft=False)
    except TypeError:  # filelock 3 has no such option, and does not fall back
        return FileLock(file, timeout=0)


def _acquire(lock: BaseFileLock, file: Path) -> None:
    for _ in range(10):
        lock.acquire()
        if file.exists():
            return
        lock.release()  # of a file that its last owner has just removed: others would lock another one
    raise Timeout(str(file))


_WHAT_NOW = "wait until it is done, stop it, or choose another --out"


def _sign(file: Path) -> None:
    started = datetime.now(timezone.utc).isoformat(sep=" ", timespec="seconds")
    write_json(file, {"host": socket.gethostname(), "pid": os.getpid(), "started": started})


def _by_whom(file: Path) -> str:
    try:
        owner = read_json(file)
        here = owner["host"] == socket.gethostname()
        itself = here and owner["pid"] == os.getpid()
        who = "by this process" if itself else f"by process {int(owner['pid'])} on {str(owner['host'])[:100]!s}"
        return f"{who} since {str(owner['started'])[:40]}"
    except (CheckpointError, LookupError, TypeError, ValueError):
        return "by another process"
