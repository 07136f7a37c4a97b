"""A run knows its data again: by an absolute path, and by what they are, so that no other data are taken for them."""

import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidestep import Options, align, data, load_run, train
from sidestep.cli import main
from sidestep.errors import InputError
from sidestep.rules import Backprop
from sidestep.training.compatibility import check_test, difference, in_saved_units
from sidestep.training.folder import RunFolder

QUICK = Backprop(net="mlp", hidden=(8,))
TRAIN = ["train", "backprop", "--net", "mlp", "--hidden", "8", "--epochs", "1", "--out", "run"]


def write(path: Path, seed: int = 0, classes: int = 3) -> Path:
    rng, labels = np.random.default_rng(seed), np.arange(120) % classes
    images = rng.integers(0, 200, (120, 6, 6), dtype=np.uint8) + 20 * labels[:, None, None].astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, x_train=images[:100], y_train=labels[:100], x_test=images[100:], y_test=labels[100:])
    return path


def cli(capsys, *arguments: str) -> tuple[int, str, str]:
    status = 0
    try:
        main(list(arguments))
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    out, error = capsys.readouterr()
    return status, out, " ".join(error.split())


@pytest.fixture
def trained(tmp_path, monkeypatch, capsys) -> Path:
    """The folder of a run on a/data.npz, started in a; b/data.npz is other data."""
    write(tmp_path / "a/data.npz")
    write(tmp_path / "b/data.npz", seed=1)
    monkeypatch.chdir(tmp_path / "a")
    monkeypatch.delenv("SIDESTEP_DATA", raising=False)
    assert cli(capsys, *TRAIN, "--data", "data.npz")[0] == 0
    return tmp_path / "a/run"


def test_the_data_are_found_from_any_folder(trained, monkeypatch, capsys):
    here = cli(capsys, "eval", "run", "--json")[1]
    monkeypatch.chdir(trained.parents[1] / "b")
    status, out, error = cli(capsys, "eval", "../a/run", "--json")
    assert (status, error) == (0, "")
    assert out.partition('"run"')[0] == here.partition('"run"')[0]


@pytest.mark.parametrize("command", [["eval", "run"], ["eval", "run", "--split", "validation"], ["align", "run"]])
def test_other_data_in_their_place_are_refused(trained, capsys, command):
    shutil.copy("../b/data.npz", "data.npz")
    status, out, error = cli(capsys, *command)
    assert (status, out) == (2, "")
    assert "is not what run was trained on (train pixels with a mean of" in error
    assert "--data" in error


@pytest.mark.parametrize("command", ["eval", "align"])
def test_data_that_are_gone_are_said_where_they_were_and_can_be_named(trained, capsys, command):
    shutil.move("data.npz", "moved.npz")
    status, _, error = cli(capsys, command, "run")
    assert status == 2
    for words in (f"{trained.parent / 'data.npz'}: no such file", "run/config.toml", "--data"):
        assert words in error
    status, _, error = cli(capsys, command, "run", "--data", "moved.npz", "--json")
    assert (status, error) == (0, "")


def test_other_data_may_be_named_for_a_test_but_not_taken_for_those_that_were_held_out(trained, capsys):
    assert cli(capsys, "eval", "run", "--data", "../b/data.npz")[0] == 0
    status, _, error = cli(capsys, "eval", "run", "--data", "../b/data.npz", "--split", "validation")
    assert (status, "some validation images may have been trained on" in error) == (0, True)
    status, _, error = cli(capsys, "align", "run", "--data", "../b/data.npz")
    assert (status, "is not what run was trained on" in error) == (2, True)


def test_a_run_goes_on_with_its_data_moved_and_not_with_others(trained, capsys):
    shutil.move("data.npz", "data2.npz")
    on = ["--epochs", "2", "--resume", "--data"]
    status, _, error = cli(capsys, *TRAIN, *on, "data2.npz")
    assert status == 0, error
    assert RunFolder(trained).config()["data"]["name"] == str(trained.parent / "data2.npz")
    status, _, error = cli(capsys, *TRAIN, *on, "../b/data.npz")
    assert (status, "was started otherwise" in error) == (2, True)


