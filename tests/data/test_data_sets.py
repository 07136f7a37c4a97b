"""Known sets, .npz files and arrays: what is read, in what form, how it is cut, and what stays unread."""

import gzip
import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sidestep import data
from sidestep.data.cut import hold_out
from sidestep.data.images.catalogue import KNOWN
from sidestep.data.loading import known_source
from sidestep.data.source import assemble
from sidestep.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4


def keras_file(path: Path, **changes: object) -> Path:
    arrays = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:8], "y_test": LABELS[:8], **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_digits_have_a_fixed_test_split() -> None:
    digits = data.load("digits", validation=0)
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1437, 0, 360)
    assert digits.image_shape == (1, 8, 8)
    assert digits.classes == 10
    assert digits.train.images.dtype == torch.uint8
    assert int(digits.train.images.max()) == 255
    assert torch.bincount(digits.test.labels).min() >= 25
    # Published accuracies are on these 360 images: a change of this hash is a change of every figure.
    assert hashlib.md5(digits.test.images.numpy().tobytes()).hexdigest() == "7b38f0b237e43d6f1906a79de6848cc7"


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    digits = data.load("digits", validation=0)
    ours = torch.cat([digits.train.images, digits.test.images]).flatten(1).double()
    theirs = torch.tensor(load_digits().data) * (255 / 16)
    assert float((ours.sort(0).values - theirs.sort(0).values).abs().max()) <= 0.5


@pytest.mark.parametrize(("fraction", "held"), [(0, 0), (0.1, 144), (0.5, 718)])
def test_validation_is_cut_from_train_without_overlap(fraction: float, held: int) -> None:
    whole = data.load("digits", validation=0)
    cut = data.load("digits", validation=fraction)
    assert len(cut.validation) == held
    assert len(cut.train) == 1437 - held
    both = torch.cat([cut.train.images, cut.validation.images]).flatten(1)
    assert torch.equal(both.sort(0).values, whole.train.images.flatten(1).sort(0).values)
    assert torch.equal(cut.test.images, whole.test.images)


def test_the_cut_is_pure_and_nested() -> None:
    before = torch.get_rng_state()
    kept, held = hold_out(100, 20, "validation")
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(100))
    assert set(hold_out(100, 10, "validation")[1].tolist()) < set(held.tolist())
    assert held.tolist() != list(range(20))
    assert hold_out(100, 20, "folder test")[1].tolist() != held.tolist()
    assert torch.equal(torch.get_rng_state(), before)


def test_mean_and_std_are_of_the_train_split_alone() -> None:
    pixels = PIXELS.copy()
    cut = data.from_arrays(pixels, LABELS, 255 - pixels, LABELS, validation=0.25)
    train = cut.train.images.double() / 255
    assert cut.mean == pytest.approx(train.mean((0, 2, 3)).tolist())
    assert cut.std == pytest.approx(train.std((0, 2, 3), correction=0).tolist())
    floats = data.from_arrays(pixels.astype(np.float64) * 3 - 7, LABELS, validation=0)
    assert floats.train.images.dtype == torch.float32
    assert floats.mean == pytest.approx((pixels * 3.0 - 7).mean((0, 1, 2)).tolist())
    assert floats.std == pytest.approx((pixels * 3.0).std((0, 1, 2)).tolist())


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_constant_channel_becomes_zero(dtype: type) -> None:
    pixels = PIXELS.astype(dtype)
    pixels[..., 1] = 77
    images = data.from_arrays(pixels, LABELS)
    standard = data.standardise(images.train.images, images.mean, images.std)
    assert images.std[1] == 1.0
    assert bool(standard.isfinite().all())
    assert float(standard[:, 1].abs().max()) < 1e-5


def test_standardise_gives_mean_zero_and_variance_one() -> None:
    images = data.from_arrays(PIXELS, LABELS)
    standard = data.standardise(images.train.images, images.mean, images.std)
    assert standard.dtype == torch.float32
    torch.testing.assert_close(standard.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    as_floats = data.standardise(images.train.images.float() / 255, images.mean, images.std)
    torch.testing.assert_close(as_floats, standard)


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        (PIXELS, (3, 6, 5)),
        (PIXELS.transpose(0, 3, 1, 2), (3, 6, 5)),
        (PIXELS[..., 0], (1, 6, 5)),
        (PIXELS[..., :1], (1, 6, 5)),
        (PIXELS.reshape(40, 1, -1), (1, 1, 90)),
        (torch.from_numpy(PIXELS), (3, 6, 5)),
        (PIXELS.astype(np.int64), (3, 6, 5)),
        (PIXELS.astype(np.float16), (3, 6, 5)),
        (np.zeros((40, 4, 4, 3)), (3, 4, 4)),  # both axes could be channels: the last one is
    ],
)
def test_forms_of_images(given: np.ndarray, shape: tuple[int, int, int]) -> None:
    images = data.from_arrays(given, LABELS, validation=0)
    assert images.image_shape == shape
    if shape == (3, 6, 5):
        expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
        assert torch.equal(images.train.images.to(torch.int64), expected.to(torch.int64))
        assert images.train.images.is_contiguous()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_are_copied(dtype: type) -> None:
    mine, labels = PIXELS.transpose(0, 3, 1, 2).astype(dtype), LABELS.astype(np.int64)
    images = data.from_arrays(mine, labels, validation=0)
    mine[:], labels[:] = 0, 0
    assert int(images.train.images.max()) > 0
    assert int(images.train.labels.max()) == 3


