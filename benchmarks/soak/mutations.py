"""Damage files of every kind that Sidestep reads: each is read as before, or refused in a sentence.

A run's folder must give the results that it gave, say what is wrong, or be refused. Data have no digest: a changed
picture is read or refused. What else comes out is counted: a traceback, a changed result without a word, or a reader
that takes more than ten seconds. Prints the counts by format, and an example of every failure.
"""

import collections
import gzip
import io
import json
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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.fuzz_steplog import forge, parts_of
from benchmarks.soak import FAILURES
from benchmarks.soak._changes import BINARY, TEXT
from benchmarks.soak._samples import Sample, ToldError, samples
from sidestep import checkpoint, files
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
            how, damage, sealed = _damage(sample, dice)
            chosen = dice.randrange(len(sample.readers))
            reader, (_, before) = sample.readers[chosen], wanted[sample.format][chosen]
            kind, found = _outcome(sample, reader, Path(place), damage)
            if kind == "same" and sample.exact and sealed and found != before:
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
    except ToldError as told:
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


def _damage(sample: Sample, dice: random.Random) -> tuple[str, Callable[[Path], None], bool]:
    """Return the name of a damage, what does it to a file, and whether a digest can tell."""
    if dice.random() < _PLACES:
        put = dice.choice(_INSTEAD)
        return put.__name__, put, True
    forge = _FORGED.get(sample.format)
    if forge and dice.random() < 0.4:
        mine = random.Random(dice.getrandbits(64))
        return forge.__name__, lambda path: forge(path, mine), False
    change = dice.choice(TEXT if sample.text else BINARY)
    changed = change((sample.folder / sample.file).read_bytes(), dice)
    return change.__name__, lambda path: _write(path, changed), True


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


def _packed_again(path: Path, dice: random.Random) -> None:
    """Change what is packed, and pack it again: the checksum is right."""
    path.write_bytes(gzip.compress(_changed(gzip.decompress(path.read_bytes()), dice), 1, mtime=0))


def _zipped_again(path: Path, dice: random.Random) -> None:
    """Change a member, its name or its kind, with the right checksum."""
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w") as new:
        names = old.namelist()
        chosen = dice.choice(names)
        for name in names:
            data, written = old.read(name), name
            if name == chosen:
                how = dice.randrange(8)
                written = {0: name.removesuffix(".npy"), 1: f"../{name}", 2: "x" * 3000, 3: "\x1b[2J"}.get(how, name)
                data = data if how == 0 else _changed(data, dice)
            new.writestr(zipfile.ZipInfo(written), data)
    path.write_bytes(packed.getvalue())


def _log_forged(path: Path, dice: random.Random) -> None:
    """Change a log, and put all its checksums right."""
    path.write_bytes(forge(parts_of(path), dice))


def _config_unsealed(path: Path, dice: random.Random) -> None:
    """Remove the digest, or put it right, and change what is left."""
    lines = path.read_bytes().splitlines(keepends=True)
    changed = dice.choice(TEXT)(b"".join(line for line in lines if not line.startswith(b"digest")), dice)
    path.write_bytes(changed)


def _json_sealed(path: Path, dice: random.Random) -> None:
    """Change a record, and put its digest right."""
    record = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "digest"}
    changed = dice.choice(TEXT)(json.dumps(record).encode(), dice)
    with suppress(ValueError, AttributeError, RecursionError):
        changed = json.dumps(files.sealed(json.loads(changed))).encode()
    path.write_bytes(changed)


def _state_sealed(path: Path, dice: random.Random) -> None:
    """Change the record of a checkpoint, or what its tensors are called, and put its digest right."""
    tensors, record = checkpoint.load(path)
    if dice.random() < 0.3:
        old = dice.choice(sorted(tensors))
        new = dice.choice(["", "net/", old + "x", "\x1b[2J[/x]", *tensors])
        tensors[new] = dice.choice([torch.zeros(3), tensors[old].double(), tensors[old][None], tensors[old]])
        del tensors[old if new != old else dice.choice(sorted(tensors))]
    for _ in range(20):
        try:
            changed = json.loads(dice.choice(TEXT)(json.dumps(record).encode(), dice))
            checkpoint.save(path, tensors, changed)
            return
        except (ValueError, SidestepError, RecursionError):
            continue


def _metrics_unsealed(path: Path, dice: random.Random) -> None:
    """Change the metrics, and let the checkpoint know nothing of their digest."""
    data = dice.choice(TEXT)(path.read_bytes(), dice)
    path.write_bytes(data)
    tensors, record = checkpoint.load(path.with_name("state.safetensors"))
    record = {**record, "metrics_bytes": len(data)}
    record.pop("metrics_digest", None)
    checkpoint.save(path.with_name("state.safetensors"), tensors, record)


_FORGED: dict[str, Callable[[Path, random.Random], None]] = {
    "npz": _zipped_again, "npz, compressed": _zipped_again, "idx images": _packed_again, "idx labels": _packed_again,
    "cifar archive": _packed_again, "steps.steplog": _log_forged, "config.toml": _config_unsealed,
    "state.safetensors": _state_sealed, "model.safetensors": _state_sealed, "evaluation.json": _json_sealed,
    "result.json": _json_sealed, "metrics.jsonl": _metrics_unsealed,
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
