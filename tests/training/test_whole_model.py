"""train on whole models of the user's, under losses of the user's, on inputs of every kind."""

import pytest
import torch
from torch import Tensor, nn

from sidestep import data, train
from sidestep.errors import InputError
from sidestep.nets import ternarize
from sidestep.noise import Noise
from sidestep.rules import RULES, SPSA, Backprop
from sidestep.rules.shared.ternary_steps import TernarySteps
from sidestep.training import Options, load_run

ANY = ("backprop", "spsa", "evolution", "forward-gradient")
OPTIONS = {"evolution": {"noise_kind": "full-rank", "per": "group"}, "forward-gradient": {"kind": "weights"}}
TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 30


class Tokens(nn.Module):
    """A token at a time: an embedding, a recurrent layer, and logits for what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(29, 16), nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 29)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(ids))[0])


class Frozen(nn.Module):
    """Dropout, a frozen layer, and a weight that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fixed = nn.Linear(6, 8), nn.Linear(8, 8)
        self.fixed.requires_grad_(False)
        self.again, self.drop, self.head = nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 1)
        self.last = nn.Linear(8, 8)
        self.last.weight = self.again.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.drop(torch.relu(self.again(self.fixed(torch.relu(self.first(x))))))))


def table(targets: str = "values") -> data.DataSet:
    x = Noise(1).normal(120 * 6).view(120, 6)
    y = x[:, 0] - 2 * x[:, 1]
    wanted = y if targets == "values" else (y > 0).long()
    return data.from_arrays(x[:90], wanted[:90], x[90:], wanted[90:], targets=targets)


@pytest.mark.parametrize("name", ANY)
class TestEveryRule:
    def test_next_tokens(self, name):
        text = data.from_text(TEXT, length=16)
        assert text.classes == 29
        run = train(RULES[name](**OPTIONS.get(name, {})), text, Options(epochs=2, batch=16), model=Tokens)
        assert run.result["score"] == "token accuracy"
        chances = run.predict(text.test.images)
        assert chances.shape == (len(text.test), 16, 29)
        torch.testing.assert_close(chances.sum(-1), torch.ones(len(text.test), 16))

    def test_what_is_frozen_stays_and_what_is_tied_stays_tied(self, name):
        torch.manual_seed(0)
        model = Frozen()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        run = train(RULES[name](**OPTIONS.get(name, {})), table(), Options(epochs=1, batch=30), model=model)
        after = run.net.state_dict()
        for key, value in before.items():
            same = torch.equal(after[f"model.{key}"], value)
            assert same == key.startswith("fixed"), key
        assert torch.equal(after["model.last.weight"], after["model.again.weight"])

    def test_a_run_is_resumed_and_read_back_with_the_same_bits(self, name, tmp_path):
        def make() -> nn.Module:
            return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))

        given = {"model": make}
        whole = train(RULES[name](**OPTIONS.get(name, {})), table(), Options(epochs=3, batch=30), **given)
        half = tmp_path / "half"
        train(RULES[name](**OPTIONS.get(name, {})), table(), Options(epochs=1, batch=30, out=str(half)), **given)
        again = train(
            RULES[name](**OPTIONS.get(name, {})),
            table(),
            Options(epochs=3, batch=30, out=str(half), resume=True),
            **given,
        )
        for key, value in whole.net.state_dict().items():
            assert torch.equal(again.net.state_dict()[key], value)
        back = load_run(half, **given)
        rows = table().test.images
        assert torch.equal(back.predict(rows), whole.predict(rows))
        with pytest.raises(InputError, match=r"give it, load_run\(path, model=\.\.\.\)"):
            load_run(half)


def test_a_loss_of_ones_own_is_what_is_made_small():
    def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean(dim=1)

    def make() -> nn.Module:
        return nn.Linear(6, 1)

    run = train(Backprop(learning_rate=0.05), table(), Options(epochs=60, batch=30), model=make, objective=absolute)
    assert run.result["score"] == "loss"
    assert run.result["test_score"] < 0.2
    constant = float((table().test.labels - table().train.labels.median()).abs().mean())
    assert run.result["test_score"] < 0.2 * constant


def test_a_loss_that_is_one_number_is_refused_before_a_step():
    with pytest.raises(InputError, match=r"one number per example, shape \(30,\), got shape \(\)"):
        train(SPSA(), table(), Options(epochs=1, batch=30), model=lambda: nn.Linear(6, 1),
              objective=lambda outputs, targets: (outputs - targets).square().mean())  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": lambda: nn.Linear(6, 1), "module": nn.Identity}, "not both"),
        ({"model": lambda: 3}, "must be a torch.nn.Module or make one, got int"),
    ],
)
def test_what_is_no_whole_model_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        train(SPSA(), table(), Options(epochs=1), **given)


@pytest.mark.parametrize(("targets", "width"), [("classes", 1), ("classes", 7), ("values", 2)])
def test_a_model_of_another_width_is_refused(targets, width):
    with pytest.raises(InputError, match=rf"outputs of shape \(30, {width}\), but the last dimension must be"):
        train(Backprop(), table(targets), Options(epochs=1, batch=30), model=lambda: nn.Linear(6, width))


def test_a_class_that_needs_arguments_is_refused_in_a_sentence_and_errors_of_its_own_are_not_hidden():
    with pytest.raises(InputError, match=r"the model Linear cannot be made .* model=lambda: Linear\(\.\.\.\)"):
        train(Backprop(), table("classes"), Options(epochs=1), model=nn.Linear)
    with pytest.raises(TypeError, match="in_features"):
        train(Backprop(), table("classes"), Options(epochs=1), model=lambda: nn.Linear())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("noprop-ct", "give it a module for the path of the inputs in its blocks, module=, or take a rule"),
        ("local-loss", "its hidden layers, module=, or give an nn.Sequential of stages to sidestep.attach"),
        ("blockwise", "a chain of residual blocks, as many as it has groups or more, module="),
        (
            "hebbian",
            "model; give an nn.Sequential of stages to sidestep.attach, for a loop of your own, or",
        ),
        ("noise-step", "take it with estimator='weight-probes', schedule='constant', on what sidestep.nets.ternarize"),
    ],
)
def test_a_rule_of_its_own_nets_says_what_it_takes_instead(name, words):
    with pytest.raises(InputError, match="trains no whole model") as found:
        train(RULES[name](), table("classes"), Options(epochs=1), model=lambda: nn.Linear(6, 2))
    assert words in str(found.value)


def test_what_noise_step_is_told_to_take_for_any_module_does():
    given = eval(f"dict({TernarySteps.by_loss_with})")
    net = ternarize(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), Noise(0))
    run = train(RULES["noise-step"](**given), table("classes"), Options(epochs=1), model=net)
    assert run.result["steps"] > 0


def test_tokens_need_a_whole_model():
    with pytest.raises(InputError, match="give a whole model of your own"):
        train(Backprop(net="mlp"), data.from_text(TEXT), Options(epochs=1))
