"""Folders as people have them: names of splits, what is skipped, and what is said of the rest."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidestep import data
from sidestep.data import DataNotice
from sidestep.errors import DataError

RNG = np.random.default_rng(2)


def pictures(folder: Path, count: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(RNG.integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / f"{number}.png")


def classes(root: Path, count: int = 6) -> Path:
    for kind in ("cat", "dog"):
        pictures(root / kind, count)
    return root


def loaded(root: Path) -> tuple[data.DataSet, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = data.load(root, validation=0)
    return found, "; ".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training"])
@pytest.mark.parametrize("validation", ["val", "Valid", "validation", None])
def test_splits_by_any_of_their_names(tmp_path: Path, train: str, validation: str | None) -> None:
    classes(tmp_path / train, 3)
    classes(tmp_path / "Testing", 2)
    if validation:
        classes(tmp_path / validation, 1)
    found, told = loaded(tmp_path)
    assert (len(found.train), len(found.validation), len(found.test)) == (6, 2 if validation else 0, 4)
    assert "Testing/ (test)" in told
    assert f"{train}/ (train)" in told


def junk(root: Path) -> None:
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / "cat" / "@eaDir").mkdir()
    (root / ".git").mkdir()
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png"):
        (root / "cat" / name).write_bytes(b"\xd0\xcf")
        (root / name).write_bytes(b"\xd0\xcf")


def test_what_systems_leave_is_skipped_without_a_word(tmp_path: Path) -> None:
    junk(classes(tmp_path / "flat"))
    junk(classes(tmp_path / "split" / "train"))
    for name in ("flat", "split"):
        found, told = loaded(tmp_path / name)
        assert (found.class_names, told) == (("cat", "dog"), "")


@pytest.mark.parametrize("inside", ["images", "a/b", "archive/train"])
def test_the_only_folder_is_gone_into(tmp_path: Path, inside: str) -> None:
    classes(tmp_path / "set" / inside)
    found, told = loaded(tmp_path / "set")
    assert found.class_names == ("cat", "dog")
    assert "the only folder in it" in told
    if inside.endswith("train"):
        assert not found.has_test


def test_a_test_folder_without_classes_is_told(tmp_path: Path) -> None:
    for number, test in enumerate(("test", "test/unknown", "Test/images")):
        root = tmp_path / str(number)
        classes(root / "train")
        pictures(root / test)
        found, told = loaded(root)
        assert not found.has_test
        assert "6 images, but no folder for each class" in told


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    classes(tmp_path / "train")
    pictures(tmp_path / "train", 2)
    pictures(tmp_path / "unlabelled")
    _, told = loaded(tmp_path)
    assert "unlabelled beside train/ is not used" in told
    assert "2 images beside the classes" in told


def test_names_of_splits_can_be_classes(tmp_path: Path) -> None:
    for kind in ("train", "car", "valid"):
        pictures(tmp_path / kind)
    assert loaded(tmp_path)[0].class_names == ("car", "train", "valid")


def test_classes_that_differ_in_case_are_told(tmp_path: Path) -> None:
    pictures(classes(tmp_path) / "Cat")
    assert "the classes Cat, cat differ" in loaded(tmp_path)[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: [classes(root / name) for name in ("test", "val")], r"test/ \(test\), val/ .* but no train/"),
        (lambda root: [pictures(root / name) for name in ("train", "test")], "test/ and train/ hold images, but no"),
        (lambda root: [classes(root / name) for name in ("train", "val", "valid")], "both taken for validation"),
        (lambda root: pictures(classes(root) / "cat" / "more"), r"cat, dog are taken for classes.*inside a class's"),
        (lambda root: pictures(root, 3), "found none in it, and 3 images outside"),
        (lambda root: [classes(root / "train"), pictures(root / "test" / "bird")], "no class of this name in train"),
    ],
)
def test_other_layouts_are_named(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        data.load(tmp_path)


def test_all_unreadable_files_are_listed(tmp_path: Path) -> None:
    classes(tmp_path)
    for kind in ("cat", "dog"):
        for number in range(20, 26):
            (tmp_path / kind / f"{number}.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"^12 files: .*cat/20\.png: .*dog/23\.png: .*; and 2 more; remove"):
        data.load(tmp_path)


def test_sizes_that_differ_are_listed(tmp_path: Path) -> None:
    classes(tmp_path)
    for kind in ("cat", "dog"):
        Image.new("L", (7, 9)).save(tmp_path / kind / "odd.png")
    with pytest.raises(DataError, match=r"odd\.png: 7 x 9 pixels, but 0\.png has 4 x 4.*give size="):
        _ = data.load(tmp_path).test


@pytest.mark.parametrize("seed", range(4))
def test_cuts_leave_every_class_in_train(tmp_path: Path, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(1, 4, 12)
    for number, count in enumerate(counts):
        pictures(tmp_path / f"rare {number}", int(count))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = data.load(tmp_path, validation=0.5)
    assert set(found.train.labels.tolist()) == set(range(12))
    parts = (found.train, found.validation, found.test)
    assert sum(map(len, parts)) == counts.sum()
    assert any("would be cut off for" in str(warning.message) for warning in caught)
    assert issubclass(caught[0].category, DataNotice)
