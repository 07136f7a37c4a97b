"""Small files of every kind that Sidestep reads, each with the readers that it must not mislead."""

import gzip
import hashlib
import io
import shutil
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from sidestep import data
from sidestep.checkpoint import TEMPORARY_PREFIX
from sidestep.data import read_images
from sidestep.data.images.archives import cifar_source, idx_source
from sidestep.data.source import assemble
from sidestep.rules import RULES
from sidestep.steplog import LogReader, rebuild, summary
from sidestep.training import Options, alignment_curves, load_run, train
from sidestep.training.folder import RunFolder
from sidestep.training.progress import Silent

__all__ = ["Reader", "Sample", "ToldError", "samples"]

Reader = Callable[[Path], object]  # of the folder that holds the file: what it finds, to be compared
_CLASSES = ("cat", "dog", "owl")


@dataclass(frozen=True)
class Sample:
    """One file of a folder, and what reads it."""

    format: str
    folder: Path
    file: str
    readers: tuple[Reader, ...]
    text: bool = False
    exact: bool = True  # whether what is read must be as before; data have no digest


class ToldError(Exception):
    """The reader gave a result and said that something was wrong."""


class _Listening(Silent):
    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, text: str) -> None:
        """Keep it."""
        self.told.append(text)


def samples(folder: Path) -> list[Sample]:
    """Make all files in a folder, and return them."""
    return [*_run_samples(folder), *_data_samples(folder)]


def _pixels(count: int) -> np.ndarray:
    return (np.arange(count * 16).reshape(count, 4, 4) * 37 % 251).astype("uint8")


def _set() -> data.DataSet:
    images, labels = _pixels(40), np.arange(40) % 3
    return data.from_arrays(images[:30], labels[:30], images[30:], labels[30:], class_names=_CLASSES)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


RULE = RULES["spsa"](hidden=(4,))
OPTIONS = Options(epochs=1, batch=14, device="cpu", precision="float32")


def _run_samples(folder: Path) -> Iterator[Sample]:
    found = _set()
    images = found.test.images

    def go_on(path: Path, epochs: int = 2) -> object:
        """Train one epoch more, and return the weights and what stands in the metrics."""
        listening = _Listening()
        options = Options(epochs=epochs, batch=14, device="cpu", precision="float32", out=path, resume=True)
        run = train(RULE, found, options, progress=listening)
        lines = [line.partition(b', "seconds"')[0] for line in (path / "metrics.jsonl").read_bytes().splitlines()]
        left = (
            run.result["readings"],
            sorted(
                entry.name
                for entry in path.iterdir()
                if entry.name != "units" and not entry.name.startswith(TEMPORARY_PREFIX)
            ),
        )
        result = _digest(run.net.state_dict()), lines, left
        return _or_told(result, listening.told)

    def finish(path: Path) -> object:
        return go_on(path, 1)

    def look(path: Path) -> object:
        run = load_run(path, device="cpu")
        result = run.predict(images).numpy().tobytes(), run.task, run.step, RunFolder(path).unfinished(run.step)
        return (*result, run.evaluate(found.test))

    def look_without_state(path: Path) -> object:
        (path / "state.safetensors").unlink()
        return look(path)

    def replay(path: Path) -> object:
        rebuilt = rebuild(path / "steps.steplog")
        return _or_told(_digest(rebuilt.net.state_dict()), [rebuilt.damage] if rebuilt.damage else [])

    def inspect(path: Path) -> object:
        record = summary(LogReader(path / "steps.steplog"))
        return _or_told(repr(record), [record["damage"]] if record["damage"] else [])

    run = folder / "run"
    train(RULE, found, Options(epochs=1, batch=14, device="cpu", precision="float32", out=run, align=0.05))
    evaluating = folder / "evaluating"
    shutil.copytree(run, evaluating)
    _stop_in_evaluation(evaluating, found)
    units = folder / "with units"
    shutil.copytree(run, units)
    (units / "units").mkdir()
    shutil.copy(run / "model.safetensors", units / "units" / "0-0.safetensors")
    yield Sample("config.toml", run, "config.toml", (look, go_on, look_without_state), text=True)
    yield Sample("metrics.jsonl", run, "metrics.jsonl", (go_on, alignment_curves), text=True)
    yield Sample("state.safetensors", run, "state.safetensors", (look, go_on))
    yield Sample("model.safetensors", run, "model.safetensors", (look_without_state, finish))
    yield Sample("steps.steplog", run, "steps.steplog", (replay, inspect, go_on))
    yield Sample("result.json", run, "result.json", (look, finish), text=True)
    yield Sample("evaluation.json", evaluating, "evaluation.json", (finish,), text=True)
    yield Sample("units", units, "units/0-0.safetensors", (go_on, look))


