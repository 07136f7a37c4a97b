"""The command line as a user types it."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from sidestep import Options, data, train
from sidestep.cli import main
from sidestep.cli.bar import TrainingBar
from sidestep.cli.train import _readings as readings_of
from sidestep.errors import DataError
from sidestep.presets.catalogue import PRESETS
from sidestep.rules import RULES, Backprop, Task
from sidestep.training.compatibility import pixel_scale_warning
from sidestep.training.loop import Loop

QUICK = ["--net", "mlp", "--hidden", "16", "--epochs", "1"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIDESTEP_DATA", raising=False)


def run(capsys, *arguments):
    """Return exit status, standard output, standard error."""
    status = 0
    try:
        main(arguments)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, " ".join(captured.err.split())


def last_json(text):
    return json.loads(text.strip().splitlines()[-1])


def test_train_eval_predict(capsys):
    status, out, _ = run(capsys, "train", "noprop-dt", "--blocks", "2", "--epochs", "3", "--json")
    assert status == 0
    result = last_json(out)
    wanted = "rule data seed steps epochs seconds parameters peak_memory_bytes run"
    wanted += " train_accuracy validation_accuracy test_accuracy"
    assert set(wanted.split()) <= result.keys()
    assert result["run"] == "runs/noprop-dt-digits-0"
    assert result["steps"] == 30
    status, out, _ = run(capsys, "eval", result["run"], "--json")
    assert status == 0
    found = last_json(out)
    assert found["accuracy"] == result["test_accuracy"]
    assert list(found["readings"]) == ["ddim", "ancestral", "mean", "block 1 alone", "mean of blocks"]
    status, out, _ = run(capsys, "eval", result["run"], "--split", "validation")
    assert status == 0
    assert "ancestral" in out
    assert "block 1 alone" in out
    images = numpy.arange(3 * 64).reshape(3, 8, 8).astype("uint8")
    numpy.savez("images.npz", images=images)
    status, out, _ = run(capsys, "predict", result["run"], "images.npz", "--out", "classes.csv", "--json")
    assert status == 0
    labels = last_json(out)["labels"]
    assert len(labels) == 3
    rows = Path("classes.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["class", *map(str, labels)]
    status, out, _ = run(capsys, "predict", result["run"], "images.npz", "--reading", "ancestral", "--out", "p.npz")
    assert status == 0
    assert numpy.load("p.npz")["probabilities"].shape == (3, 10)


def test_predict_takes_pictures_and_single_arrays(capsys):
    from PIL import Image

    run(capsys, "train", "backprop", *QUICK)
    Image.fromarray(numpy.full((8, 8, 3), 90, dtype="uint8")).save("one.png")
    numpy.save("one.npy", numpy.full((8, 8), 90, dtype="uint8"))
    found = [run(capsys, "predict", "runs/backprop-digits-0", name, "--json") for name in ("one.png", "one.npy")]
    assert [status for status, _, _ in found] == [0, 0]
    assert last_json(found[0][1])["labels"] == last_json(found[1][1])["labels"]


def test_rules_and_data_are_listed(capsys):
    assert "noprop-dt" in run(capsys, "rules")[1]
    assert last_json(run(capsys, "rules", "--json")[1])["noprop-dt"]["defaults"]["eta"] == 0.1
    assert "bloodmnist" in run(capsys, "data")[1]
    assert last_json(run(capsys, "data", "--json")[1])["mnist"]["train"] == 60000


def test_data_show_writes_a_picture(capsys):
    status, out, _ = run(capsys, "data", "show", "digits", "--out", "grid.png")
    assert status == 0
    assert Path("grid.png").read_bytes().startswith(b"\x89PNG")
    assert "10 classes" in out


def test_help_explains_each_option_with_default_and_symbol(capsys):
    _, out, _ = run(capsys, "train", "noprop-dt", "--help-all")
    words = " ".join(out.replace("│", " ").split())
    for phrase in (
        "--blocks",
        "the paper's T",
        "--eta",
        "(default: 0.1)",
        "--seed",
        "--data-dir",
        "--overwrite",
        "--resume",
    ):
        assert phrase in words, phrase
    for command in (
        [],
        ["--help"],
        ["train"],
        ["train", "--help"],
        ["eval", "--help"],
        ["predict", "--help"],
        ["data", "show", "--help"],
    ):
        status, out, _ = run(capsys, *command)
        assert status == 0
        assert "usage" in out.lower()
    assert run(capsys, "--version")[1].startswith("sidestep 0.")


def test_a_run_is_evaluated_by_the_readings_that_are_asked_for_and_eval_does_the_others(capsys):
    words = ["--blocks", "2", "--epochs", "1", "--batch", "512", "--out", "a"]
    status, out, error = run(capsys, "train", "noprop-dt", *words, "--json", "--reading", "ancestral")
    assert status == 0, error
    result = json.loads(out.splitlines()[-1])
    assert list(result["readings"]) == list(result["qualities"]) == ["ddim", "ancestral"]
    assert result["test_accuracy"] == result["readings"]["ddim"]
    status, out, error = run(capsys, "eval", "a", "--json")
    assert status == 0, error
    found = json.loads(out.splitlines()[-1])["readings"]
    assert found["ancestral"] == result["readings"]["ancestral"]
    assert {"ddim", "mean", "block 1 alone"} <= found.keys()
    status, out, error = run(capsys, "train", "noprop-dt", *words, "--overwrite", "--reading", "all", "--json")
    assert (status, list(json.loads(out.splitlines()[-1])["readings"])) == (0, list(RULES["noprop-dt"].readings))
    status, _, error = run(capsys, "train", "noprop-dt", *words, "--overwrite", "--reading", "heun")
    assert (status, "noprop-dt has no reading 'heun'; it has: ddim, ancestral" in error) == (2, True)


@pytest.mark.parametrize(
    "preset", [None, *(p for p in PRESETS.values() if RULES[p.rule].at_end)], ids=lambda preset: preset and preset.name
)
def test_a_preset_is_evaluated_by_the_reading_that_its_paper_has_too(preset):
    rule = RULES[preset.rule if preset else "noprop-ct"]()
    found = readings_of(rule, (), preset and preset.name)
    assert tuple(found) == (tuple(dict.fromkeys([*rule.at_end, preset.reading])) if preset else ())
    assert readings_of(rule, ("heun",), preset and preset.name) == ("heun",)
    assert readings_of(rule, ("all",), preset and preset.name) == rule.readings


@pytest.mark.parametrize("given", [["--grid", "logsnr"], ["--grid=logsnr"]])
def test_an_option_of_other_rules_is_said_to_be_theirs(capsys, given):
    status, _, error = run(capsys, "train", "noprop-dt", *given, "--epochs", "1")
    assert status == 2
    assert "sidestep train noprop-dt takes no --grid: it is an option of noprop-ct, noprop-fm" in error
    assert "--epochs is not" not in error
    assert "is not an option" not in run(capsys, "train", "noprop-dt", "--stepps", "5")[2]
    assert "is not an option" not in run(capsys, "train", "noprop-ct", "--steps", "many")[2]


def test_resuming_keeps_the_options_that_are_not_given_again(capsys):
    run(capsys, "train", "backprop", *QUICK, "--out", "a", "--batch", "64", "--seed", "3", "--learning-rate", "0.01")
    status, _, error = run(capsys, "train", "backprop", "--resume", "--out", "a", "--epochs", "2")
    assert status == 0, error
    run(
        capsys,
        "train",
        "backprop",
        *QUICK,
        "--out",
        "b",
        "--batch",
        "64",
        "--seed",
        "3",
        "--learning-rate",
        "0.01",
        "--epochs",
        "2",
    )
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()
    status, _, error = run(capsys, "train", "backprop", "--resume", "--out", "a", "--batch", "32")
    assert status == 2
    assert "train.batch: was 64, given 32" in error


def test_resuming_where_there_is_no_run_starts_one_and_says_so(capsys):
    words = ["train", "backprop", *QUICK, "--resume", "--out", "runs/never", "--json"]
    status, out, error = run(capsys, *words)
    assert (status, error) == (0, "sidestep: runs/never holds no run yet; starting one")
    assert last_json(out)["run"] == "runs/never"
    assert run(capsys, *words)[::2] == (0, "")
    help_words = " ".join(run(capsys, "train", "backprop", "--help-all")[1].replace("│", " ").split())
    assert "where there is none yet, start one" in help_words


def test_own_module_from_a_file(capsys):
    Path("mine.py").write_text(
        "from torch import nn\n\n\ndef path():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())\n"
    )
    status, out, error = run(
        capsys,
        "train",
        "noprop-dt",
        "--blocks",
        "2",
        "--epochs",
        "2",
        "--module",
        "mine.py:path",
        "--out",
        "own",
        "--json",
    )
    assert status == 0, error
    accuracy = last_json(out)["test_accuracy"]
    status, _, error = run(capsys, "eval", "own")
    assert (status, "--module" in error) == (2, True)  # the run's own files never name code to run
    assert last_json(run(capsys, "eval", "own", "--module", "mine.py:path", "--json")[1])["accuracy"] == accuracy
    status, _, error = run(capsys, "train", "noprop-dt", "--resume", "--out", "own", "--epochs", "3")
    assert (status, "mine.py:path" in error) == (2, True)
    resumed = run(capsys, "train", "noprop-dt", "--resume", "--out", "own", "--epochs", "3", "--module", "mine.py:path")
    assert resumed[0] == 0, resumed[2]
    for reference, words in {
        "mine.py": "FILE.py:NAME",
        "other.py:path": "does not exist",
        "mine.py:nothing": "has no nothing",
    }.items():
        status, _, error = run(capsys, "train", "noprop-dt", "--module", reference)
        assert (status, words in error) == (2, True), error


def test_own_arrays_train_and_are_evaluated_on_their_test_split(capsys):
    images = numpy.random.default_rng(0).integers(0, 256, (60, 9, 7, 3)).astype("uint8")
    numpy.savez(
        "own.npz", x_train=images[:40], y_train=numpy.arange(40) % 4, x_test=images[40:], y_test=numpy.arange(20) % 4
    )
    status, _, error = run(capsys, "train", "noprop-dt", "--blocks", "2", "--data", "own.npz", "--epochs", "1")
    assert status == 0, error
    assert Path("runs/noprop-dt-own-0/result.json").exists()
    status, _, error = run(capsys, "eval", "runs/noprop-dt-own-0")
    assert status == 0, error
    status, _, error = run(capsys, "eval", "runs/noprop-dt-own-0", "--data", "digits")
    assert status == 2
    assert "trained on (3, 9, 7)" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean train?"),
        (["train", "noprop-d"], "did you mean noprop-dt?"),
        (["train", "noprop-dt", "--data", "mnits"], "did you mean 'mnist'?"),
        (["train", "noprop-dt", "--data", "none.npz"], "no such file"),
        (["train", "noprop-dt", "--blocks", "0"], "blocks must lie between 1"),
        (["train", "noprop-dt", "--eta", "-1"], "eta must be above 0"),
        (["train", "noprop-dt", "--learning-rate", "nan"], "learning_rate must be"),
        (["train", "noprop-dt", "--epochs", "-2"], "epochs must be 0"),
        (["train", "noprop-dt", "--batch", "0"], "batch must be at least 1"),
        (["train", "noprop-dt", "--validation", "0.9"], "validation"),
        (["train", "noprop-dt", "--device", "cuda:63"], "--device cpu"),
        (["eval", "nowhere"], "there is no such folder"),
        (["predict", "nowhere", "x.npz"], "there is no such folder"),
        (["data", "shwo"], "data show NAME"),
        (["data", "show", "digits", "--out", "grid.txt"], ".png"),
    ],
)
def test_wrong_input_ends_in_one_clear_line_and_status_2(capsys, arguments, words):
    status, _, error = run(capsys, *arguments)
    assert status == 2
    assert words in error
    assert "Traceback" not in error
    assert not Path("runs").exists()


def test_an_option_that_does_not_exist_is_refused(capsys):
    status, _, error = run(capsys, "train", "noprop-dt", "--etta", "0.1")
    assert status == 2
    assert "--etta" in error


def test_images_too_small_for_the_network(capsys):
    numpy.savez("tiny.npz", x_train=numpy.zeros((40, 3, 3), "uint8"), y_train=numpy.arange(40) % 2)
    status, _, error = run(capsys, "train", "noprop-dt", "--data", "tiny.npz")
    assert status == 2
    assert "at least 4 x 4" in error


def test_predicting_images_of_another_shape(capsys):
    run(capsys, "train", "backprop", *QUICK)
    numpy.savez("big.npz", images=numpy.zeros((2, 28, 28), "uint8"))
    status, _, error = run(capsys, "predict", "runs/backprop-digits-0", "big.npz")
    assert status == 2
    assert "trained on (1, 8, 8)" in error


def test_sidestep_data_is_the_default_of_data_dir(capsys, monkeypatch, tmp_path):
    pixels = numpy.zeros((40, 28, 28), "uint8")
    labels = numpy.arange(40) % 10
    (tmp_path / "sets").mkdir()
    numpy.savez(tmp_path / "sets/mnist.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    monkeypatch.setenv("SIDESTEP_DATA", str(tmp_path / "sets"))
    status, _, error = run(capsys, "train", "backprop", *QUICK, "--data", "mnist")
    assert status == 0, error


def test_quiet_when_standard_error_is_no_terminal():
    command = [sys.executable, "-m", "sidestep", "train", "backprop", *QUICK, "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd(), env={
        **__import__("os").environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1",
    })  # fmt: skip
    assert found.stderr == ""
    assert len(found.stdout.strip().splitlines()) == 1


def test_a_line_now_and_then_where_standard_error_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sidestep.cli.bar._SECONDS", 0.0)
    status, out, error = run(capsys, "train", "backprop", *QUICK, "--epochs", "2", "--batch", "256", "--json")
    assert status == 0
    assert len(out.strip().splitlines()) == 1
    number = r"[\d.]+"
    for epoch, step in ((1, 5), (2, 10)):
        line = rf"sidestep: epoch {epoch}/2, step {step} of 10, loss {number}, validation {number}%, 0:00:0\d left"
        assert re.search(line, error), error
    assert "sidestep: evaluating test" in error


def test_lines_are_half_a_minute_apart_and_say_what_is_trained(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("sidestep.cli.bar.time.perf_counter", lambda: clock[0])
    bar = TrainingBar("backprop on digits, seed 1")
    bar.begin(total_steps=400, steps_per_epoch=100, step=100)
    for epoch, now in ((2, 29.0), (3, 61.0), (4, 90.0)):
        clock[0] = now
        bar.epoch(epoch, {"all: loss": 0.5, "rate": 7.0}, None, now)
    told = " ".join(capsys.readouterr().err.split())
    assert told == "sidestep: backprop on digits, seed 1: epoch 3/4, step 300 of 400, loss 0.5, 0:00:30 left"
    for step, now in ((350, 90.5), (351, 91.0), (352, 120.0), (400, 130.0)):  # an epoch may take hours, too
        clock[0] = now
        bar.step(step, 10)
    told = " ".join(capsys.readouterr().err.split())
    assert told == "sidestep: backprop on digits, seed 1: epoch 4/4, step 351 of 400, 28 examples/s, 0:00:18 left"


def test_an_unfinished_run_is_said_to_be_one(capsys, monkeypatch):
    take_step = Loop.take_step

    def interrupted(loop, state, *more):
        take_step(loop, state, *more)
        if state.step == 13:
            signal.raise_signal(signal.SIGINT)

    words = ["train", "backprop", *QUICK, "--epochs", "2", "--out", "a"]
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "take_step", interrupted)
        assert run(capsys, *words)[0] == 130
    numpy.savez("images.npz", images=numpy.arange(128, dtype="uint8").reshape(2, 8, 8) * 2)
    looks = ["eval", "a"], ["predict", "a", "images.npz"]
    for look in looks:
        assert "not finished: step 13 of 20" in " ".join(
            run(capsys, *look)[1].split()
        )  # a title is as wide as its table
    for look in looks:
        assert last_json(run(capsys, *look, "--json")[1])["finished"] is False
    said = " ".join(run(capsys, *looks[1])[1].split())
    assert "2 images, read by forward; not finished: step 13 of 20" in said
    assert "image class score" in said
    assert (
        "scores, which need not say how often they are right: no temperature: it takes 50 validation images and a run "
        "trained to its end"
    ) in said
    record = last_json(run(capsys, *looks[1], "--json")[1])
    assert (record["temperature"], len(record["score"]), "probability" in record) == (None, 2, False)
    assert run(capsys, *words, "--resume")[0] == 0
    for look in looks:
        assert "finished" not in run(capsys, *look)[1]
    assert "image class probability" in " ".join(run(capsys, *looks[1])[1].split())
    Path("a/state.safetensors").unlink()  # the weights alone tell no step, but are written at the end only
    assert last_json(run(capsys, "eval", "a", "--json")[1])["finished"] is True


def test_predictions_say_their_reading_and_warn_of_pixels_in_other_units(capsys):
    assert run(capsys, "train", "backprop", *QUICK, "--out", "a")[0] == 0
    grey = data.load("digits").test.images.numpy()
    numpy.savez("same.npz", images=grey)
    status, out, error = run(capsys, "predict", "a", "same.npz")
    assert (status, error) == (0, "")
    assert "360 images, read by forward" in " ".join(out.split())
    for name, images in {"sixteen.npz": grey // 16, "one.npz": grey // 128}.items():
        numpy.savez(name, images=images)
        status, out, error = run(capsys, "predict", "a", name, "--json")
        assert (status, last_json(out)["reading"]) == (0, "forward")
        trained = data.load("digits").std[0] * 255
        numbers = f"standard deviation of {images.std():.3g}, those trained on {trained:.3g} (uint8, 0 to 255)"
        assert numbers in error, error
        assert "from 0 to 16 times 255 / 16" in error


def test_float_pixels_in_other_units_are_told_too():
    images = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
    task = Task((1, 8, 8), ("a", "b"), (0.5,), (0.3,), "float32")
    assert pixel_scale_warning(task, images) is None
    assert pixel_scale_warning(task, images / 7) is None
    assert "standard deviation of 74.2, those trained on 0.3 (float32)" in pixel_scale_warning(task, images * 255)
    flat = dataclasses.replace(task, std=(1.0,))  # a channel that did not change in training
    assert pixel_scale_warning(flat, images * 255) is None
    assert pixel_scale_warning(task, images[:0]) is None
    assert pixel_scale_warning(task, images * 0) is None  # no change of units makes one colour of it


@pytest.mark.parametrize("how", [["-m", "sidestep"], ["-c", "from sidestep.__main__ import main; main()"]])
def test_a_stop_while_the_library_is_imported_is_one_line(how):
    Path("torch.py").write_text("raise KeyboardInterrupt\n")
    paths = [str(Path.cwd()), str(Path(__file__).parents[2] / "src")]
    found = subprocess.run([sys.executable, *how, "eval", "run"], capture_output=True, text=True, cwd=Path.cwd(), env={
        **os.environ, "PYTHONPATH": os.pathsep.join(paths),
    })  # fmt: skip
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr == "sidestep: stopped before anything was started\n"
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'sidestep = "sidestep.__main__:main"' in project


def test_the_package_has_what_it_names_and_its_modules():
    words = (
        "import sidestep; print(sidestep.errors.InputError.__name__, sidestep.train.__name__, sidestep.align.__name__)"
    )
    words += "; print(hasattr(sidestep, 'trian'), hasattr(sidestep, 'a.b'))"
    words += "; print(all(hasattr(sidestep, name) for name in sidestep.__all__))"
    words = f"import sidestep, sys; print('torch' in sys.modules); {words}"
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, env={
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
    })  # fmt: skip
    assert found.stdout == "False\nInputError train align\nFalse False\nTrue\n"


def test_outputs_never_replace_a_file_unasked(capsys):
    run(capsys, "train", "backprop", *QUICK)
    numpy.savez("images.npz", images=numpy.zeros((2, 8, 8), "uint8"))
    before = Path("images.npz").read_bytes()
    for arguments in (["predict", "runs/backprop-digits-0", "images.npz", "--out", "images.npz"],):
        status, _, error = run(capsys, *arguments)
        assert (status, "--overwrite" in error) == (2, True)
    assert Path("images.npz").read_bytes() == before
    Path("grid.png").write_text("mine")
    assert run(capsys, "data", "show", "digits")[0] == 2
    assert Path("grid.png").read_text() == "mine"
    assert run(capsys, "data", "show", "digits", "--overwrite")[0] == 0


def test_evaluating_on_other_classes_or_other_units_of_pixels_is_refused(capsys):
    run(capsys, "train", "backprop", *QUICK)
    images = numpy.zeros((40, 8, 8), "uint8")
    labels = numpy.arange(40) % 10
    numpy.savez(
        "animals.npz", x_train=images, y_train=labels, x_test=images, y_test=labels, class_names=list("abcdefghij")
    )
    numpy.savez("floats.npz", x_train=images / 255, y_train=labels, x_test=images / 255, y_test=labels)
    for name, words in {"animals.npz": "has the classes a, b", "floats.npz": "trained on uint8 pixels"}.items():
        status, _, error = run(capsys, "eval", "runs/backprop-digits-0", "--data", name)
        assert (status, words in error) == (2, True), error
    numpy.savez("few.npz", x_train=images, y_train=labels % 4, x_test=images, y_test=labels % 4)
    status, _, error = run(capsys, "eval", "runs/backprop-digits-0", "--data", "few.npz")
    assert (status, "has 4 classes" in error) == (2, True), error


def test_a_damaged_test_split_does_not_cost_the_trained_model():
    def damaged():
        raise DataError("a picture that cannot be read")

    digits = dataclasses.replace(data.load("digits"), read_test=damaged)
    with pytest.raises(DataError, match="a picture"):
        train(Backprop(net="mlp", hidden=(8,)), digits, Options(epochs=1, out="a"))
    assert Path("a/model.safetensors").exists()


def test_a_test_split_in_other_units_or_of_another_dtype_is_told_before_training(capsys):
    images, labels = numpy.random.default_rng(0).random((40, 8, 8)), numpy.arange(40) % 2
    own = {"x_train": images, "y_train": labels, "y_test": labels}
    numpy.savez("units.npz", **own, x_test=images * 255)
    status, _, error = run(capsys, "train", "backprop", *QUICK, "--data", "units.npz", "--out", "a")
    assert (status, error.count("the test pixels have a mean of 127")) == (0, 1), error
    numpy.savez("bytes.npz", **own, x_test=(images * 255).astype("uint8"))
    status, _, error = run(capsys, "train", "backprop", *QUICK, "--data", "bytes.npz", "--out", "b")
    assert (status, "those of train torch.float32" in error, Path("b").exists()) == (2, True, False)


def test_the_log_of_another_run_is_told_from_one_that_is_beyond(capsys):
    for name, steps in (("short", "2"), ("long", "5")):
        words = ["--hidden", "16", "16", "--steps", steps, "--out", name]
        assert run(capsys, "train", "noise-step", *words)[0] == 0
    assert run(capsys, "verify", "long", "long")[0] == 0
    status, _, error = run(capsys, "verify", "short", "long")
    assert (status, "short holds 2 steps, and long has taken 5: it is the log of another run" in error) == (2, True), (
        error
    )
    assert "give the run's own log, `sidestep verify long long`" in error
    status, _, error = run(capsys, "verify", "long", "long", "--module", "no.py:make")
    assert (status, "no.py" in error, "log of" in error) == (2, True, False), error


def test_a_folder_that_is_not_there_and_the_beginning_of_a_presets_name(capsys):
    status, _, error = run(capsys, "eval", "runs/nothing")
    assert (status, "runs/nothing is not the folder of a run: there is no such folder" in error) == (2, True), error
    status, _, error = run(capsys, "train", "--preset", "noprop-ct-mnist")
    assert (status, "did you mean noprop-ct-mnist-one-hot?" in error) == (2, True), error


def test_a_test_label_of_no_class_is_refused_before_training(capsys):
    images, labels = numpy.zeros((40, 8, 8), "uint8"), numpy.arange(40) % 10
    seen = labels < 9
    unseen = {"x_train": images[seen], "y_train": labels[seen], "x_test": images, "y_test": labels}
    numpy.savez("unseen.npz", **unseen)
    status, _, error = run(capsys, "train", "backprop", *QUICK, "--data", "unseen.npz", "--out", "a")
    assert (status, Path("a").exists()) == (2, False)
    assert "label 9 (index 9) and 3 more are out of range; give class_names" in error
    kept = [*numpy.flatnonzero(labels < 9), 9]
    numpy.savez("one.npz", **{**unseen, "x_test": images[kept], "y_test": labels[kept]})
    status, _, error = run(capsys, "train", "backprop", *QUICK, "--data", "one.npz", "--out", "a")
    assert "label 9 (index 36) is out of range; give class_names" in error
    numpy.savez("named.npz", **unseen, class_names=list("abcdefghij"))
    status, _, error = run(capsys, "train", "backprop", *QUICK, "--data", "named.npz", "--out", "a")
    assert (status, Path("a/result.json").exists()) == (0, True), error


def test_a_folder_that_cannot_be_made(capsys):
    Path("file").write_text("x")
    status, _, error = run(capsys, "train", "backprop", *QUICK, "--out", "file/run")
    assert (status, "cannot be made" in error) == (2, True), error
