"""Pictures on the command line: read at predict and eval as in training, and folders in which runs lie."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidestep import data
from sidestep.cli import main

RNG = np.random.default_rng(3)
QUICK = ("--net", "mlp", "--hidden", "8", "--epochs", "1")


def photographs(root: Path, count: int = 8, shape: tuple[int, ...] = (20, 30, 3)) -> Path:
    for kind, value in (("cat", 60), ("dog", 180)):
        (root / kind).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(RNG.normal(value, 30, shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{number}.png")
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = 0
    try:
        main(arguments)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_photograph_is_stretched_as_in_training(capsys: pytest.CaptureFixture[str]) -> None:
    photographs(Path("photos"))
    photographs(Path("more"), 3, (17, 40, 3))
    train = ("train", "backprop", *QUICK, "--data", "photos", "--image-size", "8", "--out", "run", "--json")
    assert run(capsys, *train)[0] == 0
    loaded = np.concatenate([np.asarray(split.images) for split in _splits(data.load("photos", size=8))])
    status, out, _ = run(capsys, "predict", "run", "photos", "more/dog", "more/cat/0.png", "--json", "--out", "a.csv")
    assert status == 0
    found = json.loads(out)
    assert found["files"] == [
        *(f"photos/{kind}/{number}.png" for kind in ("cat", "dog") for number in range(8)),
        *(f"more/dog/{number}.png" for number in range(3)),
        "more/cat/0.png",
    ]
    with Path("a.csv").open() as file:
        assert [row["file"] for row in csv.DictReader(file)] == found["files"]
    # the same pixels as in training
    form = data.PictureForm(3, size=(8, 8))
    again, _ = data.read_named_images([Path("photos")], (3, 8, 8), form)
    assert {image.tobytes() for image in loaded} == {image.tobytes() for image in again.numpy()}
    status, out, _ = run(capsys, "eval", "run", "--data", "more", "--split", "train", "--json")
    assert (status, json.loads(out)["images"]) == (0, 4)


def _splits(found: data.DataSet) -> tuple[data.Split, ...]:
    return found.train, found.validation, found.test


def test_a_folder_is_read_in_the_colours_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    photographs(Path("photos"), shape=(8, 8, 3))
    photographs(Path("grey"), shape=(8, 8))
    for name, other in (("photos", "grey"), ("grey", "photos")):
        assert run(capsys, "train", "backprop", *QUICK, "--data", name, "--out", f"run-{name}")[0] == 0
        assert run(capsys, "eval", f"run-{name}", "--data", other)[0] == 0
        status, _, error = run(capsys, "predict", f"run-{name}", other)
        assert status == 0
        assert ("16 of 16 images have colour, which is turned to grey" in " ".join(error.split())) == (name == "grey")


def test_sixteen_bits_are_kept_from_training_to_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, values in (("cat", (20, 30)), ("dog", (220, 230))):  # of 65,535: all of them 0 or 1 in eight bits
        (Path("deep") / kind).mkdir(parents=True)
        for number in range(16):
            pixels = RNG.integers(*values, (8, 8)).astype(np.uint16)
            Image.fromarray(pixels).save(Path("deep") / kind / f"{number}.png")
    assert run(capsys, "train", "backprop", *QUICK[:4], "--epochs", "20", "--data", "deep", "--out", "run")[0] == 0
    status, out, _ = run(capsys, "predict", "run", "deep", "--json")
    assert (status, json.loads(out)["classes"]) == (0, ["cat"] * 16 + ["dog"] * 16)


def test_a_picture_of_another_size_is_named_with_its_shape(capsys: pytest.CaptureFixture[str]) -> None:
    photographs(Path("photos"))
    Image.new("RGB", (64, 48)).save("large.jpg")
    assert run(capsys, "train", "backprop", *QUICK, "--data", "photos", "--out", "run")[0] == 0
    status, _, error = run(capsys, "predict", "run", "large.jpg")
    assert status == 2
    assert "large.jpg: the picture has shape (3, 48, 64); the net was trained on (3, 20, 30)" in " ".join(error.split())
    np.save("large.npy", np.zeros((48, 64, 3), np.uint8))
    status, _, error = run(capsys, "predict", "run", "large.npy")
    assert status == 2
    assert "an array of shape (48, 64, 3)" in error


def test_a_run_of_python_stretches_too(capsys: pytest.CaptureFixture[str]) -> None:
    from sidestep import Options, rules, train

    photographs(Path("photos"))
    train(rules.Backprop(net="mlp", hidden=(8,)), data.load("photos", size=8), Options(epochs=1, out="run"))
    assert run(capsys, "predict", "run", "photos/cat/0.png")[0] == 0


def test_training_within_the_folder_of_pictures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    photographs(Path("pets"), shape=(8, 8))
    monkeypatch.chdir(here / "pets")
    train = ("train", "backprop", *QUICK, "--data", ".")
    assert run(capsys, *train)[0] == 0
    assert [path.name for path in Path("runs").iterdir()] == ["backprop-pets-0"]
    status, _, error = run(capsys, "eval", "runs/backprop-pets-0")
    assert (status, "runs is skipped" in error) == (0, True)
    assert run(capsys, *train, "--seed", "1")[0] == 0
    assert run(capsys, *train[:-3], "2", "--data", ".", "--resume")[0] == 0
    for out in (".", "cat/run", "cat", "a/b/c/d"):
        status, _, error = run(capsys, *train, "--out", out)
        assert (status, "lies among the images" in error) == (2, True), out
    assert not Path("cat/run").exists()


def test_predict_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    photographs(Path("photos"), shape=(8, 8))
    assert run(capsys, "train", "backprop", *QUICK, "--data", "photos", "--out", "run")[0] == 0
    Path("empty").mkdir()
    Path("bad").mkdir()
    for number in range(12):
        (Path("bad") / f"{number}.png").write_bytes(b"x")
    for files, message in (([], "name the images"), (["empty"], "no pictures"), (["bad"], "12 files: bad/0.png")):
        status, _, error = run(capsys, "predict", "run", *files)
        assert (status, message in error) == (2, True), error
    assert "and 2 more" in " ".join(error.split())
