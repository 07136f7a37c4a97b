"""Steps in place of epochs: where a run ends, what its last part of an epoch leaves, and how it goes on."""

import json
import os
import signal

import pytest

from sidestep import Options, data, train
from sidestep.cli import main
from sidestep.cli import train as command
from sidestep.errors import InputError
from sidestep.rules import SPSA, Backprop
from sidestep.training import Stopped
from sidestep.training.resume import log_identity

QUICK = Backprop(net="mlp", hidden=(8,))
EPOCH = 10  # steps of the digits' 1,293 training images in batches of 128


def run(folder, rule=QUICK, **options):
    return train(rule, "digits", Options(batch=128, out=folder, **options), readings=[])


def metrics(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["split"], line["name"], line["value"]) for line in lines]


def model(folder):
    return (folder / "model.safetensors").read_bytes()


class Interrupting:
    """Stops a run after one step, as Ctrl-C does."""

    def __init__(self, at):
        self.at = at

    def on_step(self, event):
        if event.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


class TestTheEnd:
    def test_as_many_steps_as_asked_for(self, tmp_path):
        found = run(tmp_path / "a", steps=13)
        assert found.result["steps"] == 13
        assert found.result["epochs"] == 1.3

    def test_steps_of_whole_epochs_are_these_epochs(self, tmp_path):
        options = {"decay": "cosine", "warmup": 0.2}
        run(tmp_path / "a", steps=2 * EPOCH, **options)
        run(tmp_path / "b", epochs=2, **options)
        assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
        weights = [train(QUICK, "digits", Options(**options, **end)).net.state_dict()
                   for end in ({"steps": 2 * EPOCH}, {"epochs": 2})]  # fmt: skip
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])

    def test_the_rate_falls_over_the_steps(self, tmp_path):
        rates = []

        class Rates:
            def on_begin(self, event):
                rates.append(event.total_steps)

        train(QUICK, "digits", Options(steps=13, decay="linear"), observers=[Rates()])
        assert rates == [13]
        assert Options(decay="linear").rate_factor(12, 13) == pytest.approx(1 / 13)

    def test_train_takes_steps_itself(self):
        assert train(QUICK, "digits", steps=3).result["steps"] == 3
        assert train(QUICK, "digits", Options(seed=1), steps=0).result["steps"] == 0

    @pytest.mark.parametrize("steps", [-1, 10**13])
    def test_other_numbers_are_refused(self, steps):
        with pytest.raises(InputError, match="steps must be 0"):
            Options(steps=steps)

    def test_both_are_refused(self):
        with pytest.raises(InputError, match="steps = 5 and epochs = 2 both say when to end: give one of the two"):
            Options(epochs=2, steps=5)
        with pytest.raises(InputError, match="give one of the two"):
            train(QUICK, "digits", Options(epochs=1), steps=5)


class TestTheLastPartOfAnEpoch:
    def test_its_losses_are_the_mean_of_its_steps(self, tmp_path):
        losses = {}

        class Losses:
            def on_step(self, event):
                losses[event.step] = next(iter(event.losses.values()))

        options = Options(steps=13, batch=128, out=tmp_path / "a")
        train(QUICK, "digits", options, observers=[Losses()])
        means = {step: value for step, split, name, value in metrics(tmp_path / "a") if "cross-entropy" in name}
        assert means == {
            10: pytest.approx(sum(losses[step] for step in range(1, 11)) / 10),
            13: pytest.approx(sum(losses[step] for step in range(11, 14)) / 3),
        }

    def test_observers_are_told_of_it_once(self):
        told = []

        class Epochs:
            def on_epoch(self, event):
                told.append((event.epoch, event.step))

        train(QUICK, "digits", Options(steps=13, batch=128), observers=[Epochs()])
        assert told == [(1, 10), (2, 13)]

    def test_it_is_stopped_and_resumed_to_the_same_bits(self, tmp_path):
        options = {"steps": 13, "decay": "cosine"}
        run(tmp_path / "whole", **options)
        with pytest.raises(Stopped):
            train(QUICK, "digits", Options(**options, out=tmp_path / "parts"), observers=[Interrupting(12)])
        run(tmp_path / "parts", resume=True, **options)
        assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
        assert model(tmp_path / "whole") == model(tmp_path / "parts")

    def test_more_steps_go_on_within_the_epoch(self, tmp_path):
        run(tmp_path / "whole", steps=18)
        run(tmp_path / "parts", steps=13)
        more = Options(steps=18, resume=True, out=tmp_path / "parts")
        with pytest.raises(Stopped):
            train(QUICK, "digits", more, observers=[Interrupting(15)])
        run(tmp_path / "parts", steps=18, resume=True)
        assert model(tmp_path / "whole") == model(tmp_path / "parts")
        whole, parts = (
            {step: value for step, _, name, value in metrics(tmp_path / folder) if "cross-entropy" in name}
            for folder in ("whole", "parts")
        )
        assert 3 * parts[13] + 5 * parts[18] == pytest.approx(8 * whole[18])

    def test_a_log_is_replayed_to_it(self, tmp_path):
        rule = SPSA(hidden=(4,))
        run(tmp_path / "whole", rule, steps=13)
        run(tmp_path / "parts", rule, steps=13)
        for name in ("state.safetensors", "model.safetensors", "result.json"):
            (tmp_path / "parts" / name).unlink()
        assert run(tmp_path / "parts", rule, steps=13, resume=True).result["steps"] == 13
        assert model(tmp_path / "whole") == model(tmp_path / "parts")


