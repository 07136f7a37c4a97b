"""`sidestep predict`: tables, several files, patterns, standard input, what cannot be read, what is written."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidestep.cli import main, predict_output
from sidestep.data import rows
from sidestep.data.rows import Rows
from sidestep.errors import InputError
from sidestep.noise import Noise

pytestmark = pytest.mark.filterwarnings("ignore::sidestep.notices.DataNotice")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on pictures, dark and bright ones, and two on a table: of classes and of values."""
    folder = tmp_path_factory.mktemp("predict")
    for kind, low in (("dark", 0), ("bright", 160)):
        (folder / "photos" / kind).mkdir(parents=True)
        for number in range(12):
            pixels = low + Noise(number).normal(64).abs().clamp(max=2).mul(40).view(8, 8).to(int).numpy()
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / kind / f"{number}.png")
    drawn = Noise(2).normal(60).tolist()
    rows = [f"{x:.3f},{['no', 'yes'][row % 2] if row % 5 else ''},{2 * x:.3f},{'up' if x > 0 else 'down'}"
            for row, x in enumerate(drawn)]  # fmt: skip
    (folder / "rows.csv").write_text("\n".join(["x,seen,y,way", *rows]) + "\n")
    train = ["train", "backprop", "--net", "mlp", "--hidden", "8", "--epochs", "60", "--lr", "0.01"]
    main([*train, "--data", str(folder / "photos"), "--image-size", "8", "--out", str(folder / "pictures")])
    for target, name in (("way", "classes"), ("y", "values")):
        main([*train, "--data", str(folder / "rows.csv"), "--target", target, "--out", str(folder / name)])
    return folder


def predict(capsys, *words):
    capsys.readouterr()
    status: object = 0
    try:
        main(["predict", *map(str, words)])
    except SystemExit as leaving:
        status = leaving.code
    said = capsys.readouterr()
    return status, said.out, " ".join(said.err.split())


def test_a_table_without_its_target_is_predicted(made, tmp_path, capsys):
    rows, out = tmp_path / "new.csv", tmp_path / "answers.csv"
    rows.write_text("seen,y,x\nyes,4,2\n,-4,-2\nnever,3,1.5\n")
    status, said, error = predict(capsys, made / "classes", rows, "--out", out)
    assert status == 0
    assert "3 rows, read by" in said
    assert "column 'seen' has 'never' in 1 row, which no train row had" in error
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert lines[0][:2] == ["index", "class"]
    assert [line[1] for line in lines[1:]] == ["up", "down", "up"]
    assert lines[3][3] == f"{rows}[2]"
    status, said, error = predict(capsys, made / "values", rows, "--json")
    assert status == 2
    assert "lacks the column 'way' of the training" in error
    rows.write_text("x,seen,way\n1,yes,up\n-1,no,down\n")
    status, said, _ = predict(capsys, made / "values", rows, "--out", out.with_suffix(".ndjson"), "--json")
    values = json.loads(said)["value"]
    assert values[0] > 1 > -1 > values[1]
    written = [json.loads(line) for line in out.with_suffix(".ndjson").read_text().splitlines()]
    assert [each["value"] for each in written] == values
    assert predict(capsys, made / "classes", made / "photos")[0] == 2


