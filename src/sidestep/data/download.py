"""Original files from the network into a folder: checksummed, from several mirrors, never half a file.

pooch writes to a temporary name, compares the md5, and renames only a whole file; a file that is there
already is compared too, and fetched again when it was cut or changed.
"""

import hashlib
import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sidestep.errors import DataError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Remote", "fetch", "find_local"]

CHUNK = 1 << 18  # bytes between two movements of the bar
TIMEOUT = 30.0  # seconds without an answer, or without a byte


@dataclass(frozen=True)
class Remote:
    """A file on the network: its name here, its md5, and the addresses that have it, tried in this order."""

    file: str
    md5: str
    urls: tuple[str, ...]


def fetch(remote: Remote, folder: Path, *, progress: bool = False, rounds: int = 2, pause: float = 1.0) -> Path:
    """The whole file in `folder`, downloaded unless it is there with the right md5 already.

    Every address is tried in turn, `rounds` times, with `pause` seconds between rounds; `progress` shows a
    bar on a terminal's standard error. Raises DataError naming what each address answered, or that the folder
    is not writable.
    """
    import pooch  # imported here, for digits and local files need no network
    import requests.exceptions

    failures: list[str] = []
    for attempt in range(rounds):
        if attempt:
            time.sleep(pause)
        for url in remote.urls:
            with _quiet(pooch.get_logger()), _bar(remote.file, progress) as bar:
                downloader = pooch.HTTPDownloader(progressbar=bar or False, chunk_size=CHUNK, timeout=TIMEOUT)
                try:
                    return Path(pooch.retrieve(url, f"md5:{remote.md5}", remote.file, folder, downloader=downloader))
                except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: another md5
                    failures.append(f"{url}: {_reason(error)}")
                except OSError as error:
                    raise DataError(f"cannot store {remote.file} in {folder}: {error.strerror or error}") from error
    raise DataError(
        f"cannot download {remote.file}:\n  "
        + "\n  ".join(dict.fromkeys(failures))
        + f"\nfetch it by other means into a folder, as {remote.file}, and name that as data_dir "
        "(--data-dir); or train on digits, which need no network"
    )


def find_local(remote: Remote, folders: Collection[Path], other_md5s: Collection[str] = ()) -> Path | None:
    """The file in the first of `folders` that has it whole; None if none has it.

    A file of this name that is the original of another set (`other_md5s`; MNIST and Fashion-MNIST share their
    names) is passed by; any other content is a damaged file, which raises DataError.
    """
    for folder in folders:
        path = folder / remote.file
        if not path.is_file():
            continue
        md5 = _md5(path)
        if md5 == remote.md5:
            return path
        if md5 not in other_md5s:
            raise DataError(
                f"{path} is not the whole original file ({path.stat().st_size} bytes with md5 {md5}, "
                f"need md5 {remote.md5}): it may have been cut; remove it or fetch it again"
            )
    return None


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """One line for the list of failures."""
    if isinstance(error, ValueError) and "hash" in str(error).lower():
        return "what it sent is not the original file (another md5): cut, or changed"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no further word'}"


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """pooch announces each download on standard error; the caller decides what is shown."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _bar(label: str, wanted: bool) -> Iterator["_Bar | None"]:
    if not wanted:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)  # standard output belongs to results
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        yield _Bar(shown, shown.add_task(label, total=None))


class _Bar:
    """What pooch asks of a progress bar, drawn by rich; pooch sets `total` and counts bytes."""

    def __init__(self, shown: "Progress", task: "TaskID") -> None:
        self.shown, self.task = shown, task
        self.total = 0

    def update(self, count: int) -> None:
        self.shown.update(self.task, total=self.total or None, advance=count)

    def reset(self) -> None:
        self.shown.update(self.task, completed=0)

    def close(self) -> None:
        self.shown.refresh()