class TestGoingOn:
    def test_a_run_of_epochs_goes_on_by_steps(self, tmp_path):
        run(tmp_path / "a", epochs=1)
        assert run(tmp_path / "a", steps=12, resume=True).result["steps"] == 12

    def test_fewer_steps_are_refused(self, tmp_path):
        run(tmp_path / "a", steps=5)
        with pytest.raises(InputError, match="for 5 steps already, more than the 3; give more --steps"):
            run(tmp_path / "a", steps=3, resume=True)

    def test_a_schedule_keeps_its_steps(self, tmp_path):
        run(tmp_path / "a", steps=5, decay="cosine")
        with pytest.raises(InputError, match=r"train.steps: was 5, given 6.*depends on --epochs or --steps"):
            run(tmp_path / "a", steps=6, decay="cosine", resume=True)

    def test_a_log_says_what_its_rates_follow_from(self):
        assert log_identity(Options(steps=5, decay="linear"), 100)["steps"] == 5
        assert "epochs" not in log_identity(Options(steps=5, decay="linear"), 100)
        assert "steps" not in log_identity(Options(steps=5), 100)


class TestTheCommand:
    small = ("backprop", "--net", "mlp", "--hidden", "4", "--batch", "128")

    def test_steps_resumed_by_epochs_and_back(self, tmp_path, capsys):
        place = ["--out", str(tmp_path / "a"), "--json"]
        main(["train", *self.small, "--steps", "3", *place])
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 3
        main(["train", "backprop", "--resume", "--epochs", "1", *place])
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == EPOCH
        main(["train", "backprop", "--resume", "--steps", "12", *place])
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 12

    def test_the_result_is_told_in_steps(self, tmp_path, capsys):
        main(["train", *self.small, "--steps", "3", "--out", str(tmp_path / "a")])
        assert "3 steps," in capsys.readouterr().out

    @pytest.mark.parametrize("rule", ["backprop", "noprop-ct"])
    def test_train_steps_are_steps_also_where_a_rule_has_its_own(self, rule, monkeypatch):
        given = {}
        monkeypatch.setattr(command, "_train", lambda name, found, *others: given.update(rule=found[0], o=found[1]))
        main(["train", rule, "--train-steps", "7"])
        assert given["o"].steps == 7
        assert getattr(given["rule"], "steps", 50) == 50
        if rule == "noprop-ct":
            main(["train", rule, "--steps", "7"])
            assert (given["o"].steps, given["rule"].steps) == (None, 7)

    def test_both_are_one_sentence(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as leaving:
            main(["train", *self.small, "--steps", "3", "--epochs", "1", "--out", str(tmp_path / "a")])
        said = capsys.readouterr().err
        assert leaving.value.code == 2
        assert "give one of the two" in said
        assert "Traceback" not in said
        assert not (tmp_path / "a").exists()


def test_the_digits_have_ten_steps():
    assert len(data.load("digits").train) // 128 == EPOCH
