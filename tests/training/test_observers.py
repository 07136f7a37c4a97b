"""Observers are told of a run, may stop it, and cannot lose what was trained."""

import csv
import dataclasses
import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sidestep import data
from sidestep.data.objective import Objective
from sidestep.errors import InputError
from sidestep.rules import Backprop
from sidestep.training import Options, Stopped, load_run, train
from sidestep.training.early_stop import EarlyStop
from sidestep.training.loggers import CsvLog, TensorBoard
from sidestep.training.observers import STOP, ObserverError

QUICK = Backprop(net="linear", learning_rate=0.01)
NOISE = np.random.default_rng(0)
SET = data.from_arrays(NOISE.integers(0, 255, (90, 1, 4, 4), "uint8"), NOISE.integers(0, 3, 90), validation=0.3)
SIXTY = len(SET.train)
WHERE = {"batch": SIXTY // 2, "device": "cpu", "precision": "float32"}


class Told:
    """Writes down what it is told."""

    def __init__(self):
        self.events = []

    def on_begin(self, event):
        self.events.append(("begin", event.step, event.total_steps))

    def on_step(self, event):
        self.events.append(("step", event.step, sorted(event.losses)))

    def on_epoch(self, event):
        self.events.append(("epoch", event.epoch, event.validation))

    def on_end(self, event):
        self.events.append(("end", event.why, event.result and event.result["steps"]))


def once(method, answer, at=None):
    """An observer with one method, which answers at a step, or raises what is an error."""

    def told(self, event):
        if at is None or event.step == at:
            if isinstance(answer, BaseException):
                raise answer
            return answer() if callable(answer) else answer
        return None

    return type("Once", (), {method: told})()


def scored(scores):
    """A rule whose validation scores are dictated, by giving the right class to so many images."""

    class Dictated(Backprop):
        def predict(self, net, images, noise, start=0, names=None):
            found = super().predict(net, images, noise, start, names)
            if len(images) == len(SET.validation) and Dictated.left:
                right = round(Dictated.left.pop(0) * len(images))
                labels = SET.validation.labels.clone()
                labels[right:] = (labels[right:] + 1) % 3
                found = {name: torch.nn.functional.one_hot(labels, 3).float() for name in found}
            return found

    Dictated.left = list(scores)
    return Dictated(net="linear", learning_rate=0.01)


def weights(run):
    return {name: tensor.clone() for name, tensor in run.net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_observer_is_told_of_everything_in_order():
    told = Told()
    run = train(QUICK, SET, Options(epochs=2, **WHERE), observers=[told])
    kinds = [event[0] for event in told.events]
    assert kinds == ["begin", "step", "step", "epoch", "step", "step", "epoch", "end"]
    assert told.events[0] == ("begin", 0, 4)
    assert told.events[1][2]  # losses by name
    assert told.events[-1] == ("end", "finished", 4)
    assert told.events[-2][2] == run.result["validation_accuracy"]


def test_observers_leave_the_bits_of_training_alone():
    plain = train(QUICK, SET, Options(epochs=1, **WHERE))
    watched = train(QUICK, SET, Options(epochs=1, **WHERE), observers=[Told(), once("on_epoch", None)])
    assert same(weights(plain), weights(watched))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([object()], "an observer must have at least one of the methods on_begin, on_step, on_epoch, on_end"),
        ([Told], r"got the class Told; give Told\(\.\.\.\)"),
        (Told(), r"observers must be a list of them, got Told; give \[observer\]"),
    ],
)
def test_what_is_no_observer_is_refused_before_anything_is_written(tmp_path, wrong, said):
    with pytest.raises(InputError, match=said):
        train(QUICK, SET, Options(epochs=1, out=tmp_path / "run", **WHERE), observers=wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("method", "at", "steps"), [("on_begin", 0, 0), ("on_step", 3, 3), ("on_epoch", 2, 2)])
def test_stop_ends_the_training_and_what_was_trained_is_evaluated_and_kept(tmp_path, method, at, steps):
    told = Told()
    run = train(QUICK, SET, Options(epochs=3, out=tmp_path / "run", **WHERE), observers=[once(method, STOP, at), told])
    assert run.result["steps"] == steps
    assert told.events[-1] == ("end", "finished", steps)
    saved = json.loads((tmp_path / "run/result.json").read_text())
    assert saved["steps"] == steps
    assert same(weights(load_run(tmp_path / "run")), weights(run))


def test_a_run_that_an_observer_stopped_goes_on_to_the_bits_of_one_that_was_not(tmp_path):
    whole = train(QUICK, SET, Options(epochs=2, out=tmp_path / "whole", **WHERE))
    train(QUICK, SET, Options(epochs=2, out=tmp_path / "parts", **WHERE), observers=[once("on_step", STOP, 3)])
    again = train(QUICK, SET, Options(epochs=2, out=tmp_path / "parts", resume=True, **WHERE))
    assert same(weights(whole), weights(again))
    assert whole.result["validation_accuracy"] == again.result["validation_accuracy"]


