"""The grid of labelled pictures: that it is written, shows the right images, and touches no global state."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep import data
from sidestep.data.images.picture import _by_turns, _displayable
from sidestep.errors import DataError, InputError


def split(channels: int = 3, count: int = 12, dtype: torch.dtype = torch.uint8, side: int = 4) -> data.Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, side, side), generator=generator)
    return data.Split(images.to(dtype), torch.arange(count) % 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_grid_is_a_picture(tmp_path: Path, channels: int, dtype: torch.dtype) -> None:
    names = ("a", "b_$x$", "c" * 50)
    path = data.grid(split(channels, dtype=dtype), names, tmp_path / "new" / "grid.png", 2, 3)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 200
    assert pixels.std() > 20


def test_each_colour_is_where_it_belongs(tmp_path: Path) -> None:
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    images = colours[:, :, None, None].expand(3, 3, 8, 8)
    path = data.grid(data.Split(images, torch.arange(3)), ("r", "g", "b"), tmp_path / "grid.png", 1, 3)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    row = pixels[int(pixels.shape[0] * 0.6)]
    for channel in range(3):
        middle = row[int(len(row) * (2 * channel + 1) / 6)]
        assert middle.tolist() == colours[channel].tolist()


def test_classes_take_turns() -> None:
    labels = torch.tensor([2, 2, 0, 2, 1, 0, 1])
    assert _by_turns(labels).tolist() == [2, 4, 0, 5, 6, 1, 3]


def test_fewer_images_than_cells_and_flat_vectors(tmp_path: Path) -> None:
    assert data.grid(split(count=3), ("a", "b", "c"), tmp_path / "few.png", 3, 4).is_file()
    flat = data.Split(torch.rand(4, 1, 1, 64), torch.arange(4))
    assert _displayable(flat.images).shape == (4, 8, 8)
    assert data.grid(flat, tuple("abcd"), tmp_path / "flat.png").is_file()


def test_pyplot_is_not_touched(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    data.grid(split(), ("a", "b", "c"), tmp_path / "grid.png", 1, 2)
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one row"):
        data.grid(split(), ("a", "b", "c"), tmp_path / "grid.png", 0, 2)
    with pytest.raises(InputError, match=r"must end in \.png"):
        data.grid(split(), ("a", "b", "c"), tmp_path / "grid.pdf")
    with pytest.raises(InputError, match="label 2 has no name"):
        data.grid(split(), ("a", "b"), tmp_path / "grid.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        data.grid(split(), ("a", "b", "c"), tmp_path / "file" / "grid.png")


def test_a_picture_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("mine")
    (tmp_path / "grid.png").symlink_to(tmp_path / "letter")
    data.grid(split(), ("a", "b", "c"), tmp_path / "grid.png", 1, 2)
    assert (tmp_path / "letter").read_text() == "mine"
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "grid.png").is_symlink()
