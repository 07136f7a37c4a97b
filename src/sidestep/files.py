"""Files that are whole or absent, and plain: written beside their place and moved there, never through a link.

A reader, or a run resumed after a kill at any instant, sees the earlier file or the new one, never a mixture:
data goes to a temporary file in the same folder, is flushed to the disk, and takes its name by one rename. A folder may
come from anybody, so a file in it that is a link, a pipe or a device is refused before it is opened.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

from sidestep.errors import CheckpointError

__all__ = [
    "TEMPORARY_PREFIX",
    "check_plain",
    "digest_of_json",
    "make_folder",
    "open_plain",
    "read_json",
    "read_plain",
    "sealed",
    "sync_folder",
    "unsealed",
    "write_bytes",
    "write_json",
    "write_parts",
    "write_text",
]

TEMPORARY_PREFIX = ".partial."  # what a killed writer leaves; who takes over the folder may remove it
DIGEST = "digest"  # the key of a sealed record's digest
_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}  # this system cannot sync a folder
_MOST_JSON = 1 << 30  # bytes of a record: anything larger is none of ours


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Make `path` hold `data`, or, if anything fails, leave the earlier file as it was.

    Raises CheckpointError when the disk is full or the folder cannot be written to.
    """
    write_parts(Path(path), [data], len(data))


def write_parts(path: Path, parts: Iterable[bytes | memoryview], size: int | None = None) -> None:
    """Make `path` hold the parts, one after another, as `write_bytes` does; a known `size` is told on a full disk."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}.{os.getpid()}")
    try:
        with _new(temporary) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt too: no temporary may stay behind
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CheckpointError(_why_unwritten(path, size, error)) from error
        raise
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path} is written, but its folder could not be flushed to the disk ({error.strerror}): after a power cut "
            "the earlier file may be back. Look after the disk, then continue with --resume"
        ) from error


def _new(path: Path) -> BinaryIO:
    """Make a file that was not there; what has its name, say a link that waits for us, goes first."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        return open(os.open(path, flags, 0o666), "wb")
    except FileExistsError:
        path.unlink()
        return open(os.open(path, flags, 0o666), "wb")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Make `path` hold `text` in UTF-8, by `write_bytes`."""
    write_bytes(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Make a new or renamed entry of a folder last through a power cut, where the system can sync a folder.

    Raises OSError if it can, and failed.
    """
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written but not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:  # some network file systems cannot; the rename is atomic all the same
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that they last through a power cut; raises OSError."""
    missing = [folder, *folder.parents]
    missing = [each for each in missing if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def check_plain(path: Path, alone: bool = False) -> bool:
    """Return whether there is such a file.

    Args:
        path: of the file.
        alone: whether it must have no other name (a hard link), since it is going to be changed in place.

    Raises:
        CheckpointError: if it is a link, a folder, a pipe or a device, or cannot be looked at.
    """
    try:
        facts = os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    _check_kind(path, facts, alone)
    return True


def open_plain(path: Path, flags: int, alone: bool = False) -> BinaryIO:
    """Open a file by the flags of `os.open`, as `check_plain` allows it and however fast it is exchanged.

    Raises:
        CheckpointError: if it is a link, a folder, a pipe or a device.
        OSError: if it cannot be opened.
    """
    if not hasattr(os, "O_NOFOLLOW"):
        check_plain(path, alone)
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags | safe, 0o666)
    except OSError:
        check_plain(path, alone)  # which of them it is
        raise
    mode: Literal["r+b", "wb", "rb"] = "r+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb"
    try:
        _check_kind(path, os.fstat(descriptor), alone)
        return open(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: Path, most: int = _MOST_JSON) -> bytes:
    """Return what a file holds; raises CheckpointError for what `check_plain` refuses, OSError, or a larger file."""
    with open_plain(path, os.O_RDONLY) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise CheckpointError(f"{path} has more than {most:,} bytes, so it is not what a run has written")
    return data


def _check_kind(path: Path, facts: os.stat_result, alone: bool) -> None:
    if stat.S_ISLNK(facts.st_mode):
        raise CheckpointError(
            f"{path} is a link: a run's files are read and written in its own folder only. Put a copy of the file in "
            "its place (cp -L), or remove the link"
        )
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe, a socket or a device"
        raise CheckpointError(f"{path} is {kind} and no file: remove it, or choose another folder")
    if alone and facts.st_nlink > 1:
        raise CheckpointError(
            f"{path} has {facts.st_nlink} names (hard links), and the others would be changed with it: put a copy of "
            "the file in its place"
        )


def digest_of_json(record: Any) -> str:
    """Return a blake2b digest of what a JSON value says, however it is laid out."""
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of plain JSON with one entry more at its end, the digest of all others.

    >>> sealed({"steps": 3})
    {'steps': 3, 'digest': '325d497e54f3985f276b1411041e535e'}
    """
    plain = {key: value for key, value in json.loads(json.dumps(record)).items() if key != DIGEST}
    return {**plain, DIGEST: digest_of_json(plain)}


def unsealed(record: Mapping[str, Any], what: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a record without its digest, if that is right; `what` names it in the CheckpointError otherwise."""
    plain = {key: value for key, value in record.items() if key != DIGEST}
    if record.get(DIGEST) != digest_of_json(plain):
        raise CheckpointError(f"{what} was changed or damaged after it was written: its content has another digest")
    return plain


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any], indent: int | None = None) -> None:
    """Make `path` hold a record of plain JSON and its digest, as `write_bytes` does: numbers that are quoted later."""
    write_text(path, json.dumps(sealed(record), indent=indent) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the record that `write_json` wrote, after comparing it with its digest.

    Raises:
        CheckpointError: if there is none, or it was changed or damaged.
    """
    try:
        record = json.loads(read_plain(Path(path)))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return unsealed(record, path)


def _why_unwritten(path: Path, size: int | None, error: OSError) -> str:
    kept = "the earlier file is untouched" if path.exists() else "nothing was written"
    if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"cannot write {path}: {error.strerror}; {kept}"
    free = shutil.disk_usage(path.parent).free
    return (
        f"the disk is full: {path} needs {'more' if size is None else f'{size} bytes'} and {free} are free; {kept}. "
        "Free some space, then continue with --resume"
    )