def test_every_way_in_which_data_differ_is_seen(tmp_path):
    found = data.load(write(tmp_path / "data.npz"))
    train(QUICK, found, Options(epochs=1, out=tmp_path / "run"))
    config = RunFolder(tmp_path / "run").config()
    assert difference(config, found) is None
    assert difference(config, data.load(write(tmp_path / "again.npz"))) is None
    labels = found.train.labels.flip(0)
    assert "other labels" in difference(config, replace(found, train=data.Split(found.train.images, labels)))
    held = found.validation
    assert "labels" in difference(config, replace(found, validation=data.Split(held.images, (held.labels + 1) % 3)))
    assert "mean" in difference(config, replace(found, mean=(found.mean[0] + 1e-5,)))
    assert "standard deviation" in difference(config, replace(found, std=(found.std[0] * 1.001,)))
    assert "80 train images, not 90" in difference(config, data.load(tmp_path / "data.npz", validation=0.2))


def test_of_a_table_rows_and_inputs_are_told(tmp_path):
    table, labels = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    found = data.from_arrays(table, labels, table[:9], labels[:9])
    train(QUICK, found, Options(epochs=1, out=tmp_path / "run"))
    config = RunFolder(tmp_path / "run").config()
    fewer = data.from_arrays(table[:40], labels[:40], table[:9], labels[:9])
    assert difference(config, fewer) == "36 train rows, not 54"
    moved = data.from_arrays(table + np.float32(1), labels, table[:9], labels[:9])
    assert difference(config, moved).startswith("train inputs with a mean of")
    swapped = replace(found, train=data.Split(found.train.images.flip(1), found.train.labels))
    assert difference(config, swapped) == "other inputs, or the same in another order"
    with pytest.raises(InputError, match="the test rows are not those that"):
        check_test(tmp_path / "run", data.Split(found.test.images + 1, found.test.labels))


def test_sums_in_another_order_are_the_same_data_and_the_run_keeps_its_own(tmp_path):
    found = data.load(write(tmp_path / "data.npz"))
    train(QUICK, found, Options(epochs=1, out=tmp_path / "run"))
    other = replace(found, mean=(math.nextafter(found.mean[0], 1),), std=(math.nextafter(found.std[0], 1),))
    assert difference(RunFolder(tmp_path / "run").config(), other) is None
    assert in_saved_units(RunFolder(tmp_path / "run"), other).mean == found.mean
    run = train(QUICK, other, Options(epochs=2, out=tmp_path / "run", resume=True))
    assert (run.task.mean, run.task.std) == (found.mean, found.std)


def test_a_set_loaded_in_python_is_found_again_as_it_was_cut(tmp_path, capsys, monkeypatch):
    write(tmp_path / "a/data.npz")
    monkeypatch.chdir(tmp_path)
    run = train(QUICK, data.load("a/data.npz", validation=0.25), Options(epochs=1, out="run"))
    assert RunFolder(run.folder).config()["data"]["name"] == str(tmp_path / "a/data.npz")
    monkeypatch.chdir(tmp_path / "a")
    for split in ("test", "validation"):
        assert cli(capsys, "eval", "../run", "--split", split)[0] == 0


@pytest.mark.parametrize("name", ["arrays", "digits", "mine"])
def test_arrays_in_memory_are_never_taken_for_a_set_of_their_name(tmp_path, capsys, name):
    digits = data.load("digits")
    arrays = data.from_arrays(digits.train.images, digits.train.labels, name=name)
    train(QUICK, arrays, Options(epochs=1, out=tmp_path / "run"))
    status, _, error = cli(capsys, "eval", str(tmp_path / "run"))
    assert (status, "was trained on arrays in memory" in error) == (2, True), error
    found = align(load_run(tmp_path / "run"), arrays, estimates=1)
    assert found.whole.cosine == pytest.approx(1, abs=1e-3)
    with pytest.raises(InputError, match="is not what"):
        align(load_run(tmp_path / "run"), digits, estimates=1)


