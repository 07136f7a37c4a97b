"""Original files from the network into a folder: checksummed, from several mirrors, never half a file.

A download has a hidden folder of its own, locked for as long as its process lives. The checksum is compared there, and
only a whole file gets its place and name. What a killed download leaves is never taken for the file, and the next one
removes it. A file that is there already is compared, too, and fetched again if it was cut or changed.
"""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from sidestep.errors import DataError

if TYPE_CHECKING:
    from requests import Response
    from rich.progress import Progress, TaskID

__all__ = ["Remote", "fetch", "find_local"]

CHUNK = 1 << 18  # bytes between two movements of the bar
TIMEOUT = 30.0  # seconds without an answer, or without a byte
LOCK = "lock"


@dataclass(frozen=True)
class Remote:
    """A file on the network: its name here, its md5, and the addresses that have it, tried in this order."""

    file: str
    md5: str  # as its publisher gives it
    urls: tuple[str, ...]
    sha256: str | None = None  # of a file with that md5, where one was at hand; then it is what counts

    @property
    def checksum(self) -> tuple[str, str]:
        """The algorithm and the digest that the file is compared by."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", self.md5)


def fetch(remote: Remote, folder: Path, *, progress: bool = False, rounds: int = 2, pause: float = 1.0) -> Path:
    """The whole file in `folder`, downloaded unless it is there with the right checksum already.

    Every address is tried in turn, `rounds` times, with `pause` seconds between rounds; `progress` shows a
    bar on a terminal's standard error. Raises DataError naming what each address answered, or that the folder is
    not writable.
    """
    import requests.exceptions  # imported here, for digits and local files need no network

    path, failures = folder / remote.file, list[str]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_left(folder, remote.file)
        if path.is_file() and _is_whole(path, remote):
            return path
        with _place(folder, remote.file) as part:
            for attempt in range(rounds):
                time.sleep(pause if attempt else 0)
                for url in remote.urls:
                    try:
                        _download(url, part, remote.file, progress)
                    except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: a false length
                        failures.append(f"{url}: {_reason(error)}")
                        continue
                    if _is_whole(part, remote):
                        part.replace(path)
                        return path
                    kind = remote.checksum[0]
                    failures.append(f"{url}: what it sent is not the original file (another {kind}): cut, or changed")
    except OSError as error:
        raise DataError(f"cannot store {remote.file} in {folder}: {error.strerror or error}") from error
    raise DataError(
        f"cannot download {remote.file}, from {'; nor from '.join(dict.fromkeys(failures))}. Fetch it by other means "
        f"into a folder, as {remote.file}, and name that as data_dir (--data-dir); or train on digits, which need no "
        "network"
    )


@contextmanager
def _place(folder: Path, file: str) -> Iterator[Path]:
    """Where a download writes to, in a folder of its own; it is gone afterwards, whatever happens but a kill."""
    from filelock import FileLock

    own = Path(tempfile.mkdtemp(prefix=f".{file}.", dir=folder))
    try:
        with FileLock(own / LOCK):
            yield own / file
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _remove_left(folder: Path, file: str) -> None:
    """Remove what killed downloads of this file have left: the system has released their locks."""
    from filelock import FileLock, Timeout

    for left in list(folder.iterdir()):
        if not left.name.startswith(f".{file}.") or left.is_symlink() or not (left / LOCK).is_file():
            continue
        try:
            with FileLock(left / LOCK, timeout=0):
                pass
        except Timeout:  # another process is at it
            continue
        shutil.rmtree(left, ignore_errors=True)


def _download(url: str, part: Path, label: str, progress: bool) -> None:
    """One attempt, from the beginning."""
    import pooch

    with _bar(label, progress) as bar:
        downloader = pooch.HTTPDownloader(
            progressbar=bar or False, chunk_size=CHUNK, timeout=TIMEOUT, hooks={"response": _stay_encrypted}
        )
        downloader(url, str(part), None)


def _stay_encrypted(response: "Response", **_: object) -> None:
    """Follow no redirection from https to anything else."""
    import requests.exceptions

    there = urljoin(response.url, response.headers.get("location", ""))
    if response.is_redirect and urlsplit(response.url).scheme == "https" != urlsplit(there).scheme:
        raise requests.exceptions.ConnectionError(f"it leads on to {there:.200}, which is not https, and not followed")


def _is_whole(path: Path, remote: Remote) -> bool:
    kind, digest = remote.checksum
    return _digest(path, kind) == digest


def find_local(remote: Remote, folders: Collection[Path], other_md5s: Set[str] = frozenset()) -> Path | None:
    """The file in the first of `folders` that has it whole; None if none has it.

    A file of this name that is the original of another set (`other_md5s`; MNIST and Fashion-MNIST share their
    names) is passed by; any other content is a damaged file, which raises DataError.
    """
    for folder in folders:
        path = folder / remote.file
        if not path.is_file():
            continue
        kind, wanted = remote.checksum
        digest = _digest(path, kind)
        if digest == wanted:
            return path
        if _digest(path, "md5") not in other_md5s - {remote.md5}:
            raise DataError(
                f"{path} is not the whole original file ({path.stat().st_size} bytes with {kind} {digest}, "
                f"need {kind} {wanted}): it may have been cut; remove it or fetch it again"
            )
    return None


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """One line for the list of failures."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no further word'}"


@contextmanager
def _bar(label: str, wanted: bool) -> Iterator["_Bar | None"]:
    if not wanted:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)  # standard output belongs to results
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=False) as shown:
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
