"""Rows of token ids for the denoising rules: the default path, a path of the user's, and a later process."""

import pytest
import torch
from torch import nn

from sidestep import Options, data, load_run, train
from sidestep.errors import DataError, InputError
from sidestep.nets.noprop.token_path import TokenPath
from sidestep.noise import Noise
from sidestep.rules import NeuralODE, NoPropCT, NoPropDT, NoPropFM

WORDS, LENGTH = 12, 5
RULES = [NoPropDT(blocks=2), NoPropCT(), NoPropFM(), NeuralODE()]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def rows(count=160, seed=0):
    """The class is which of three words a row has."""
    noise = Noise(seed)
    ids = 3 + noise.stream("ids").integers(count * LENGTH, WORDS - 3).view(count, LENGTH)
    classes = noise.stream("classes").integers(count, 3)
    ids[torch.arange(count), noise.stream("places").integers(count, LENGTH)] = classes
    return ids, classes


class Last(nn.Module):
    """A path of the user's: an LSTM's last state."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm = nn.Embedding(WORDS, 8), nn.LSTM(8, 16, batch_first=True)

    def forward(self, ids):
        assert ids.dtype == torch.int64
        return self.lstm(self.words(ids))[0][:, -1]


@pytest.fixture(scope="module")
def few():
    return data.from_tokens(*rows(), *rows(60, seed=1), vocabulary=WORDS, targets="classes", validation=0.2)


@each_rule
def test_rows_of_token_ids_are_learnt_and_read_again(few, tmp_path, rule):
    steps = 3 if rule.name == "neural-ode" else 40
    run = train(rule, few, Options(steps=steps, batch=64, out=tmp_path / "run"), readings=[rule.readings[0]])
    if rule.name != "neural-ode":  # which takes long
        assert run.result["test_accuracy"] > 0.8
    ids, _ = rows(60, seed=1)
    again = load_run(tmp_path / "run")
    assert torch.equal(again.predict(ids), run.predict(ids))
    with pytest.raises(DataError, match="token ids must be 0 to 11"):
        again.predict(ids + WORDS)


@each_rule
def test_a_path_of_the_user_s_gets_whole_numbers(few, rule):
    run = train(rule, few, Options(steps=2, batch=64), module=Last, readings=[rule.readings[0]])
    assert any(isinstance(module, Last) for module in run.net.modules())
    assert 0 <= run.result["test_accuracy"] <= 1


def test_the_default_path_is_the_mean_of_embeddings():
    with Noise(0).torch_seeded():
        path = TokenPath(WORDS).eval()
    ids, _ = rows(4)
    turned = path(ids.flip(1))
    torch.testing.assert_close(path(ids), turned)
    assert path(ids).shape == (4, 256)
    wanted = path.norm(path.dense(path.words.weight[ids].mean(dim=1).relu()))
    torch.testing.assert_close(path(ids), wanted)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (NoPropDT(path="figure-6"), "path = figure-6 is for images"),
        (NoPropCT(embedding="prototype"), "embedding = prototype has the shape of images"),
        (NoPropDT(solver="noise-step"), "dense ternary blocks"),
    ],
)
def test_what_is_for_images_is_refused(few, rule, said):
    with pytest.raises(InputError, match=said):
        train(rule, few, Options(steps=1))


def test_next_tokens_are_refused():
    ids, _ = rows()
    with pytest.raises(InputError, match=r"takes targets that are .*, but the data have tokens"):
        train(NoPropDT(), data.from_tokens(ids, vocabulary=WORDS), Options(steps=1))