def test_class_names_may_name_a_class_without_examples() -> None:
    images = data.from_arrays(PIXELS, LABELS, class_names=["a", "b", "c", "d", "e"])
    assert images.classes == 5
    assert images.class_names[4] == "e"


def test_keras_and_medmnist_files(tmp_path: Path) -> None:
    keras = data.load(keras_file(tmp_path / "mine.npz"), validation=0.25)
    assert (keras.name, len(keras.train), len(keras.validation), len(keras.test)) == ("mine", 30, 10, 8)
    column = LABELS[:, None].astype(np.uint8)
    arrays = {"train_images": PIXELS[:30], "val_images": PIXELS[30:36], "test_images": PIXELS[36:]}
    labels = {"train_labels": column[:30], "val_labels": column[30:36], "test_labels": column[36:]}
    np.savez(tmp_path / "med.npz", **arrays, **labels, class_names=np.array(["a", "b", "c", "d"]))
    med = data.load(tmp_path / "med.npz", validation=0.5)  # it has its own validation split, which counts
    assert (len(med.train), len(med.validation), len(med.test)) == (30, 6, 4)
    assert med.class_names == ("a", "b", "c", "d")
    assert torch.equal(med.validation.images, torch.from_numpy(PIXELS[30:36]).permute(0, 3, 1, 2))


def test_the_test_split_is_read_at_first_use(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "mine.npz")
    images = data.load(path)
    path.unlink()
    with pytest.raises(DataError, match=r"no such file|cannot be read"):
        _ = images.test
    keras_file(path, x_test=PIXELS[:5], y_test=LABELS[:5])
    test = images.test
    assert len(test) == 5
    assert images.test is test  # once


def test_a_moved_set_reads_its_test_split_at_first_use() -> None:
    reads = []

    def read() -> data.Split:
        reads.append(1)
        return digits.train

    digits = data.load("digits")
    moved = replace(digits, read_test=read).to("cpu")
    assert moved.mean == digits.mean
    assert not reads
    assert len(moved.test) == len(digits.train)
    assert reads == [1]


def test_no_test_split_is_said(tmp_path: Path) -> None:
    images = data.load(keras_file(tmp_path / "mine.npz", x_test=None, y_test=None))
    assert not images.has_test
    assert not images.to("cpu").has_test
    with pytest.raises(DataError, match="mine has no test images"):
        _ = images.test


def test_the_environment_names_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestep.data.loading.fetch", lambda *a, **k: pytest.fail("network"))
    grey, labels = RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8), np.arange(30) % 10
    named, given = tmp_path / "named", tmp_path / "given"
    for folder, count in ((named, 20), (given, 30)):
        folder.mkdir()
        keras_file(folder / "mnist.npz", x_train=grey[:count], y_train=labels[:count], x_test=grey, y_test=labels)
    monkeypatch.setenv("SIDESTEP_DATA", str(named))
    found = data.load("mnist", validation=0)
    assert (len(found.train), found.source["data_dir"]) == (20, str(named))
    assert len(data.load("mnist", validation=0, data_dir=given).train) == 30
    monkeypatch.setenv("SIDESTEP_DATA", str(tmp_path / "not there"))
    assert "data_dir" not in data.load("digits").source  # which lies in no folder
    with pytest.raises(DataError, match="not there does not exist"):
        data.load("mnist")


