"""Sentences that users met and could do nothing with, as they read now."""

import re
import string

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len
from torch import nn

from sidestep import Options, data, rules, train
from sidestep.cli import main
from sidestep.cli.output import show_table
from sidestep.errors import InputError
from sidestep.wording import suggestion


def test_a_sequential_with_one_part_is_told_to_split_it():
    def one_part():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    with pytest.raises(InputError, match=r"your nn.Sequential has 1 part with weights: split it, or take a rule"):
        train(rules.LocalLoss(), data.load("digits"), Options(epochs=0), module=one_part)


def test_a_title_stands_on_one_line_above_a_narrow_table(capsys):
    title = "a title that is a good deal longer than the table below it"
    show_table(title, ["a"], [["1"]])
    assert capsys.readouterr().out.splitlines()[0] == title


def test_a_name_is_not_broken_by_many_columns(capsys):
    show_table("", ["rule", *map(str, range(40))], [["back-propagation on the net", *["123,456"] * 40]])
    assert "back-propagation " in capsys.readouterr().out


def test_a_table_too_wide_for_a_terminal_goes_on_below(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    columns = ["rule", "accuracy", "seconds", "x", "memory", "x"]
    show_table("", columns, [["spsa", "95.12 (0.31)", "12.5", "1.2", "312 MiB", "0.55"]])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert [line.split() for line in lines] == [
        ["rule", "accuracy", "seconds", "x"], ["spsa", "95.12", "(0.31)", "12.5", "1.2"], [],
        ["rule", "memory", "x"], ["spsa", "312", "MiB", "0.55"],
    ]  # fmt: skip
    show_table("", ["rule", "what it is"], [["spsa", "many words " * 9]])
    assert capsys.readouterr().out.count("rule") == 1  # words are broken between them, and stay beside their name


def test_a_family_s_name_means_its_first_rule():
    assert suggestion("noprop", rules.RULES, "there are").startswith("did you mean noprop-dt?")


def test_one_image_is_one_image(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["train", "backprop", "--net", "linear", "--epochs", "3", "--patience", "1", "--lr", "1e-9", "--out", "run"])
    out = capsys.readouterr().out
    kept, steps = map(
        int, re.search(r"kept: the weights of step (\d+) of (\d+), by the validation score", out).groups()
    )
    assert steps == 2 * kept  # the second epoch was no better
    Image.new("L", (8, 8)).save("one.png")
    main(["predict", "run", "one.png"])
    assert "1 image, read by" in capsys.readouterr().out


def test_the_rows_of_a_table_are_no_images():
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    table = data.from_arrays(values, np.arange(20) % 2, values, np.arange(20) % 2)
    run = train(rules.LocalLoss(hidden=(4,)), table, Options(epochs=1, batch=6))
    assert "it takes 50 validation rows and" in run.uncalibrated()
    with pytest.raises(InputError, match="takes 50 validation rows or more, got 2"):
        run.recalibrated(table.validation)
    with pytest.raises(InputError, match="there are no rows to evaluate"):
        run.evaluate(table.test.part(slice(0, 0)))
    alone = data.from_arrays(values, np.arange(20) % 2, validation=0)
    with pytest.raises(InputError, match="patience = 1 needs rows that"):
        train(rules.LocalLoss(hidden=(4,)), alone, Options(epochs=1, patience=1))


@pytest.mark.parametrize("width", [20, 24, 30, 40, 80, 200])
@pytest.mark.parametrize("count", [2, 3, 9])
def test_no_letter_of_a_table_is_lost_however_narrow_it_is(capsys, monkeypatch, width, count):
    monkeypatch.setattr("sidestep.cli.output._WIDTH", width)
    letters = string.ascii_lowercase[:count]  # a column has a letter of its own, so that none stands for another
    columns = [
        [letter * 17, f"{letter * 11} {letter * 9} {letter}", "\u4e00" * 3 if place else letter]
        for place, letter in enumerate(letters)
    ]
    first, *rows = map(list, zip(*columns, strict=True))
    show_table("", first, rows)
    lines = capsys.readouterr().out.splitlines()
    shown, given = "".join(lines), "".join(map("".join, columns))
    assert max(map(cell_len, lines)) <= width
    assert [letter for letter in letters if shown.count(letter) < given.count(letter)] == []
    assert shown.count("\u4e00") == 3 * (count - 1)