@pytest.mark.parametrize(("method", "at", "step"), [("on_begin", 0, 0), ("on_step", 3, 3), ("on_step", 2, 2),
                                                    ("on_epoch", 2, 2)])  # fmt: skip
def test_an_error_in_an_observer_names_it_and_loses_no_step(tmp_path, method, at, step):
    whole = train(QUICK, SET, Options(epochs=2, out=tmp_path / "whole", **WHERE))
    told = Told()
    wrong = once(method, KeyError("oh"), at)
    with pytest.raises(ObserverError, match=rf"Once\.{method} failed: KeyError: 'oh'; .* of step {step} in") as caught:
        train(QUICK, SET, Options(epochs=2, out=tmp_path / "run", **WHERE), observers=[wrong, told])
    assert isinstance(caught.value.__cause__, KeyError)
    assert told.events[-1] == ("end", "failed", None)
    assert load_run(tmp_path / "run").step == step
    again = train(QUICK, SET, Options(epochs=2, out=tmp_path / "run", resume=True, **WHERE))
    assert same(weights(whole), weights(again))
    lines = [
        [json.loads(line)["value"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    ]
    assert lines[0] == lines[1]


def test_a_signal_stops_as_before_and_observers_are_told():
    told = Told()
    interrupting = once("on_step", lambda: os.kill(os.getpid(), signal.SIGINT), 3)
    with pytest.raises(Stopped, match="after step 3"):
        train(QUICK, SET, Options(epochs=2, **WHERE), observers=[interrupting, told])
    assert told.events[-1] == ("end", "stopped", None)


def test_numbers_of_an_observer_stand_in_the_metrics(tmp_path):
    class Writing:
        def on_step(self, event):
            event.write("mine", "twice the step", 2 * event.step)

    train(QUICK, SET, Options(epochs=1, out=tmp_path / "run", **WHERE), observers=[Writing()])
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert [(line["step"], line["value"]) for line in lines if line["split"] == "mine"] == [(1, 2), (2, 4)]


class TestEarlyStop:
    SCORES = (0.2, 0.6, 0.4, 0.6, 0.9, 0.9)

    def run(self, folder, observers=(), **options):
        rule, told = scored(self.SCORES), Told()
        run = train(rule, SET, Options(epochs=6, out=folder, **{**WHERE, **options}), observers=[*observers, told])
        return run, told

    def after(self, epochs):
        return weights(train(QUICK, SET, Options(epochs=epochs, **WHERE)))

    @pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 6)])
    def test_it_waits_for_so_many_epochs_without_a_better_score(self, tmp_path, patience, epochs):
        run, _ = self.run(tmp_path / "run", [EarlyStop(patience, keep="last")])
        assert run.result["steps"] == 2 * epochs
        assert "kept_step" not in run.result
        assert same(weights(run), self.after(epochs))

    def test_the_run_ends_with_the_best_weights(self, tmp_path):
        run, _ = self.run(tmp_path / "run", [EarlyStop(2)])
        assert (run.result["steps"], run.result["kept_step"]) == (8, 4)
        assert same(weights(run), self.after(2))

    def test_also_where_it_goes_on_to_its_last_step(self, tmp_path):
        run, _ = self.run(tmp_path / "run", [EarlyStop(5)])
        assert (run.result["steps"], run.result["kept_step"]) == (12, 10)
        assert same(weights(run), self.after(5))

    def test_as_an_option_it_is_the_same(self, tmp_path):
        run, _ = self.run(tmp_path / "run", patience=2)
        assert same(weights(run), self.after(2))
        assert same(weights(load_run(tmp_path / "run")), self.after(2))

    @pytest.mark.parametrize("at", [3, 6, 8])
    def test_a_resumed_run_stops_where_it_would_have_stopped(self, tmp_path, at):
        whole, _ = self.run(tmp_path / "whole", patience=2)
        rule = scored(self.SCORES)
        options = {"epochs": 6, "patience": 2, "out": tmp_path / "parts", **WHERE}
        interrupting = once("on_step", lambda: os.kill(os.getpid(), signal.SIGINT), at)
        with pytest.raises(Stopped):
            train(rule, SET, Options(**options), observers=[interrupting])
        parts = train(rule, SET, Options(**options, resume=True))
        assert (parts.result["steps"], parts.result["kept_step"]) == (8, 4)
        assert same(weights(parts), weights(whole))

    def test_a_run_that_it_ended_stays_ended_when_resumed(self, tmp_path):
        whole, _ = self.run(tmp_path / "run", patience=2)
        again = train(QUICK, SET, Options(epochs=6, patience=2, out=tmp_path / "run", resume=True, **WHERE))
        assert again.result["steps"] == whole.result["steps"]
        assert same(weights(again), weights(whole))

    def test_as_an_option_it_needs_images_before_anything_is_written(self, tmp_path):
        alone = data.from_arrays(SET.train.images.numpy(), SET.train.labels.numpy(), validation=0)
        with pytest.raises(InputError, match="patience = 2 needs images that are not trained on"):
            train(QUICK, alone, Options(patience=2, out=tmp_path / "run", **WHERE))
        assert not (tmp_path / "run").exists()
        with pytest.raises(ObserverError, match="early stopping needs images or rows that are not trained on"):
            train(QUICK, alone, Options(epochs=1, **WHERE), observers=[EarlyStop(2)])

    def test_a_loss_should_fall(self):
        best = EarlyStop(1, metric="net: cross-entropy")
        rule = Backprop(net="linear", learning_rate=1.0)  # rises
        found = train(rule, SET, Options(epochs=50, **WHERE), observers=[best])
        assert found.result["steps"] < 100

    def test_an_objective_scored_by_its_loss_should_fall_and_one_with_scores_rise(self):
        x = np.arange(80, dtype=np.float32).reshape(40, 2) / 80
        table = data.from_arrays(x, x[:, :1], validation=0.25, targets="values")
        loss = Objective("distance", lambda outputs, targets: (outputs - targets).abs().mean(dim=1))
        nearness = dataclasses.replace(loss, scores=lambda answers, targets: -loss.losses(answers, targets))
        rule = Backprop(net="linear", learning_rate=1e-3, weight_decay=0.0)
        for objective in (loss, dataclasses.replace(nearness, score_name="nearness")):
            found = train(rule, table, Options(epochs=5, patience=2, **WHERE), objective=objective)
            assert (found.result["steps"], found.result["kept_step"]) == (5, 5), objective.score_name

    def test_a_metric_that_is_not_there_is_told_with_those_that_are(self):
        with pytest.raises(ObserverError, match=r"there is no loss 'x'; there are: .*: "):
            train(QUICK, SET, Options(epochs=1, **WHERE), observers=[EarlyStop(1, metric="x")])

    @pytest.mark.parametrize(("given", "said"), [({"patience": 0}, "patience must be a whole number"),
                                                 ({"patience": 1, "keep": "all"}, "keep must be best")])  # fmt: skip
    def test_what_it_cannot_do_is_refused(self, given, said):
        with pytest.raises(InputError, match=said):
            EarlyStop(**given)


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


