"""Damage files of every kind that Sidestep reads: each is read as before, or refused in a sentence.

A run's folder must give the results that it gave, say what is wrong, or be refused. Data have no digest: a changed
picture is read or refused. What else comes out is counted: a traceback, a changed result without a word, or a reader
that takes more than ten seconds. Prints the counts by format, and an example of every failure.
"""

import collections
import gzip
import io
import os
import random  # noqa: TID251
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.fuzz_steplog import forge, parts_of
from benchmarks.soak import FAILURES
from benchmarks.soak._changes import BINARY, TEXT
from benchmarks.soak._samples import Sample, Told, samples
from sidestep import checkpoint
from sidestep.errors import SidestepError

__all__ = ["run"]

DEFAULT = 3000
SECONDS = 10
_MEMORY = 3 << 30  # bytes of address space above what is in use: an absurd length must not fill the machine
_PLACES = 0.06  # share of cases in which something else than a file stands in its place


class _TooLongError(BaseException):
    """Not an Exception: nothing may swallow it."""


def run(seed: int, count: int, show: Callable[[str], None] = print) -> dict[str, int]:
    """Try `count` cases, the formats in turn, and return the counts over all formats."""
    dice = random.Random(seed)
    by_format: dict[str, collections.Counter[str]] = {}
    examples: dict[str, str] = {}
    shared = Path("/dev/shm")  # in memory, where there is such a folder: writing to a disk takes most of the time
    folder = shared if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder) as place, _limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = samples(Path(place))
        wanted = {sample.format: [_outcome(sample, reader, Path(place)) for reader in sample.readers]
                  for sample in known}  # fmt: skip
        for name, outcomes in wanted.items():
            assert all(kind == "same" for kind, _ in outcomes), (name, outcomes)
        for index in range(count):
            sample = known[index % len(known)]
            counts = by_format.setdefault(sample.format, collections.Counter())
            how, damage = _damage(sample, dice)
            chosen = dice.randrange(len(sample.readers))
            reader, (_, before) = sample.readers[chosen], wanted[sample.format][chosen]
            kind, found = _outcome(sample, reader, Path(place), damage)
            if kind == "same" and sample.exact and found != before:
                kind = "silent differences"
            counts[kind] += 1
            if kind in FAILURES:
                examples.setdefault(_key(sample, reader, how, kind, found), f"case {index} of seed {seed}")
    for name, counts in by_format.items():
        show(f"  {name:18}" + ", ".join(f"{kind} {number:,}" for kind, number in sorted(counts.items())))
    for example, case in examples.items():
        show(f"  FAILED {case}: {example}")
    total: collections.Counter[str] = collections.Counter({"cases": count})
    for counts in by_format.values():
        total.update(counts)
    return {**dict.fromkeys(FAILURES, 0), **total}


def _key(sample: Sample, reader: Any, how: str, kind: str, found: object) -> str:
    words = str(found)[-600:] if kind != "silent differences" else ""
    return f"{kind}, {sample.format}, {getattr(reader, '__name__', reader)}, {how}: {words}"


def _outcome(
    sample: Sample, reader: Any, place: Path, damage: Callable[[Path], None] | None = None
) -> tuple[str, object]:
    """Read a damaged copy, and return what kind of end it had, and what was found."""
    copy = place / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sample.folder, copy, symlinks=True)
    if damage:
        damage(copy / sample.file)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return "same", reader(copy)
    except Told as told:
        return "told", str(told)
    except SidestepError as error:
        return "refused", str(error)
    except _TooLongError:
        return "hangs", f"more than {SECONDS} s"
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "tracebacks", f"{type(error).__name__}: {str(error)[:200]} at {where.filename}:{where.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _damage(sample: Sample, dice: random.Random) -> tuple[str, Callable[[Path], None]]:
    """Return the name of a damage, and what does it to a file."""
    if dice.random() < _PLACES:
        put = dice.choice(_INSTEAD)
        return put.__name__, put
    original = (sample.folder / sample.file).read_bytes()
    inside = _INSIDE.get(sample.format)
    if inside and dice.random() < 0.4:
        data = inside(sample.folder / sample.file, dice)
        return "inside", lambda path: _write(path, data)
    change = dice.choice(TEXT if sample.text else BINARY)
    changed = change(original, dice)
    return change.__name__, lambda path: _write(path, changed)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _full_folder(path: Path) -> None:
    _folder(path)
    (path / "mine").write_text("x")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _nothing(path: Path) -> None:
    path.unlink()


def _circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _temporary(path: Path) -> None:
    """Put a folder where the file is written before it is moved."""
    (path.parent / f"{checkpoint.TEMPORARY_PREFIX}{path.name}.{os.getpid()}").mkdir()


_INSTEAD = (_folder, _full_folder, _fifo, _nothing, _circle, _dangling, _temporary)


def _changed(data: bytes, dice: random.Random) -> bytes:
    return dice.choice(BINARY)(data, dice)


def _in_gzip(path: Path, dice: random.Random) -> bytes:
    """Change what is packed, and pack it again: the checksum is right."""
    return gzip.compress(_changed(gzip.decompress(path.read_bytes()), dice), 1, mtime=0)


def _in_zip(path: Path, dice: random.Random) -> bytes:
    """Change a member, its name or its kind, with the right checksum."""
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w") as new:
        names = old.namelist()
        chosen = dice.choice(names)
        for name in names:
            data = old.read(name)
            if name == chosen:
                how = dice.randrange(8)
                name = {0: name.removesuffix(".npy"), 1: f"../{name}", 2: "x" * 3000, 3: "\udc80"}.get(how, name)
                data = data if how == 0 else _changed(data, dice)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    new.writestr(zipfile.ZipInfo(name), data)
                except (UnicodeEncodeError, ValueError):
                    new.writestr("odd.npy", data)
    return packed.getvalue()


def _in_log(path: Path, dice: random.Random) -> bytes:
    """Leave a block out, or write bytes that no checksum speaks for behind the last."""
    parts = parts_of(path)
    data = forge(parts, dice)  # with the right checksums, so that only its shape can tell
    return data if dice.random() < 0.0 else b"".join(parts[:-1]) + parts[-1][: dice.randrange(len(parts[-1]))]


_INSIDE: dict[str, Callable[[Path, random.Random], bytes]] = {
    "npz": _in_zip, "npz, compressed": _in_zip, "idx images": _in_gzip, "idx labels": _in_gzip,
    "cifar archive": _in_gzip, "steps.steplog": _in_log,
}  # fmt: skip


@contextmanager
def _limits() -> Iterator[None]:
    """Interrupt what takes too long, and let what wants too much memory fail."""

    def ring(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)
