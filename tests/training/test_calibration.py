"""Temperatures: fitted well, on validation images alone, kept with the run, and never changing an answer."""

import dataclasses
import json
import math
import signal
from pathlib import Path

import numpy
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar

from sidestep import Options, checkpoint, data, load_run, train
from sidestep.cli import main
from sidestep.data import Split
from sidestep.errors import CheckpointError, InputError
from sidestep.noise import Noise
from sidestep.rules import Backprop, NoPropDT
from sidestep.training import Stopped
from sidestep.training.calibration import (
    FIT_SUMS,
    HIGHEST,
    Quality,
    calibrated,
    calibration_images,
    confidence_sums,
    fit_sums,
    fit_temperature,
)

QUICK = Backprop(net="mlp", hidden=(16,))


def scores_and_labels(count=400, classes=5, scale=1.0):
    """Return logits, and labels that are drawn with the probabilities that these give."""
    logits = scale * Noise(1).normal(count * classes).view(count, classes).double()
    gumbel = -(-Noise(2).uniform(count * classes).double().clamp_min(1e-9).log()).log()
    return logits, (logits + gumbel.view(count, classes)).argmax(dim=1)


def _logs(probabilities):
    return probabilities.double().clamp_min(torch.finfo(torch.float32).tiny).log()


def likeliest_temperature(probabilities, labels):
    """The minimum by scipy, of the sum as the module's page writes it."""
    logs = _logs(probabilities)

    def cost(log_beta):
        beta = math.exp(log_beta)
        likelihood = (beta * logs).log_softmax(dim=1).gather(1, labels[:, None]).sum()
        return -float(likelihood) + beta - log_beta

    found = minimize_scalar(cost, bounds=(-math.log(HIGHEST), math.log(HIGHEST)), method="bounded",
                            options={"xatol": 1e-9})  # fmt: skip
    return math.exp(-found.x)


def expected_temperature(probabilities, labels):
    """The T whose mean confidence is the accuracy with one right and one wrong answer more, by scipy."""
    logs = _logs(probabilities)
    accuracy = (float((logs.argmax(dim=1) == labels).sum()) + 1) / (len(labels) + 2)

    def missing(log_t):
        return accuracy - float((logs / math.exp(log_t)).softmax(dim=1).amax(dim=1).mean())

    low, high = -math.log(HIGHEST), math.log(HIGHEST)
    if missing(low) >= 0 or missing(high) <= 0:
        return 1 / HIGHEST if missing(low) >= 0 else HIGHEST
    return math.exp(brentq(missing, low, high))


def calibration_error(probabilities, labels, temperature):
    return Quality.of(0, confidence_sums(probabilities, labels, temperature).tolist(), temperature).ece


def exact_temperatures(probabilities, labels):
    """Both temperatures, the one with the smaller calibration error first; one alone if the errors differ clearly."""
    both = [fit(probabilities, labels) for fit in (likeliest_temperature, expected_temperature)]
    errors = [calibration_error(probabilities, labels, each) for each in both]
    if abs(errors[0] - errors[1]) > 0.005:  # more than interpolation can hide
        return [both[errors.index(min(errors))]]
    return both


def near(value, expected):
    return any(value == pytest.approx(each, rel=2e-3) for each in expected)


def fitted(probabilities, labels):
    return fit_temperature(fit_sums(probabilities, labels).tolist())


