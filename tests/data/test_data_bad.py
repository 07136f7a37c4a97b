"""Every way in which data can be wrong gives one DataError or InputError that names it, never a traceback."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_data_sets import LABELS, PIXELS, cifar_archive, idx, keras_file, place_originals

from sidestep import data
from sidestep.data.loading import known_source
from sidestep.data.source import assemble
from sidestep.errors import DataError, InputError


def with_value(value: float) -> np.ndarray:
    pixels = PIXELS.astype(np.float32)
    pixels[5, 2, 1, 0] = pixels[7, 0, 0, 0] = value
    return pixels


WRONG_ARRAYS = [
    ({"x_train": with_value(np.nan)}, r"2 of 3600 pixels are NaN.*\(5, 2, 1, 0\)"),
    ({"x_train": with_value(np.inf)}, "2 of 3600 pixels are NaN or infinite"),
    ({"x_train": with_value(np.nan).astype(np.float64) * 1e300}, "NaN or infinite"),
    ({"x_train": PIXELS.astype(np.int16) * 2}, "0 to 255, got 0 to 5.* in int16"),
    ({"x_train": PIXELS.astype(np.int16) - 1}, "0 to 255, got -1"),
    ({"x_train": PIXELS > 3}, "pixels must be.*got bool"),
    ({"x_train": PIXELS.astype(complex)}, "pixels must be.*got complex128"),
    ({"x_train": PIXELS.astype(str)}, "pixels must be"),
    ({"x_train": PIXELS[:0], "y_train": LABELS[:0]}, "at least one image.*there are none"),
    ({"x_train": PIXELS[:, :, 0, 0][:, 0]}, r"got shape \(40,\)"),
    ({"x_train": PIXELS.repeat(2, -1)}, r"1, 3 or 4 channels.*\(40, 6, 5, 6\)"),
    ({"y_train": LABELS[:-1]}, "39 labels for 40 images"),
    ({"y_train": LABELS + 0.5}, r"must be integers from 0, got float64.*astype"),
    ({"y_train": LABELS.astype(str)}, "must be integers.*numpy.unique"),
    ({"y_train": LABELS - 1}, "got -1 at index 0"),
    ({"y_train": np.eye(4)[LABELS]}, r"\(40, 4\); one-hot rows become labels with .argmax\(1\)"),
    ({"y_train": LABELS * 0 + 3}, "at least two classes, but every train label is 3"),
    ({"y_train": LABELS + 1}, "got 1 to 4 without any 0"),
    ({"y_train": LABELS * 1000}, "got 0 to 3000 without any 1;"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_ARRAYS)
def test_wrong_arrays(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.load(keras_file(tmp_path / "mine.npz", **change))
    with pytest.raises(DataError, match=message):
        data.from_arrays(change.get("x_train", PIXELS), change.get("y_train", LABELS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": PIXELS[:8, :5]}, r"test images are \(3, 5, 5\).*train \(3, 6, 5\)"),
        ({"y_test": LABELS[:7]}, "test labels: need one label for each image, got 7 labels for 8 images"),
        ({"y_test": None}, "needs x_train and y_train.*found x_test"),
        ({"y_test": LABELS[:8] + 1}, "test labels: labels are 1 to 4, .* must be 0 to 3: subtract 1 from them"),
        ({"y_test": LABELS[:8] + 2}, "labels must be 0 to 3.*label [45].*give class_names.*or.* train images"),
        ({"x_test": PIXELS[:8] / 255.0}, "test images are torch.float32, those of train torch.uint8"),
        ({"x_test": with_value(np.nan)[:8]}, "2 of 720 pixels"),
    ],
)
def test_a_wrong_test_split_is_found_before_training(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        data.load(keras_file(tmp_path / "mine.npz", **change))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    objects = np.array([Trap()] * 40, dtype=object)
    with pytest.raises(DataError, match=r"y_train holds Python objects"):
        data.load(keras_file(tmp_path / "mine.npz", y_train=objects))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"not a whole \.npz file"):
        data.load(tmp_path / "raw.npz")
    with pytest.raises(DataError, match="Python objects"):
        data.from_arrays(PIXELS.astype(object), LABELS)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.3, 0.9, 0.999])
def test_a_cut_file(tmp_path: Path, keep: float) -> None:
    path = keras_file(tmp_path / "mine.npz")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep) if keep < 1 else int(keep)])
    with pytest.raises(DataError, match=r"mine\.npz: not a whole \.npz file"):
        data.load(path)


def test_every_flipped_byte_gives_a_clear_error_or_the_same_data(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, x_train=PIXELS, y_train=LABELS, x_test=PIXELS[:8], y_test=LABELS[:8])
    raw = path.read_bytes()
    right = data.load(path)
    refused = 0
    for place in range(0, len(raw), max(1, len(raw) // 300)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
        try:
            images = data.load(path)
            same = torch.equal(images.train.images, right.train.images)
            same = same and torch.equal(images.test.images, right.test.images)
            assert same, place
        except DataError:
            refused += 1
    assert refused > 250


def test_wrong_keys_names_what_there_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=PIXELS, y_train=LABELS)
    with pytest.raises(DataError, match=r"needs x_train and y_train.*found images, y_train"):
        data.load(tmp_path / "mine.npz")
    np.savez(tmp_path / "half.npz", train_images=PIXELS, train_labels=LABELS, val_images=PIXELS)
    with pytest.raises(DataError, match="needs x_train"):
        data.load(tmp_path / "half.npz")


def test_kinds_of_targets_that_are_none_get_the_nearest() -> None:
    for make in (
        lambda **kind: data.from_arrays(PIXELS, LABELS, **kind),
        lambda **kind: data.from_tokens([[0]], vocabulary=2, **kind),
    ):
        with pytest.raises(InputError, match=r"^targets must be .*, got 'Clases'; did you mean 'classes'\?$"):
            make(targets="Clases")
        with pytest.raises(InputError, match=r"^targets must be .*, got 7$"):
            make(targets=7)


def test_missing_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.npz: no such file"):
        data.load(tmp_path / "absent.npz")
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        data.load("minst")
    with pytest.raises(DataError, match="did you mean 'fashion-mnist'"):
        data.load("Fashion_MNIST")
    with pytest.raises(
        DataError, match="no data set is called 'qqqq', and no folder here either; known are digits, mnist"
    ):
        data.load("qqqq")
    with pytest.raises(DataError, match="no such file or folder"):
        data.load("some/where")
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        data.load("mnist", data_dir=tmp_path / "nowhere")
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"must be \.npz"):
        data.load(tmp_path / "x.npy")


@pytest.mark.parametrize("fraction", [-0.1, 0.51, float("nan"), 1, True])
def test_validation_out_of_range(fraction: float) -> None:
    with pytest.raises(InputError, match=r"from 0 to 0\.5"):
        data.load("digits", validation=fraction)


def test_too_few_images_for_a_cut() -> None:
    with pytest.warns(data.DataNotice, match="class 0 has so few images.* no validation split"):
        found = data.from_arrays(PIXELS[:2], LABELS[:2], validation=0.5)
    assert (len(found.train), len(found.validation)) == (2, 0)


def test_sizes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bloodmnist has images of 28, 64, 128 pixels, got size=32"):
        data.load("bloodmnist", size=32)
    with pytest.raises(InputError, match="size=32"):
        data.load(keras_file(tmp_path / "mine.npz"), size=32)


def test_half_a_test_split_in_memory() -> None:
    with pytest.raises(InputError, match="go together"):
        data.from_arrays(PIXELS, LABELS, PIXELS)


def test_ragged_lists() -> None:
    with pytest.raises(DataError, match="cannot be one array"):
        data.from_arrays([[[1, 2], [3]], [[1]]], [0, 1])


def test_damaged_idx_files(tmp_path: Path) -> None:
    grey, labels = np.zeros((20, 28, 28), np.uint8), np.arange(20) % 10
    whole = [idx(grey), idx(labels), idx(grey), idx(labels)]
    damaged = {
        "damaged or cut": whole[0][:-20],
        "damaged or cut short": b"not gzip",
        "not an idx file of 3-dimensional": idx(labels),
        "says": gzip.compress(bytes((0, 0, 8, 3)) + bytes(12) + b"x"),
    }
    for number, (message, content) in enumerate(damaged.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        known = place_originals("mnist", folder, [content, *whole[1:]])
        with pytest.raises(DataError, match=message):
            assemble(known_source(known, folder))


def test_damaged_cifar_archives(tmp_path: Path) -> None:
    record = bytes(3074)
    good = cifar_archive({"cifar-100-binary/train.bin": record * 50, "cifar-100-binary/test.bin": record})
    damaged = {
        "damaged or cut short": good[: len(good) // 2],
        "no cifar-100-binary/train.bin in it": cifar_archive({"cifar-100-python/train": record}),
        "not a multiple of 3074": cifar_archive({"cifar-100-binary/train.bin": record[1:]}),
    }
    for number, (message, content) in enumerate(damaged.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        known = place_originals("cifar100", folder, [content])
        with pytest.raises(DataError, match=message):
            assemble(known_source(known, folder))


def test_splits_check_their_form() -> None:
    images, labels = torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(InputError, match="images must be"):
        data.Split(images[0], labels)
    with pytest.raises(InputError, match=r"images must be.*float64"):
        data.Split(images.double(), labels)
    with pytest.raises(InputError, match=r"labels must be \(3,\) in int64"):
        data.Split(images, labels[:2])
    with pytest.raises(InputError, match="one mean and one std"):
        data.standardise(images, (0.0, 0.0), (1.0, 1.0))
