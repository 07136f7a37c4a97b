"""Sentences that users met and could do nothing with, as they read now."""

import re

import pytest
from PIL import Image
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
