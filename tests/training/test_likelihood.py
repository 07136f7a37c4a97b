"""Bits a token: of known probabilities, and the same in result.json, `eval` and the table."""

import dataclasses
import json
import math

import pytest
import torch

from sidestep import Options, data, load_run, rules, train
from sidestep.cli import main
from sidestep.data.objective import CLASSES, IGNORED
from sidestep.errors import InputError
from sidestep.rules.protocol import Task
from sidestep.training.attached_rule import as_objective
from sidestep.training.likelihood import added_up, bits_of, quality_of

ROWS = torch.tensor([[0, 1, 2, 1, 0], [1, 1, 0, 2, 0]]).repeat(12, 1)


def task(targets: str = "tokens") -> Task:
    return Task((2,), ("a", "b", "c", "d"), (), (), "int64", "tokens", targets, vocabulary=4)


class TestBits:
    def test_of_known_probabilities_and_without_targets_that_do_not_count(self):
        sums, numbers = added_up(task(), {"forward": None})
        first = torch.tensor([[[0.5, 0.5, 0, 0], [0.125, 0.25, 0.25, 0.375]]])
        second = torch.tensor([[[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0]]])
        found = sums("forward", first, torch.tensor([[1, 0]])) + sums("forward", second, torch.tensor([[2, IGNORED]]))
        assert len(found) == numbers
        assert bits_of(quality_of(task(), 0.5, found.tolist(), None)) == pytest.approx((1 + 3 + 2) / 3)

    def test_a_probability_that_float32_made_zero_stays_finite(self):
        sums, _ = added_up(task(), {})
        found = sums("forward", torch.tensor([[[1.0, 0, 0, 0]]]), torch.tensor([[3]]))
        assert 100 < bits_of(quality_of(task(), 0.0, found.tolist(), None)) < 200

    @pytest.mark.parametrize("targets", ["values", "labels"])
    def test_other_targets_have_no_likelihood(self, targets):
        assert added_up(task(targets), {}) == (None, 0)


def test_result_eval_and_table_agree(tmp_path):
    text = data.from_tokens(ROWS, x_test=ROWS[:4], vocabulary=3)
    folder = tmp_path / "run"
    rule = rules.NoiseStep(hidden=(8,), flip_share=0.02)
    result = train(rule, text, Options(epochs=1, batch=8, out=folder)).result
    run = load_run(folder)
    chances = run.predict(text.test.images)
    own = chances.gather(-1, text.test.labels.unsqueeze(-1)).double()
    wanted = float(-own.log2().mean())
    assert result["test_bits_per_token"] == pytest.approx(wanted, rel=1e-5)
    assert result["test_nll"] == pytest.approx(wanted * math.log(2), rel=1e-5)
    assert 0 < result["validation_bits_per_token"] < 10
    assert bits_of(run.assess(text.test)["forward"]) == pytest.approx(wanted, rel=1e-5)
    assert "bits_per_token" not in json.dumps(train(rules.Backprop(net="linear"), "digits", Options(steps=1)).result)


def test_eval_shows_bits_of_a_text(tmp_path, capsys):
    text = tmp_path / "my.txt"
    text.write_text("to be or not to be, that is the question. " * 60)
    run = tmp_path / "run"
    main(["train", "noise-step", "--data", str(text), "--hidden", "8", "--steps", "2", "--out", str(run)])
    assert "bits a token" in capsys.readouterr().out
    main(["eval", str(run)])
    assert "bits a token" in capsys.readouterr().out
    main(["eval", str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    kept = json.loads((run / "result.json").read_text())
    assert found["bits_per_token"]["forward"] == pytest.approx(kept["test_bits_per_token"], rel=1e-5)


def test_a_loss_of_the_users_own_is_no_accuracy_and_has_no_temperature():
    def margin(outputs, targets):
        return torch.nn.functional.multi_margin_loss(outputs, targets, reduction="none")

    digits, rule, options = data.load("digits"), rules.LocalLoss(hidden=(16,)), Options(epochs=2)
    loss = train(rule, digits, options, objective=margin)
    assert loss.result["score"] == "loss"
    assert "test_accuracy" not in loss.result
    assert loss.result["test_nll"] is None
    assert loss.calibration is None
    assert "a loss of your own" in loss.uncalibrated()
    with pytest.raises(InputError, match="classes by a loss of your own"):
        loss.recalibrated(digits.validation)
    right = dataclasses.replace(as_objective(margin), scores=CLASSES.scores, score_name="accuracy")
    counted = train(rule, digits, options, objective=right)
    test = digits.test
    exact = float((counted.predict(test.images).argmax(1) == test.labels).float().mean())
    assert counted.result["test_accuracy"] == pytest.approx(exact)
    mean = float(margin(loss.predict(test.images), test.labels).mean())
    assert loss.result["test_score"] == pytest.approx(mean, rel=1e-3)
