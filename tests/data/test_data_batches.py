"""Order, random crop and flip: pure functions of the noise, held to plain loops."""

import pytest
import torch

from sidestep.data import batch_indices, batches, crop_and_flip, steps_per_epoch
from sidestep.errors import InputError
from sidestep.noise import Noise


def test_an_epoch_visits_each_example_at_most_once() -> None:
    noise, examples, batch = Noise(3), 103, 10
    assert steps_per_epoch(examples, batch) == 10
    epochs = [
        torch.cat([batch_indices(noise, 10 * epoch + place, examples, batch) for place in range(10)])
        for epoch in range(3)
    ]
    for visited in epochs:
        assert len(visited.unique()) == 100
        assert 0 <= int(visited.min()) <= int(visited.max()) < examples
    assert not torch.equal(epochs[0], epochs[1])


def test_any_step_can_be_entered_directly() -> None:
    late = batch_indices(Noise(3), 57, 100, 10)
    for step in (0, 99, 30, 12):
        batch_indices(Noise(3), step, 100, 10)
        batch_indices(Noise(4), step, 100, 10)
    again = batch_indices(Noise(3), 57, 100, 10)
    assert torch.equal(late, again)
    again.zero_()  # what a caller does to his batch must not reach the next one
    assert torch.equal(batch_indices(Noise(3), 57, 100, 10), late)
    assert not torch.equal(batch_indices(Noise(4), 57, 100, 10), late)
    assert not torch.equal(batch_indices(Noise(3).stream("other"), 57, 100, 10), late)


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    assert steps_per_epoch(7, 32) == 1
    for step in range(3):
        assert batch_indices(Noise(0), step, 7, 32).sort().values.tolist() == list(range(7))


def test_wrong_counts() -> None:
    for examples, batch in ((0, 1), (1, 0), (5, -1)):
        with pytest.raises(InputError, match="at least 1"):
            steps_per_epoch(examples, batch)
    with pytest.raises(InputError, match="step must be at least 0"):
        batch_indices(Noise(0), -1, 10, 2)
    with pytest.raises(InputError, match="padding must be at least 0"):
        crop_and_flip(torch.zeros(1, 1, 4, 4), Noise(0), padding=-1)


def plain_crop_and_flip(images: torch.Tensor, noise: Noise, padding: int, flip: bool) -> torch.Tensor:
    """One image, row and pixel at a time, from the documented use of three words per image."""
    words = noise.stream("crop and flip").words(3 * len(images)).view(-1, 3).tolist()
    out = torch.zeros_like(images)
    _, _, height, width = images.shape
    for i, (first, second, third) in enumerate(words):
        down = (first * (2 * padding + 1) >> 32) - padding
        right = (second * (2 * padding + 1) >> 32) - padding
        for y in range(height):
            for x in range(width):
                column = width - 1 - x if flip and third >= 2**31 else x
                if 0 <= y + down < height and 0 <= column + right < width:
                    out[i, :, y, x] = images[i, :, y + down, column + right]
    return out


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("padding", "flip"), [(4, True), (2, False), (0, True), (0, False), (9, True)])
def test_crop_and_flip_equals_the_plain_loop(dtype: torch.dtype, padding: int, flip: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (16, 3, 7, 6), generator=generator).to(dtype)
    before = images.clone()
    noise = Noise(5).at(11)
    moved = crop_and_flip(images, noise, padding, flip)
    assert moved.dtype == dtype
    assert torch.equal(moved, plain_crop_and_flip(images, noise, padding, flip))
    assert torch.equal(images, before)
    if flip or padding:
        assert not torch.equal(moved, crop_and_flip(images, noise.at(12), padding, flip))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_crop_and_flip_is_the_same_on_a_gpu() -> None:
    images = torch.arange(16 * 3 * 8 * 8).remainder(256).to(torch.uint8).view(16, 3, 8, 8)
    moved = crop_and_flip(images.cuda(), Noise(5).at(11))
    assert moved.is_cuda
    assert torch.equal(moved.cpu(), crop_and_flip(images, Noise(5).at(11)))


def test_crops_and_flips_are_fair() -> None:
    count, padding = 20000, 1
    picture = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(count, 1, 3, 3)
    middle = crop_and_flip(picture, Noise(1), padding)[:, 0, 1]  # (count, 3): the middle row tells place and mirror
    kinds, counts = middle.unique(dim=0, return_counts=True)
    assert len(kinds) == 18  # nine places, mirrored or not
    assert float((counts - count / 18).abs().max()) < 5 * (count / 18) ** 0.5


def test_an_epoch_of_many_batches_has_those_that_one_cut_at_once_has(monkeypatch):
    cut = batches.BatchOrder(Noise(3), examples=23, batch=2)
    expected = [cut.rows(step).tolist() for step in range(30)]
    monkeypatch.setattr(batches, "_PARTS", 4)
    uncut = batches.BatchOrder(Noise(3), examples=23, batch=2)
    assert [uncut.rows(step).tolist() for step in range(30)] == expected
    assert len(uncut._parts) == 1