class TestTheFit:
    @pytest.mark.parametrize("scale", [0.3, 1.0, 4.0, 30.0])
    @pytest.mark.parametrize("true", [0.1, 0.5, 1.0, 3.0, 20.0])
    def test_is_the_better_of_the_likeliest_and_the_expected(self, scale, true):
        logits, labels = scores_and_labels(scale=scale)
        probabilities = (logits * true).softmax(dim=1).float()
        found = fitted(probabilities, labels)
        assert near(found, exact_temperatures(probabilities, labels))

    def test_finds_the_temperature_that_scores_were_made_with(self):
        logits, labels = scores_and_labels(count=5_000, scale=2.0)
        for true in (0.2, 1.0, 5.0):
            assert fitted((logits * true).softmax(dim=1), labels) == pytest.approx(true, rel=0.1)

    def test_takes_either_where_it_has_the_smaller_error(self):
        logits, labels = scores_and_labels(count=2_000)
        wild = Noise(5).uniform(2_000) < 0.05  # one label in twenty is any
        labels = torch.where(wild, Noise(6).integers(2_000, 5), labels)
        for power, better in (2.0, "likeliest"), (0.5, "expected"):  # of scores whose shape no temperature can mend
            probabilities = (logits.sign() * logits.abs() ** power).softmax(dim=1)
            both = {
                "likeliest": likeliest_temperature(probabilities, labels),
                "expected": expected_temperature(probabilities, labels),
            }
            errors = {name: calibration_error(probabilities, labels, each) for name, each in both.items()}
            assert max(errors.values()) - min(errors.values()) > 0.005
            assert min(errors, key=errors.get) == better
            assert fitted(probabilities, labels) == pytest.approx(both[better], rel=2e-3)

    def test_can_be_added_up_over_batches(self):
        logits, labels = scores_and_labels()
        whole = fit_sums(logits.softmax(dim=1), labels)
        parts = [fit_sums(p.softmax(dim=1), y) for p, y in zip(logits.split(150), labels.split(150), strict=True)]
        torch.testing.assert_close(sum(parts), whole)
        assert len(whole) == FIT_SUMS
        assert fit_temperature(sum(parts).tolist()) == pytest.approx(fit_temperature(whole.tolist()), rel=1e-3)

    @pytest.mark.parametrize("margin", [0.05, 1.0, 20.0])
    def test_right_answers_alone_make_nothing_certain(self, margin):
        probabilities = (margin * torch.eye(4)[torch.arange(60) % 4]).softmax(dim=1)
        labels = torch.arange(60) % 4
        found = fitted(probabilities, labels)
        assert near(found, exact_temperatures(probabilities, labels))
        if margin == 1.0:  # 60 right answers: an error in about 60 cannot be ruled out
            assert 0.9 < float(calibrated(probabilities, found).max()) < 0.999

    def test_scores_that_say_nothing_or_the_contrary_have_a_temperature_too(self):
        even, labels = torch.full((100, 4), 0.25), torch.arange(100) % 4
        assert fitted(even, labels) == 1.0
        wrong = (5 * torch.eye(4)[labels]).softmax(dim=1)
        assert 1 < fitted(wrong, (labels + 1) % 4) <= HIGHEST

    def test_zeros_are_no_obstacle(self):
        probabilities = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.4]])
        found = fitted(probabilities, torch.tensor([0, 1, 1, 0]))
        assert near(found, exact_temperatures(probabilities, torch.tensor([0, 1, 1, 0])))
        assert math.isfinite(found)


class TestTheMap:
    @pytest.mark.parametrize("temperature", [1 / HIGHEST, 0.3, 1.0, 7.0, HIGHEST])
    def test_keeps_every_answer_and_makes_no_tie(self, temperature):
        near = torch.tensor([[0.3, 0.3000001, 0.3999999], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.4, 0.4]])
        near = torch.cat([near, torch.tensor([[0.4, torch.nextafter(torch.tensor(0.4), torch.tensor(1.0)), 0.2]])])
        many = (50 * Noise(0).normal(3000).view(1000, 3)).softmax(dim=1)
        for scores in (near, many):
            found = calibrated(scores, temperature)
            best = scores.argmax(dim=1, keepdim=True)
            assert torch.equal(found.argmax(dim=1, keepdim=True), best)
            assert (found == found.gather(1, best)).sum() == len(scores)
            torch.testing.assert_close(found.sum(dim=1), torch.ones(len(scores)))

    def test_is_the_softmax_of_scaled_logits(self):
        logits = 3 * Noise(0).normal(60).view(20, 3)
        torch.testing.assert_close(calibrated(logits.softmax(dim=1), 2.5), (logits / 2.5).softmax(dim=1))