def test_a_file_that_is_no_picture_does_not_lose_the_others(made, tmp_path, capsys):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "b.jpg").write_bytes(b"no picture")
    whole = (made / "photos" / "bright" / "0.png").read_bytes()
    (tmp_path / "odd" / "a.png").write_bytes(whole)
    (tmp_path / "odd" / "c.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "labels.ndjson"
    status, said, error = predict(capsys, made / "pictures", tmp_path / "odd", made / "photos/dark/1.png", "--out", out)
    assert status == 1
    assert "2 images" in said
    for name in ("b.jpg: not an image", "c.png: not an image"):
        assert error.count(f"left out: {tmp_path}/odd/{name}") == 1
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(Path(each["file"]).name, each["class"]) for each in written] == [("a.png", "bright"), ("1.png", "dark")]
    for each in written:
        shares = each["scores"]
        assert max(shares, key=shares.get) == each["class"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    status, _, error = predict(capsys, made / "pictures", tmp_path / "odd" / "b.jpg")
    assert (status, "b.jpg: not an image" in error) == (2, True)


def test_a_pattern_in_quotes_and_standard_input(made, capsys, monkeypatch):
    names = [f"{made}/photos/dark/*1.png", made / "photos" / "bright" / "2.png"]
    status, said, _ = predict(capsys, made / "pictures", *names, "--json")
    found = json.loads(said)
    assert [Path(name).name for name in found["files"]] == ["1.png", "11.png", "2.png"]
    assert found["classes"] == ["dark", "dark", "bright"]
    status, _, error = predict(capsys, made / "pictures", f"{made}/photos/*.gif")
    assert (status, "no file fits this pattern" in error) == (2, True)
    for run, content, wanted in (
        ("pictures", (made / "photos" / "bright" / "3.png").read_bytes(), ["bright"]),
        ("classes", b"x,y,seen\n-2,-4,never\n", ["down"]),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        _, said, notices = predict(capsys, made / run, "-", "--json")
        found = json.loads(said)
        assert ("stdin: column 'seen' has 'never'" in notices, "standard-input" in notices) == (run == "classes", False)
        assert found["classes"] == wanted
        assert found["files"][0].startswith("stdin")
    for content, message in ((b"", "is empty"), (b"x", "stdin: not an image")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        status, _, error = predict(capsys, made / "pictures", "-")
        assert (status, message in error) == (2, True), error


@pytest.mark.parametrize("count", [1, 1234])
def test_images_of_a_mapped_array_are_predicted_block_by_block_with_the_bits_of_all_at_once(
    made, tmp_path, capsys, monkeypatch, count
):
    pixels = Noise(3).integers(count * 64, 256).view(count, 8, 8).numpy().astype(np.uint8)
    file, run = tmp_path / "images.npy", made / "pictures"
    np.save(file, pixels)
    np.savez(tmp_path / "images.npz", images=pixels)
    read, most = Rows._read, []

    def counted(of, part, where):
        most.append(len(part))
        return read(of, part, where)

    monkeypatch.setattr(Rows, "_read", counted)
    monkeypatch.setattr(rows, "_BLOCK", 200 * 64)
    for suffix in ("csv", "ndjson", "npz"):
        one, other = tmp_path / f"mapped.{suffix}", tmp_path / f"whole.{suffix}"
        assert predict(capsys, run, file, "--out", one)[0] == 0
        assert 0 < max(most) <= 500
        assert predict(capsys, run, tmp_path / "images.npz", "--out", other)[0] == 0
        if suffix == "npz":
            with np.load(one) as mapped, np.load(other) as whole:
                assert all((mapped[name] == whole[name]).all() for name in ("labels", "scores", "class_names"))
                assert mapped["files"].tolist() == [f"{file}[{i}]" for i in range(count)]
        else:
            assert one.read_text() == other.read_text().replace("images.npz[", "images.npy[")
            assert len(one.read_text().splitlines()) == count + (suffix == "csv")
    found, shown = predict(capsys, run, file, "--json"), predict(capsys, run, file, "--most", "3")[1]
    assert json.loads(found[1])["files"][-1] == f"{file}[{count - 1}]"
    assert len(json.loads(found[1])["labels"]) == count
    assert f"{file}[{min(count, 3) - 1}]" in "".join(shown.split())


def test_a_prediction_that_fails_half_way_leaves_the_earlier_file(made, tmp_path, capsys, monkeypatch):
    file, out = tmp_path / "images.npy", tmp_path / "answers.csv"
    np.save(file, np.zeros((1200, 8, 8), np.uint8))
    out.write_text("earlier")
    text, parts = predict_output.Answers.text, []

    def failing(part, suffix):
        parts.append(part.first)
        if len(parts) == 2:
            raise InputError("stopped here")
        return text(part, suffix)

    monkeypatch.setattr(predict_output.Answers, "text", failing)
    status, _, error = predict(capsys, made / "pictures", file, "--out", out, "--overwrite")
    assert (status, parts, "stopped here" in error) == (2, [0, 500], True)
    assert out.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "images.npy"]


def test_what_is_missing_is_called_run_and_file(made, tmp_path, capsys):
    assert "RUN" in predict(capsys)[2]
    np.save(tmp_path / "large.npy", np.zeros((28, 28), np.uint8))
    _, _, error = predict(capsys, made / "pictures", tmp_path / "large.npy")
    assert "an array of shape (28, 28), but the net was trained on (1, 8, 8)" in error