class TestCsvLog:
    def test_it_has_a_row_for_every_epoch(self, tmp_path):
        run = train(QUICK, SET, Options(epochs=2, **WHERE), observers=[CsvLog(tmp_path / "log.csv")])
        rows = rows_of(tmp_path / "log.csv")
        assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "4")]
        assert float(rows[-1]["validation"]) == run.result["validation_accuracy"]
        assert [name for name in rows[0] if ": " in name]

    def test_a_resumed_run_has_the_rows_of_one_that_was_not(self, tmp_path):
        found = []
        for name, at in (("whole", None), ("parts", 4), ("later", 5)):
            options = {"epochs": 3, "out": tmp_path / name, **WHERE}
            log = tmp_path / f"{name}.csv"
            if at:
                with pytest.raises(ObserverError):  # at step 4, after the second row
                    train(QUICK, SET, Options(**options), observers=[CsvLog(log), once("on_step", KeyError(), at)])
                with log.open("a") as file:
                    file.write("3,6,0.1,0.5,0.5\n")  # beyond the checkpoint
            train(QUICK, SET, Options(**options, resume=bool(at)), observers=[CsvLog(log)])
            found.append([{**row, "seconds": ""} for row in rows_of(log)])
        assert found[0] == found[1] == found[2]

    def test_it_replaces_no_file_without_being_asked(self, tmp_path):
        path = tmp_path / "log.csv"
        path.write_text("mine")
        with pytest.raises(ObserverError, match="is there already; choose another file"):
            train(QUICK, SET, Options(epochs=1, **WHERE), observers=[CsvLog(path)])
        assert path.read_text() == "mine"
        train(QUICK, SET, Options(epochs=1, **WHERE), observers=[CsvLog(path, overwrite=True)])
        assert len(rows_of(path)) == 1

    def test_a_folder_that_is_not_there_is_told(self, tmp_path):
        with pytest.raises(ObserverError, match=r"CsvLog\.on_begin failed: .*log\.csv"):
            train(QUICK, SET, Options(epochs=1, **WHERE), observers=[CsvLog(tmp_path / "no/log.csv")])


class TestTensorBoard:
    def test_without_the_package_it_says_what_to_install(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(InputError, match=r"pip install 'sidestep\[tensorboard\]'"):
            TensorBoard(tmp_path)

    def test_losses_and_scores_can_be_read_back(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        run = train(QUICK, SET, Options(epochs=2, **WHERE), observers=[TensorBoard(tmp_path / "tb", every=1)])
        found = EventAccumulator(str(tmp_path / "tb"))
        found.Reload()
        tags = found.Tags()["scalars"]
        score = found.Scalars("score/validation")
        assert [event.step for event in score] == [2, 4]
        assert score[-1].value == pytest.approx(run.result["validation_accuracy"])
        batch = next(tag for tag in tags if tag.startswith("batch/"))
        assert len(found.Scalars(batch)) == 4
        assert "end/validation_accuracy" in tags


def test_the_programs_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs/observers.md").read_text()
    names = {}
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(program, names)
    assert names["run"].result["steps"] < 20 * 10  # it stopped early
    assert len(rows_of(tmp_path / "log.csv")) == 2
