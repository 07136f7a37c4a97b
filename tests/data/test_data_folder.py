"""Image folders: both layouts, what is skipped, and what is named in an error."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep import data
from sidestep.errors import DataError, InputError

RNG = np.random.default_rng(1)


def write(path: Path, shape: tuple[int, ...] = (6, 5, 3), mode: str | None = None) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return pixels


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for kind in ("owl", "ant"):
        for number in range(10):
            write(tmp_path / "animals" / kind / f"{number}.png")
    return tmp_path / "animals"


def test_one_folder_per_class(flat: Path) -> None:
    (flat / "ant" / ".DS_Store").write_bytes(b"hidden")
    (flat / ".cache").mkdir()
    animals = data.load(flat, validation=0.25)
    assert (animals.name, animals.class_names, animals.image_shape) == ("animals", ("ant", "owl"), (3, 6, 5))
    assert (len(animals.train), len(animals.validation), len(animals.test)) == (12, 4, 4)
    every = torch.cat([animals.train.images, animals.validation.images, animals.test.images])
    assert len(every.unique(dim=0)) == 20  # nothing twice, nothing lost
    assert torch.equal(data.load(flat).test.images, animals.test.images)


def test_train_validation_and_test_folders(tmp_path: Path) -> None:
    pixels = [write(tmp_path / "train" / kind / "0.png", (4, 4)) for kind in ("a", "b")]
    held = write(tmp_path / "val" / "b" / "0.png", (4, 4))
    seen = write(tmp_path / "test" / "b" / "0.png", (4, 4))
    images = data.load(tmp_path)
    assert images.image_shape == (1, 4, 4)
    assert torch.equal(images.train.images[:, 0], torch.from_numpy(np.stack(pixels)))
    assert torch.equal(images.validation.images[0, 0], torch.from_numpy(held))
    assert torch.equal(images.test.images[0, 0], torch.from_numpy(seen))
    assert (images.validation.labels.tolist(), images.test.labels.tolist()) == ([1], [1])


def test_train_alone_has_no_test(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        for number in range(2):
            write(tmp_path / "train" / kind / f"{number}.png")
    assert not data.load(tmp_path, validation=0).has_test


def test_test_images_are_read_at_first_use(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        write(tmp_path / "train" / kind / "0.png")
    write(tmp_path / "test" / "a" / "bad.png", (60, 50, 3))
    os.truncate(tmp_path / "test" / "a" / "bad.png", 900)
    images = data.load(tmp_path, validation=0)
    with pytest.raises(DataError, match=r"bad\.png: not an image that can be read \(image file is truncated"):
        _ = images.test


def test_one_image_with_colour_makes_a_set_of_colour(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "a" / f"{number}.png", (4, 4))
        write(tmp_path / "b" / f"{number}.bmp", (4, 4))
    assert data.load(tmp_path).image_shape == (1, 4, 4)
    write(tmp_path / "b" / "last.png", (4, 4, 3))
    with pytest.warns(data.DataNotice, match="8 of 9 images are grey, and others have colour"):
        assert data.load(tmp_path).image_shape == (3, 4, 4)


def test_size_stretches_every_image(flat: Path) -> None:
    write(flat / "owl" / "odd.png", (9, 3, 3))
    with pytest.raises(DataError, match=r"odd\.png: 3 x 9 pixels, but 0\.png has 5 x 6.*size="):
        _ = data.load(flat, validation=0).test  # in train or in test: found when it is read
    images = data.load(flat, size=8)
    assert images.image_shape == (3, 8, 8)
    assert len(images.test) == 4
    with pytest.raises(InputError, match="size must be at least 1"):
        data.load(flat, size=0)


def test_turned_photographs_are_put_upright(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        exif = Image.Exif()
        exif[274] = 6  # turned by a quarter
        (tmp_path / kind).mkdir()
        for number in range(3):
            Image.new("L", (5, 9)).save(tmp_path / kind / f"{number}.jpg", exif=exif)
    assert data.load(tmp_path).image_shape == (1, 5, 9)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "owl" / "0.txt").write_text("notes"), r"0\.txt: not an image"),
        (lambda root: os.truncate(root / "owl" / "0.png", 90), r"0\.png: not an image"),
        (lambda root: (root / "owl" / "0").mkdir(), "a folder inside a class's folder"),
        (lambda root: (root / "cat").mkdir(), "cat: no images in it"),
        (
            lambda root: Image.new("F", (5, 6)).save(root / "owl" / "0.tif"),
            r"0\.tif: pixels of 32 bits",
        ),
    ],
)
def test_bad_files_are_named(flat: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(flat)
    with pytest.raises(DataError, match=message):
        _ = data.load(flat, validation=0).test


def test_bad_layouts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"need a folder for each of at least two classes.*found none"):
        data.load(tmp_path)
    write(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(DataError, match=r"at least two classes.*found a"):
        data.load(tmp_path)
    write(tmp_path / "train" / "b" / "0.png")
    write(tmp_path / "test" / "c" / "0.png")
    with pytest.raises(DataError, match="no class of this name in train; classes are a, b"):
        data.load(tmp_path, validation=0)
