"""The batches of a run: those that the plain functions give, to the bit, whatever is kept between steps."""

import pytest
import torch

from sidestep import data
from sidestep.data import batch_indices
from sidestep.noise import Noise
from sidestep.rules import Backprop, Task
from sidestep.training import Options, batches
from sidestep.training.batches import TrainingBatches

STEPS = (0, 1, 12, 13, 25, 3, 119)  # of some epochs, and back again


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("batch", [100, 5000])
def test_batches_are_those_scaled_one_by_one_in_the_order_of_the_epoch(monkeypatch, kept, batch):
    digits = data.load("digits")
    monkeypatch.setattr(batches, "_SMALL", digits.train.images.numel() - (not kept))
    found = TrainingBatches(Backprop(), digits, Options(batch=batch, seed=3), torch.device("cpu"))
    task, order = Task.of(digits), Noise(3).stream("order")
    for step in STEPS:
        rows, given = batch_indices(order, step, len(digits.train), batch), found.at(step)
        epoch, place = divmod(step, max(1, len(digits.train) // batch))
        whole = order.stream("epoch order").at(epoch).permutation(len(digits.train))
        assert torch.equal(rows, whole[place * batch : (place + 1) * batch])
        plain = task.prepare(digits.train.images[rows])
        assert torch.equal(given.inputs, plain)
        assert given.inputs.stride() == plain.stride()
        assert torch.equal(given.targets, digits.train.labels[rows])
        assert (found._scaled is not None) == kept
        given.inputs.zero_()  # as a module of the user's might; the next batches are not touched by it