def test_one_changed_pixel_and_another_order_make_other_data(tmp_path):
    found = data.load(write(tmp_path / "data.npz"))
    run = train(QUICK, found, Options(epochs=1, out=str(tmp_path / "run")))
    config = RunFolder(run.folder).config()
    assert difference(config, found) is None
    changed = found.train.images.clone()
    changed[0, 0, 0, 0] ^= 1
    assert "pixels" in difference(config, replace(found, train=data.Split(changed, found.train.labels)))
    order = found.train.labels.argsort(stable=True)
    swapped = found.train.images.clone()
    swapped[order[[0, 1]]] = swapped[order[[1, 0]]]  # of one class: the labels and all sums are the same
    other = replace(found, train=data.Split(swapped, found.train.labels))
    assert "pixels, or the same in another order" in difference(config, other)
    with pytest.raises(InputError, match=r"was started otherwise \(data\.pixels"):
        train(QUICK, other, Options(epochs=2, out=str(tmp_path / "run"), resume=True))
    older = {**config, "data": {key: value for key, value in config["data"].items() if key != "pixels"}}
    assert difference(older, other) is None  # of a run from before there was a digest nothing can be said


def test_pictures_of_another_folder_are_all_evaluated_on_and_those_of_the_run_are_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for root, add in (("mine", 0), ("other", 3)):
        for label, grey in (("a", 20), ("b", 200)):
            Path(root, label).mkdir(parents=True)
            for number in range(10):
                pixels = np.full((4, 4), grey + number + add, np.uint8)
                pixels[0, number % 4] = 128
                Image.fromarray(pixels).save(f"{root}/{label}/{number}.png")
    assert cli(capsys, *TRAIN, "--data", "mine")[0] == 0
    shutil.copytree("mine", "moved")
    for name, images, word in (("mine", 4, False), ("moved", 4, False), ("other", 20, True)):
        status, out, error = cli(capsys, "eval", "run", "--data", name, "--json")
        assert (status, json.loads(out)["images"]) == (0, images)
        assert ("all its 20 images are evaluated on" in error) is word
    shutil.copytree("other", "split/test")
    shutil.copytree("mine", "split/train")
    assert json.loads(cli(capsys, "eval", "run", "--data", "split", "--json")[1])["images"] == 20  # its test/
    assert json.loads(cli(capsys, "eval", "run", "--data", "other", "--split", "train", "--json")[1])["images"] == 14


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_predictions_and_evaluations_in_other_units_are_told_in_python_too(tmp_path, dtype):
    found = data.load(write(tmp_path / "data.npz"))
    images = found.train.images.numpy().astype(dtype)
    run = train(QUICK, data.from_arrays(images, found.train.labels), Options(epochs=1))
    other = (images // 64 if dtype == np.uint8 else images / 255).astype(dtype)
    with pytest.warns(data.DataNotice, match="images to predict: the pixels have a standard deviation of"):
        run.predict(other)
    with pytest.warns(data.DataNotice, match="images to evaluate: the pixels have a standard deviation of"):
        run.evaluate(data.from_arrays(other, found.train.labels, validation=0).train)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.predict(images)


def test_other_test_images_at_the_place_of_the_run_s_are_refused(trained, capsys):
    arrays = dict(np.load("data.npz"))
    arrays["x_test"][0] ^= 1
    np.savez("data.npz", **arrays)
    status, out, error = cli(capsys, "eval", "run")
    assert (status, out) == (2, "")
    assert "the test images are not those that run was evaluated on at its end" in error
    for more in (["--data", "data.npz"], ["--split", "validation"]):  # what is named is meant
        assert cli(capsys, "eval", "run", *more)[0] == 0
