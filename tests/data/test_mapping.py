"""Inputs that are several tensors by name: through a run, its evaluation, predictions and a later process."""

import numpy as np
import pytest
import torch
from torch import nn

from sidestep import Options, data, load_run, train
from sidestep.errors import DataError, InputError
from sidestep.noise import Noise
from sidestep.rules import SPSA, Backprop, Evolution, ForwardGradient, LocalLoss
from sidestep.training import STOP

LENGTH, WORDS = 6, 9
RULES = [
    Backprop(learning_rate=1e-2),
    SPSA(),
    Evolution(noise_kind="full-rank", per="group", population=4),
    ForwardGradient(kind="weights"),
]


def rows(count=96, seed=0):
    """Rows of ids, padded to one length; the class is whether word 1 is among those that count."""
    noise = Noise(seed)
    ids = noise.stream("ids").integers(count * LENGTH, WORDS).view(count, LENGTH)
    lengths = 2 + noise.stream("lengths").integers(count, LENGTH - 1)
    mask = torch.arange(LENGTH) < lengths[:, None]
    there = ((ids == 1) & mask).any(dim=1).long()
    return {"ids": ids.numpy(), "mask": mask.numpy(), "size": lengths.float().numpy()}, there.numpy()


class Reader(nn.Module):
    """The mean of the embeddings that count, and how many they are; takes its inputs by name."""

    def __init__(self, width=2, each=False):
        super().__init__()
        self.words, self.out, self.each = nn.Embedding(WORDS, 8), nn.Linear(9, width), each

    def forward(self, ids, mask, size):
        assert (ids.dtype, mask.dtype, size.dtype) == (torch.int64, torch.bool, torch.float32)
        found = self.words(ids) * mask[..., None]
        if not self.each:
            found = found.sum(dim=1) / mask.sum(dim=1, keepdim=True)
            return self.out(torch.cat([found, size[:, None] / LENGTH], dim=1))
        return self.out(torch.cat([found, size[:, None, None].expand(*ids.shape, 1) / LENGTH], dim=2))


@pytest.fixture(scope="module")
def few():
    x, y = rows()
    test = rows(32, seed=1)
    return data.from_arrays(x, y, *test, validation=0.25)


def test_a_set_of_named_tensors_says_what_it_is_and_keeps_rows_together(few):
    assert repr(few.train) == "Split(72 rows of ids: int64 6, mask: bool 6, size: float32)"
    assert (len(few.train), len(few.validation), len(few.test)) == (72, 24, 32)
    x, y = rows()
    whole = {(tuple(ids), float(size)): label for ids, size, label in zip(x["ids"], x["size"], y, strict=True)}
    for split in (few.train, few.validation):
        parts = split.images.tensors
        for ids, size, label in zip(parts["ids"], parts["size"], split.labels, strict=True):
            assert whole[tuple(ids.tolist()), float(size)] == int(label)
    assert len(few.every_image()) == 128


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_run_trains_evaluates_and_is_resumed_and_read_again(few, tmp_path, rule):
    class StopAt:
        def on_step(self, event):
            return STOP if event.step == 3 else None

    whole = train(rule, few, Options(steps=6, batch=24), model=Reader)
    train(rule, few, Options(steps=6, batch=24, out=tmp_path / "run"), model=Reader, observers=[StopAt()])
    parts = train(rule, few, Options(steps=6, batch=24, out=tmp_path / "run", resume=True), model=Reader)
    assert all(torch.equal(v, parts.net.state_dict()[name]) for name, v in whole.net.state_dict().items())
    assert 0 <= whole.result["test_accuracy"] <= 1
    again, (x, y) = load_run(tmp_path / "run", model=Reader), rows(32, seed=1)
    found = again.predict(x)
    assert found.shape == (32, 2)
    assert torch.equal(found, parts.predict(x))
    assert float((found.argmax(dim=1).numpy() == y).mean()) == pytest.approx(whole.result["test_accuracy"])
    assert again.evaluate(few.test)["forward"] == pytest.approx(whole.result["test_accuracy"])


def test_a_run_learns_from_what_the_mask_leaves(few):
    run = train(RULES[0], few, Options(epochs=60, batch=24), model=Reader)
    assert run.result["train_accuracy"] > 0.9


def test_a_loss_of_one_s_own_and_tokens_with_some_that_do_not_count():
    x, _ = rows()
    targets = np.where(x["mask"], np.roll(x["ids"], -1, axis=1), -100)
    following = data.from_arrays(x, targets, targets="tokens", validation=0.25)
    assert following.classes == WORDS
    run = train(RULES[0], following, Options(steps=4, batch=24), model=lambda: Reader(WORDS, each=True))
    assert 0 <= run.result["validation_score"] <= 1
    values = data.from_arrays(x, x["size"], targets="values", validation=0.25)

    def far(outputs, wanted):
        return (outputs - wanted).abs().mean(dim=1)

    run = train(RULES[0], values, Options(steps=4, batch=24), model=lambda: Reader(1), objective=far)
    assert np.isfinite(run.result["validation_score"])


def test_other_data_at_the_same_place_are_refused(few, tmp_path):
    train(RULES[0], few, Options(steps=2, batch=24, out=tmp_path / "run"), model=Reader)
    x, y = rows()
    x["mask"] = ~x["mask"]
    other = data.from_arrays(x, y, *rows(32, seed=1), validation=0.25)
    with pytest.raises(InputError, match="was started otherwise"):
        train(RULES[0], other, Options(steps=4, batch=24, out=tmp_path / "run", resume=True), model=Reader)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: ({**x, "mask": x["mask"][:-1]}, y), "one row for every example, but 'ids' has 96, 'mask' has 95"),
        (lambda x, y: ({**x, "size": x["size"] / 0}, y), "'size': 96 numbers are NaN or infinite"),
        (lambda x, y: ({**x, "words": np.array(["a"] * 96)}, y), "'words': need rows of numbers, got <U1"),
        (lambda x, y: ({1: x["ids"]}, y), "a mapping needs a name"),
        (lambda x, y: ({}, y), "a mapping needs a name"),
        (lambda x, y: (x, y[:-1]), "95"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_does_not_fit_together_is_refused(change, said):
    with pytest.raises(DataError, match=said):
        data.from_arrays(*change(*rows()))


def test_test_rows_of_other_names_and_rules_of_their_own_nets_are_refused(few):
    x, y = rows()
    with pytest.raises(DataError, match="test inputs are ids: int64 6, size: float32; those of train ids"):
        data.from_arrays(x, y, {name: x[name] for name in ("ids", "size")}, y)
    with pytest.raises(InputError, match=r"the data have mapping; .*train\(rule, data, model=make_model\)"):
        train(LocalLoss(), few, Options(steps=1))
    run = train(RULES[0], few, Options(steps=1, batch=24), model=Reader)
    with pytest.raises(InputError, match="the net was trained on ids: int64 6, mask: bool 6, size: float32"):
        run.predict({"ids": x["ids"]})
    with pytest.raises(InputError, match=r"was trained on a mapping of tensors .*got ndarray"):
        run.predict(x["ids"])
    with pytest.raises(InputError, match="augment"):
        train(RULES[0], few, Options(steps=1, augment="flip"), model=Reader)
