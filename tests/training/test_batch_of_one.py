"""Training on one image at a time is refused where the net takes statistics of the batch; common checks do the rest."""

import pytest
from torch import nn

from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules import NoPropCT
from tests.small_rules import SMALL

CANNOT = ["noprop-dt", "backprop", "feedback-alignment", "local-loss", "direct-feedback-alignment", "hebbian"]


def arrays():
    noise = Noise(0)
    images, labels = noise.normal(24 * 64).view(24, 1, 8, 8), noise.stream("labels").integers(24, 4)
    return data.from_arrays(images[:16].numpy(), labels[:16].numpy(), images[16:].numpy(), labels[16:].numpy())


@pytest.mark.parametrize("name", CANNOT)
def test_a_net_with_batch_norm_says_that_it_needs_two(name, tmp_path):
    with pytest.raises(InputError, match="batch norm, whose statistics need two images or more, got a batch of 1"):
        train(SMALL[name], arrays(), Options(epochs=1, batch=1, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_batch_norm_that_stays_in_evaluation_mode_takes_one():
    class Still(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    module = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Still(8), nn.ReLU())  # noqa: E731
    assert train(NoPropCT(steps=2), arrays(), Options(epochs=1, batch=1), module=module).step > 10