class TestTheNumbers:
    def test_are_those_of_their_definitions(self):
        logits, labels = scores_and_labels(scale=1.5)
        plain = (2 * logits).softmax(dim=1).float()
        parts = [confidence_sums(p, y, 1.7) for p, y in zip(plain.split(150), labels.split(150), strict=True)]
        quality = Quality.of(0.5, sum(parts).tolist(), 1.7)
        tempered = calibrated(plain, 1.7)
        for p, nll, ece in ((plain, quality.raw_nll, quality.raw_ece), (tempered, quality.nll, quality.ece)):
            rows = p.double().numpy()
            own, sure = rows[numpy.arange(len(rows)), labels.numpy()], rows.max(axis=1)
            right, expected = rows.argmax(axis=1) == labels.numpy(), 0.0
            for number in range(15):
                inside = (sure > number / 15) & (sure <= (number + 1) / 15)
                if inside.any():
                    expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
            assert nll == pytest.approx(-numpy.log(own).mean())
            assert ece == pytest.approx(expected)

    def test_of_certain_answers(self):
        certain, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
        quality = Quality.of(0.75, confidence_sums(certain, labels, None).tolist(), None)
        assert (quality.ece, quality.temperature) == (0.25, None)
        assert quality.nll == pytest.approx(-math.log(torch.finfo(torch.float32).tiny) / 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("calibration") / "run"
    return train(NoPropDT(blocks=2), "digits", Options(epochs=3, batch=64, out=out), readings=NoPropDT.readings)


class TestARun:
    def test_gives_probabilities_where_it_gave_scores(self, run):
        quality = run.assess(data.load("digits").test)["ddim"]
        assert quality.raw_ece > 0.4  # the read-out says about 0.26 for 97% right
        assert quality.ece < 0.04
        assert quality.nll < quality.raw_nll / 3
        assert dataclasses.asdict(quality) == run.result["qualities"]["ddim"]
        assert (run.result["test_nll"], run.result["test_ece"]) == (quality.nll, quality.ece)

    def test_keeps_its_answers(self, run):
        images = data.load("digits").test.images
        for reading in run.rule.readings:
            scores, probabilities = run.predict(images, reading, raw=True), run.predict(images, reading)
            assert torch.equal(scores.argmax(dim=1), probabilities.argmax(dim=1)), reading
            assert not torch.allclose(scores, probabilities, atol=1e-3), reading

    def test_comes_back_with_its_temperatures(self, run):
        again = load_run(run.folder)
        assert again.calibration == run.calibration
        assert set(again.calibration.temperatures) == set(run.rule.readings)
        images = data.load("digits").test.images[:20]
        assert torch.equal(again.predict(images, "mean"), run.predict(images, "mean"))

    def test_has_scores_at_other_settings(self, run):
        other, same = (load_run(run.folder, inference={"draws": n}) for n in (3, run.rule.draws))
        assert (same.temperature("mean"), same.uncalibrated("mean")) == (run.temperature("mean"), None)
        assert other.temperature("mean") is None
        assert other.uncalibrated("mean") == f"temperatures were fitted with draws={run.rule.draws}"
        images = data.load("digits").test.images[:20]
        assert torch.equal(other.predict(images), other.predict(images, raw=True))
        quality = other.assess(data.load("digits").test, ["ddim"])["ddim"]
        assert (quality.ece, quality.nll) == (quality.raw_ece, quality.raw_nll)

    def test_can_be_calibrated_at_other_settings(self, run):
        digits = data.load("digits")
        again = load_run(run.folder).recalibrated(digits.validation)
        assert again.calibration == run.calibration
        other = load_run(run.folder, inference={"draws": 3})
        found = other.recalibrated(digits.validation, ["mean"])
        assert (list(found.calibration.temperatures), other.calibration) == (["mean"], run.calibration)
        assert found.assess(digits.test, ["mean"])["mean"].ece < other.assess(digits.test, ["mean"])["mean"].ece / 5
        with pytest.raises(InputError, match="50 validation images or more, got 49"):
            other.recalibrated(Split(digits.validation.images[:49], digits.validation.labels[:49]))

    def test_refuses_a_temperature_that_was_changed(self, run, tmp_path):
        for file in run.folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        model = tmp_path / "model.safetensors"
        text = str(run.temperature("ddim")).encode()
        whole = model.read_bytes()
        assert whole.count(text) == 1
        model.write_bytes(whole.replace(text, text[:-1] + (b"1" if text[-1:] != b"1" else b"2")))
        with pytest.raises(CheckpointError, match="does not match its digest"):
            load_run(tmp_path)

    def test_has_none_of_another_step(self, run, tmp_path):
        for file in run.folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        weights, record = checkpoint.load(tmp_path / "model.safetensors")
        checkpoint.save(tmp_path / "model.safetensors", weights, {**record, "step": record["step"] - 1})
        assert load_run(tmp_path).calibration is None

    def test_of_weights_alone_has_its_step_and_temperatures(self, run, tmp_path):
        for name in ("config.toml", "model.safetensors"):
            (tmp_path / name).write_bytes((run.folder / name).read_bytes())
        alone = load_run(tmp_path)
        assert (alone.step, alone.calibration) == (run.step, run.calibration)


def test_temperatures_never_see_test_images():
    """Other test images with shuffled labels leave temperatures as they are; other validation labels do not."""
    digits = data.load("digits")
    shuffled = Split(255 - digits.test.images, digits.test.labels[Noise(0).permutation(len(digits.test))])
    other = dataclasses.replace(digits, read_test=lambda: shuffled)
    moved = dataclasses.replace(
        digits, validation=Split(digits.validation.images, digits.validation.labels.roll(1)), read_test=lambda: shuffled
    )
    runs = [train(QUICK, each, Options(epochs=3)) for each in (digits, other, moved)]
    assert runs[0].result["test_accuracy"] != runs[1].result["test_accuracy"]
    assert runs[0].calibration == runs[1].calibration
    assert runs[0].calibration != runs[2].calibration


def test_without_images_enough_there_are_scores(tmp_path):
    digits = data.load("digits")
    for count in (0, 49):
        few = dataclasses.replace(
            digits, validation=Split(digits.validation.images[:count], digits.validation.labels[:count])
        )
        run = train(QUICK, few, Options(epochs=1, out=tmp_path / str(count)))
        assert run.calibration is None
        assert load_run(tmp_path / str(count)).calibration is None
        assert "50 validation images" in run.uncalibrated()
        assert run.result["qualities"]["forward"]["temperature"] is None
        assert torch.equal(run.predict(digits.test.images), run.predict(digits.test.images, raw=True))


def test_without_a_test_split_the_numbers_are_of_validation_images(tmp_path):
    alone = dataclasses.replace(data.load("digits"), read_test=None)
    result = train(QUICK, alone, Options(epochs=2)).result
    assert (result["test_ece"], result["test_nll"]) == (None, None)
    assert result["qualities"]["forward"]["accuracy"] == result["validation_accuracy"]
    assert result["qualities"]["forward"]["temperature"] > 0


def test_only_counted_readings_are_calibrated():
    run = train(NoPropDT(blocks=1), "digits", Options(epochs=1), readings=["mean"])
    assert list(run.calibration.temperatures) == ["ddim", "mean"]
    assert run.uncalibrated("ancestral") == "this reading was not calibrated in training"
    with pytest.raises(InputError, match="no reading 'euler'"):
        run.temperature("euler")


def test_images_are_drawn_from_the_whole_split():
    split = Split(torch.zeros(7000, 1, 1, 1, dtype=torch.uint8), torch.arange(7000))
    found = calibration_images(split, Noise(3)).labels
    assert len(found) == len(found.unique()) == 3000
    assert torch.equal(found, calibration_images(split, Noise(3)).labels)
    assert 3300 < float(found.double().mean()) < 3700


def test_more_epochs_bring_other_temperatures(tmp_path):
    whole = train(QUICK, "digits", Options(epochs=2, average=0.9, out=tmp_path / "whole"))
    first = train(QUICK, "digits", Options(epochs=1, average=0.9, out=tmp_path / "parts"))
    parts = train(QUICK, "digits", Options(epochs=2, average=0.9, out=tmp_path / "parts", resume=True))
    assert first.calibration != parts.calibration == whole.calibration
    assert load_run(tmp_path / "parts").calibration == whole.calibration


class Interrupting:
    """SIGTERM when `at` is being evaluated."""

    def __init__(self, at):
        self.at, self.told = at, []

    def begin(self, *given): ...
    def step(self, *given): ...
    def epoch(self, *given): ...
    def notice(self, *given): ...
    def evaluating(self, what):
        self.told.append(what)
        if what == self.at:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("at", ["calibration: 69%", "test: 56%"])
def test_a_stop_while_it_is_fitted_loses_nothing(tmp_path, monkeypatch, at):
    monkeypatch.setattr("sidestep.training.evaluate._BATCH", 100)
    options = Options(epochs=1, batch=128)
    whole = train(QUICK, "digits", dataclasses.replace(options, out=tmp_path / "whole"))
    first, second = Interrupting(at), Interrupting("nothing")
    out = tmp_path / "parts"
    with pytest.raises(Stopped):
        train(QUICK, "digits", dataclasses.replace(options, out=out), progress=first)
    assert load_run(out).uncalibrated() is None or at.startswith("calibration")
    parts = train(QUICK, "digits", dataclasses.replace(options, out=out, resume=True), progress=second)
    assert parts.calibration == whole.calibration
    assert parts.result["qualities"] == whole.result["qualities"]
    told = [what for what in first.told + second.told if ":" in what]
    assert len(told) == len(set(told))


def test_counts_that_were_changed_are_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("sidestep.training.evaluate._BATCH", 100)
    options, out = Options(epochs=1, batch=128), tmp_path / "parts"
    whole = train(QUICK, "digits", options)
    with pytest.raises(Stopped):
        train(QUICK, "digits", dataclasses.replace(options, out=out), progress=Interrupting("test: 56%"))
    record = json.loads((out / "evaluation.json").read_text())
    record["counts"]["calibration"]["sums"]["forward"][:129] = [-1.0] * 129
    (out / "evaluation.json").write_text(json.dumps(record))
    parts = train(QUICK, "digits", dataclasses.replace(options, out=out, resume=True))
    assert parts.calibration == whole.calibration


def test_the_command_line_says_probability_or_score(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    numpy.savez("images.npz", images=data.load("digits").test.images[:3].numpy())

    def said(*words):
        main([*words])
        return " ".join(capsys.readouterr().out.split())

    words = ["predict", str(run.folder), "images.npz"]
    for other, kind, plural in ([], "probability", "probabilities"), (["--set", "draws=3"], "score", "scores"):
        assert f"class {kind}" in said(*words, *other)
        assert ("scores, which need not" in said(*words, *other)) == (kind == "score")
        found = json.loads(said(*words, *other, "--json"))
        assert len(found[kind]) == 3
        assert ("score" in found) == (found["temperature"] is None) == (kind == "score")
        said(*words, *other, "--out", f"{kind}.csv")
        said(*words, *other, "--out", f"{kind}.npz")
        assert Path(f"{kind}.csv").read_text().startswith(f"index,class,{kind}")
        assert numpy.load(f"{kind}.npz")[plural].max(axis=1) == pytest.approx(found[kind])
        assert ("without T, NLL and ECE are those of scores" in said("eval", str(run.folder), *other)) == bool(other)
        assert "of scores" not in said("eval", str(run.folder), *other, "--calibrate")
        record = json.loads(said("eval", str(run.folder), *other, "--json"))
        assert record["qualities"]["ddim"].items() <= record.items()
        assert (record["temperature"] is None) == (kind == "score")