def test_known_sets_are_found_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestep.data.loading.fetch", lambda *a, **k: pytest.fail("network"))
    grey = RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = np.arange(30) % 10
    keras_file(tmp_path / "mnist.npz", x_train=grey, y_train=labels, x_test=grey, y_test=labels)
    assert data.load("mnist", data_dir=tmp_path).image_shape == (1, 28, 28)
    for size in (128, 64):
        cells = np.zeros((16, size, size, 3), np.uint8)
        labels = np.arange(16) % 8
        np.savez(tmp_path / f"bloodmnist_{size}.npz", train_images=cells, train_labels=labels)
        assert data.load("bloodmnist", data_dir=tmp_path).image_shape == (
            3,
            size,
            size,
        )  # the smallest there is
    assert data.load("bloodmnist", data_dir=tmp_path, size=128).image_shape == (3, 128, 128)
    keras_file(tmp_path / "cifar10.npz")
    with pytest.raises(DataError, match=r"its images are \(3, 32, 32\).*this file has \(3, 6, 5\)"):
        data.load("cifar10", data_dir=tmp_path)


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def place_originals(name: str, folder: Path, contents: list[bytes]) -> data.Known:
    """Write these contents as the set's original files; the set as it would be if they were."""
    known = KNOWN[name]
    (size, remotes), folder = next(iter(known.files.items())), folder / name
    folder.mkdir()
    for remote, content in zip(remotes, contents, strict=True):
        (folder / remote.file).write_bytes(content)
    pairs = zip(remotes, contents, strict=True)
    files = tuple(replace(remote, md5=hashlib.md5(content).hexdigest(), sha256=None) for remote, content in pairs)
    return replace(known, files={size: files})


def cifar_archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_idx_files(tmp_path: Path) -> None:
    grey, labels = RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8), np.arange(30) % 10
    known = place_originals("mnist", tmp_path, [idx(grey), idx(labels), idx(grey[:7]), idx(labels[:7])])
    mnist = assemble(known_source(known, tmp_path), 0)
    assert torch.equal(mnist.train.images[:, 0], torch.from_numpy(grey))
    assert mnist.test.labels.tolist() == labels[:7].tolist()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_archives(tmp_path: Path, name: str) -> None:
    pixels = RNG.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(10)
    coarse = [7] if name == "cifar100" else []
    records = [bytes([*coarse, label]) + image.tobytes() for label, image in zip(labels, pixels, strict=True)]
    if name == "cifar10":  # each batch holds two images; stored out of order
        pairs = {number: b"".join(records[2 * number - 2 : 2 * number]) for number in (3, 1, 5, 4, 2)}
        members = {f"cifar-10-batches-bin/data_batch_{number}.bin": pair for number, pair in pairs.items()}
        members["cifar-10-batches-bin/test_batch.bin"] = records[4]
    else:
        members = {"cifar-100-binary/train.bin": b"".join(records), "cifar-100-binary/test.bin": records[4]}
    known = place_originals(name, tmp_path, [cifar_archive({**members, "readme.html": b"x"})])
    cifar = assemble(known_source(known, tmp_path), 0)
    assert torch.equal(cifar.train.images, torch.from_numpy(pixels))
    assert cifar.train.labels.tolist() == labels.tolist()
    assert torch.equal(cifar.test.images[0], torch.from_numpy(pixels[4]))
    assert cifar.test.labels.tolist() == [4]
    assert cifar.classes == len(KNOWN[name].class_names)


REAL = {  # mean of the whole train split, as commonly quoted, and the counts of train, validation and test
    "mnist": ((0.1307,), (60000, 0, 10000)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (50000, 0, 10000)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (50000, 0, 10000)),
    "bloodmnist": (None, (11959, 1712, 3421)),
}


@pytest.mark.parametrize("name", ["mnist", "cifar10", *(pytest.param(n, marks=pytest.mark.slow) for n in REAL)])
def test_real_sets(name: str, data_dir: Path) -> None:
    mean, counts = REAL[name]
    real = data.load(name, data_dir=data_dir, validation=0)
    assert (len(real.train), len(real.validation), len(real.test)) == counts
    assert mean is None or real.mean == pytest.approx(mean, abs=2e-4)
    assert real.test.image_shape == real.image_shape
    assert len(real.test.labels.unique()) == real.classes


def test_names_describes_every_set() -> None:
    described = {known.name: known for known in data.names()}
    assert list(described) == ["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "bloodmnist"]
    assert [len(known.class_names) for known in data.names()] == [10, 10, 10, 10, 100, 8]
    assert len(set(described["cifar100"].class_names)) == 100
    for known in data.names():
        assert known.description
        assert known.licence
        remotes = [remote for files in known.files.values() for remote in files]
        assert all(len(remote.md5) == 32 and remote.urls for remote in remotes)
        assert all(len(remote.sha256 or "0" * 64) == 64 for remote in remotes)
        assert all(url.startswith("https://") for remote in remotes for url in remote.urls)
    assert all(remote.checksum[0] == "sha256" for remote in KNOWN["mnist"].files[28])
    assert described["bloodmnist"].sizes == (28, 64, 128)
    assert described["bloodmnist"].image_shape(64) == (3, 64, 64)


def test_every_name_of_the_package_resolves() -> None:
    assert all(hasattr(data, name) for name in data.__all__)
