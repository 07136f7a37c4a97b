"""What all tests share: one thread each, the folder of real data sets, fixed seeds, hypothesis without a clock."""

import os

# Before torch is imported, and for the processes that tests start: the nets are so small that a second thread gains
# nothing, and beside another busy process two threads wait for each other, spinning, several times as long
# as they work. A number that is set already stays, and every test passes with it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("sidestep", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("sidestep")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with mnist.npz, cifar10.npz and the like; where there is none, the test is skipped."""
    folder = os.environ.get("SIDESTEP_DATA")
    if not folder:
        pytest.skip("SIDESTEP_DATA names no folder with the real data sets")
    return Path(folder)


@pytest.fixture(autouse=True)
def fixed_global_seeds() -> Iterator[None]:
    """Tests may draw from the global generators: each finds them in the same state, in any order of tests."""
    torch_state, random_state = torch.get_rng_state(), random.getstate()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    yield
    torch.set_rng_state(torch_state)
    random.setstate(random_state)


@pytest.fixture
def global_noise_untouched() -> Iterator[None]:
    """Ask for this to fail a test whose code draws from the hidden generators of torch, NumPy or Python."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:3]  # noqa: NPY002
    yield
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:3]  # noqa: NPY002
    assert torch.equal(before[0], after[0]), "torch's global generator was used"
    assert before[1] == after[1], "Python's global generator was used"
    assert np.array_equal(before[2][0], after[2][0]), "NumPy's global generator was used"
    assert before[2][1] == after[2][1], "NumPy's global generator was used"
