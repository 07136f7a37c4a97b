"""Cuts: the same as ever where no class is lost, and no class is taken out of train."""

import numpy as np
import pytest
import torch

from sidestep import data
from sidestep.data.cut import hold_out, keep_classes


def test_a_cut_that_loses_no_class_is_as_it_was() -> None:
    kept, held = hold_out(100, 20, "validation")
    again_kept, again_held, lost = keep_classes(kept, held, torch.arange(100) % 3)
    assert (kept.tolist(), held.tolist(), []) == (again_kept.tolist(), again_held.tolist(), lost)


def test_a_lost_class_gets_one_image_back() -> None:
    kept, held = hold_out(50, 20, "validation")
    labels = torch.zeros(50, dtype=torch.int64)
    labels[held[:3]] = 7
    labels[held[5]] = 9
    labels[kept[:4]] = 1
    now_kept, now_held, lost = keep_classes(kept, held, labels)
    assert lost == [7, 9]
    assert (len(now_kept), len(now_held)) == (32, 18)
    assert sorted([*now_kept.tolist(), *now_held.tolist()]) == list(range(50))
    assert now_kept.tolist() == sorted(now_kept.tolist())
    assert set(labels[now_kept].tolist()) == {0, 1, 7, 9}


@pytest.mark.parametrize("where", range(0, 60, 7))
@pytest.mark.filterwarnings("ignore::sidestep.data.DataNotice")
def test_arrays_with_one_image_of_a_class(where: int) -> None:
    labels = np.arange(60) % 2
    labels[where] = 2
    images = np.arange(60 * 16, dtype=np.uint16).reshape(60, 4, 4).astype(np.uint8)
    found = data.from_arrays(images, labels, validation=0.5)
    assert 2 in found.train.labels.tolist()
