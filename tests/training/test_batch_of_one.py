"""Training on one image at a time: taken wherever nothing takes statistics of the batch."""

import pytest
from torch import nn

from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules import (
    SPSA,
    Backprop,
    DirectFeedbackAlignment,
    Evolution,
    FeedbackAlignment,
    ForwardForward,
    ForwardGradient,
    Hebbian,
    LocalLoss,
    NeuralODE,
    NoiseStep,
    NoPropCT,
    NoPropDT,
    NoPropFM,
)

TAKE = [
    NoPropCT(steps=2), NoPropFM(steps=2), NeuralODE(steps=2), NoiseStep(hidden=(8, 8)),
    NoiseStep(hidden=(8,), estimator="rank-one"), FeedbackAlignment(hidden=(8,), norm="layer"),
    DirectFeedbackAlignment(hidden=(8,), norm="none"), LocalLoss(hidden=(8,), norm="layer", similarity=0.5),
    ForwardForward(hidden=(8,)), Evolution(hidden=(8,), population=2), SPSA(hidden=(8,)),
    ForwardGradient(hidden=(32,)), Backprop(net="mlp", hidden=(8,)), Backprop(net="linear"),
]  # fmt: skip
CANNOT = [
    NoPropDT(blocks=2), Backprop(blocks=2), FeedbackAlignment(hidden=(8,)), LocalLoss(hidden=(8,)),
    DirectFeedbackAlignment(hidden=(8,)), Hebbian(hidden=(8,)),
]  # fmt: skip


def arrays():
    noise = Noise(0)
    images, labels = noise.normal(24 * 64).view(24, 1, 8, 8), noise.stream("labels").integers(24, 4)
    return data.from_arrays(images[:16].numpy(), labels[:16].numpy(), images[16:].numpy(), labels[16:].numpy())


@pytest.mark.parametrize("rule", TAKE, ids=lambda rule: rule.name)
def test_a_net_without_batch_norm_trains_on_one_image_at_a_time(rule):
    run = train(rule, arrays(), Options(epochs=1, batch=1))
    assert run.step > 10


@pytest.mark.parametrize("rule", CANNOT, ids=lambda rule: rule.name)
def test_a_net_with_batch_norm_says_that_it_needs_two(rule, tmp_path):
    with pytest.raises(InputError, match="batch norm, whose statistics need two images or more, got a batch of 1"):
        train(rule, arrays(), Options(epochs=1, batch=1, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_batch_norm_that_stays_in_evaluation_mode_takes_one():
    class Still(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    module = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Still(8), nn.ReLU())  # noqa: E731
    assert train(NoPropCT(steps=2), arrays(), Options(epochs=1, batch=1), module=module).step > 10
