"""The original files of known sets: MNIST's idx, CIFAR's binary archives, and scikit-learn's digits."""

import gzip
import tarfile
import zlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sidestep.data.check import Array
from sidestep.data.cut import hold_out
from sidestep.data.source import Reader, Source
from sidestep.errors import DataError

__all__ = ["cifar_source", "digits_source", "idx_source"]

DIGITS_TEST = 360
CIFAR_PIXELS = 3 * 32 * 32
CIFAR_BATCHES = tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6))


def digits_source(name: str, paths: tuple[Path, ...], class_names: tuple[str, ...]) -> Source:
    """scikit-learn's 1,797 digits; which 360 are the test split is fixed for ever and does not depend on a
    seed.

    Pixels of 0..16 become round(255 / 16 pixel), uint8. The original order goes by writers, so the test
    images are drawn by counter noise from all of them.
    """
    images, labels = _digits()
    kept, held = (part.numpy() for part in hold_out(len(labels), DIGITS_TEST, "digits test"))
    return Source(
        name,
        train=partial(_given, images[kept], labels[kept]),
        test=partial(_given, images[held], labels[held]),
        class_names=class_names,
    )


def _given(images: Array, labels: Array) -> tuple[Array, Array]:
    return images, labels


def idx_source(name: str, paths: tuple[Path, ...], class_names: tuple[str, ...]) -> Source:
    """Four idx `.gz` files: train images, train labels, test images, test labels."""
    train_images, train_labels, test_images, test_labels = paths
    return Source(
        name,
        train=partial(_idx_pair, train_images, train_labels),
        test=partial(_idx_pair, test_images, test_labels),
        class_names=class_names,
    )


def cifar_source(name: str, paths: tuple[Path, ...], class_names: tuple[str, ...]) -> Source:
    """The binary CIFAR-10 or CIFAR-100 archive, read in place: each record is the label (coarse and fine: the
    last one counts) and 3072 bytes, red, green, blue.
    """
    (path,) = paths
    if name == "cifar100":
        train: Reader = partial(_cifar, path, ("cifar-100-binary/train.bin",), 2)
        test: Reader = partial(_cifar, path, ("cifar-100-binary/test.bin",), 2)
    else:
        train = partial(_cifar, path, CIFAR_BATCHES, 1)
        test = partial(_cifar, path, ("cifar-10-batches-bin/test_batch.bin",), 1)
    return Source(name, train, test=test, class_names=class_names)


def _digits() -> tuple[Array, Array]:
    spec = find_spec("sklearn")  # finds the folder without the two seconds that importing scikit-learn takes
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the digits are a file of scikit-learn, which is not installed: pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(path, delimiter=",")  # (1797, 65): 64 pixels and the label
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"scikit-learn's digits cannot be read ({error}): install scikit-learn again, or use another set"
        ) from error
    return np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8), table[:, 64].astype(np.int64)


def _idx_pair(images: Path, labels: Path) -> tuple[Array, Array]:
    return _idx(images, 3), _idx(labels, 1)


def _check_file(path: Path) -> None:
    if not path.is_file():  # opening a pipe would wait for whoever writes to it
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")


def _idx(path: Path, dimensions: int) -> Array:
    """An idx array of bytes: two zeros, type 8, the number of dimensions, their lengths in 4 bytes each, the
    data.
    """
    _check_file(path)
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut short ({error}); remove it and fetch it again") from error
    start = 4 + 4 * dimensions
    if raw[:4] != bytes((0, 0, 8, dimensions)) or len(raw) < start:
        raise DataError(f"{path}: not an idx file of {dimensions}-dimensional bytes; fetch the original again")
    shape = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(dimensions)]
    if len(raw) - start != np.prod(shape):
        raise DataError(f"{path}: says {shape} but holds {len(raw) - start} bytes; fetch the original again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _cifar(path: Path, members: tuple[str, ...], label_bytes: int) -> tuple[Array, Array]:
    """Images (n, 3, 32, 32) and labels (n,) of these members of the archive, in this order; nothing is
    unpacked.
    """
    _check_file(path)
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.name in members and (file := archive.extractfile(member)) is not None:
                    parts[member.name] = file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path}: damaged or cut short ({error}); remove it and fetch it again") from error
    missing = [member for member in members if member not in parts]
    record = label_bytes + CIFAR_PIXELS
    if missing or any(len(part) % record for part in parts.values()):
        wrong = f"no {missing[0]} in it" if missing else f"a member is not a multiple of {record} bytes"
        raise DataError(f"{path}: not the binary CIFAR archive: {wrong}; the python and matlab versions do not serve")
    table = np.frombuffer(b"".join(parts[member] for member in members), np.uint8).reshape(-1, record)
    return table[:, label_bytes:].reshape(-1, 3, 32, 32), table[:, label_bytes - 1]
