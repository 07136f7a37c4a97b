"""Sets that say nothing: all images alike, a class all alike, images of one colour."""

import warnings

import numpy as np
import pytest

from sidestep import data

NOISE = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
LABELS = np.arange(40) % 2


def told(images: np.ndarray) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.from_arrays(images, LABELS, class_names=["ant", "owl"])
    return "; ".join(str(warning.message) for warning in caught)


def test_a_set_of_different_images_is_not_told() -> None:
    some = NOISE.copy()
    some[1:19] = some[1]  # nine of each class alike
    some[:8] = 7  # four of each class in one colour
    assert told(some) == ""


@pytest.mark.parametrize(
    ("rows", "value", "sentence"),
    [
        (slice(None), NOISE[0], "all 40 training images are alike"),
        (slice(1, None, 2), NOISE[0], "all training images of class owl are alike"),
        (slice(0, None, 4), 255, "at least half the training images of class ant are of one colour throughout"),
    ],
)
def test_sameness_is_told(rows: slice, value: object, sentence: str) -> None:
    images = NOISE.copy()
    images[rows] = value
    assert sentence in told(images)


def test_a_class_of_one_image_is_not_alike() -> None:
    images, labels = NOISE[:9], np.array([0] * 8 + [1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.from_arrays(images, labels, validation=0)