def _stop_in_evaluation(path: Path, found: data.DataSet) -> None:
    """Leave the folder as a stop in the evaluation at the end leaves it."""
    import signal

    class Stopping(Silent):
        def evaluating(self, what: str) -> None:
            """Stop once something has been counted."""
            if ":" in what:
                signal.raise_signal(signal.SIGINT)

    (path / "result.json").unlink()
    options = Options(epochs=1, batch=14, device="cpu", precision="float32", out=path, resume=True)
    with _quiet():
        try:
            train(RULE, found, options, progress=Stopping())
        except KeyboardInterrupt:
            return
    raise AssertionError("the evaluation was not stopped")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _or_told(result: object, told: list[str]) -> object:
    if told:
        raise ToldError("; ".join(told))
    return result


def _data_samples(folder: Path) -> Iterator[Sample]:
    place = folder / "data"
    place.mkdir()
    images, labels = _pixels(12), np.arange(12) % 3
    np.savez(place / "set.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4],
             class_names=np.array(_CLASSES))  # fmt: skip
    np.savez_compressed(place / "packed.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    np.save(place / "images.npy", images)

    def load(file: str) -> Reader:
        def read(path: Path) -> object:
            loaded = data.load(path / file, validation=0.25)
            return len(loaded.train), len(loaded.test)

        return read

    def pictures(file: str) -> Reader:
        return lambda path: len(read_images(path / file, (1, 4, 4)))

    yield Sample("npz", place, "set.npz", (load("set.npz"), pictures("set.npz")), exact=False)
    yield Sample("npz, compressed", place, "packed.npz", (load("packed.npz"),), exact=False)
    yield Sample("npy", place, "images.npy", (pictures("images.npy"),), exact=False)
    yield from _picture_samples(folder)
    yield from _archive_samples(folder)


def _picture_samples(folder: Path) -> Iterator[Sample]:
    def load(path: Path) -> object:
        loaded = data.load(path, validation=0.25)
        return len(loaded.train)

    for kind in ("png", "jpg", "tiff", "gif", "webp", "bmp"):
        place = folder / f"{kind} pictures"
        for name in ("cat", "dog"):
            (place / name).mkdir(parents=True)
            for index in range(3):
                colour = np.stack([_pixels(index + 1)[index]] * 3, axis=-1)
                Image.fromarray(colour).save(place / name / f"{index}.{kind}")
        file = f"cat/0.{kind}"
        one: Reader = lambda path, file=file: tuple(read_images(path / file, (3, 4, 4)).shape)  # noqa: E731
        yield Sample(kind, place, file, (one, load), exact=False)


def _archive_samples(folder: Path) -> Iterator[Sample]:
    place = folder / "archives"
    place.mkdir()
    images, labels = _pixels(12), (np.arange(12) % 3).astype("uint8")
    names = ("train-images.gz", "train-labels.gz", "test-images.gz", "test-labels.gz")
    for name, array in zip(names, (images, labels, images, labels), strict=True):
        head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (place / name).write_bytes(gzip.compress(head + array.tobytes(), mtime=0))
    records = b"".join(bytes([label]) + bytes(3072) for label in (0, 1, 2, 0, 1, 2))
    with tarfile.open(place / "cifar.tar.gz", "w:gz") as archive:
        for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(records)
            archive.addfile(entry, io.BytesIO(records))

    def idx(path: Path) -> object:
        loaded = assemble(idx_source("idx", tuple(path / name for name in names), _CLASSES), 0.25)
        return len(loaded.train), len(loaded.test)

    def cifar(path: Path) -> object:
        loaded = assemble(cifar_source("cifar10", (path / "cifar.tar.gz",), _CLASSES), 0.25)
        return len(loaded.train), len(loaded.test)

    yield Sample("idx images", place, names[0], (idx,), exact=False)
    yield Sample("idx labels", place, names[1], (idx,), exact=False)
    yield Sample("cifar archive", place, "cifar.tar.gz", (cifar,), exact=False)
