"""Help in groups, the options that few need behind --help-all, and short names."""

import contextlib
import dataclasses
import re

import pytest

from sidestep.cli import COMMANDS, main
from sidestep.cli.described import described
from sidestep.cli.help import ALIASES, RARE, long_names
from sidestep.rules import RULES
from sidestep.training import Options

each_rule = pytest.mark.parametrize("name", RULES)


def shown(capsys, *words):
    with pytest.raises(SystemExit) as leaving:
        main(["train", *words])
    assert leaving.value.code == 0
    return capsys.readouterr().out


def options_in(text):
    return {word.removeprefix("--") for word in re.findall(r"--[a-z][a-z0-9-]+", text)}


@each_rule
def test_the_short_help_is_in_groups_and_leaves_out_what_few_need(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(capsys, name, "--help")
    groups = {part: text.partition(f"\n{part}:\n")[2].partition("\n\n")[0] for part in ("run", "data", "rule")}
    assert {"data", "augment", "module"} <= options_in(groups["data"])
    assert {"epochs", "batch", "seed", "device", "out", "json"} <= options_in(groups["run"])
    everything = {field.name.replace("_", "-") for kind in (RULES[name], Options) for field in dataclasses.fields(kind)}
    rare = {field.replace("_", "-") for field in RULES[name].rare | RARE["Options"]} & everything
    assert not options_in("".join(groups.values())) & rare
    assert everything - rare <= options_in(text)
    assert len(text.splitlines()) <= 65
    assert max(map(len, text.splitlines())) <= 80


def test_the_help_says_what_is_typed_and_no_value_of_python(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in (
        ["train", "noprop-dt"],
        ["predict"],
        ["eval"],
        ["replay"],
        ["bench"],
        ["fit-memory"],
        ["align", "spsa"],
    ):
        with pytest.raises(SystemExit):
            main([*words, "--help-all"])
        text = capsys.readouterr().out
        assert "None" not in text
        assert "[-h]" not in text
        assert text.count("Default:") == 0
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert capsys.readouterr().out.startswith("usage: sidestep predict RUN FILE ... [OPTIONS]\n")


def test_a_default_is_said_once_in_the_words_of_its_option():
    @dataclasses.dataclass
    class Some:
        first: int | None = None
        """So many. Default: 10, or 20 below 0.5. More is better."""
        second: tuple[int, ...] = (3, 4)
        """Widths."""
        third: bool = True
        """Whether."""
        fourth: str | None = None

    found = described(Some, {"fourth": "From elsewhere."})
    said = [(each.option, each.values, each.text, each.default) for each in found]
    assert said == [
        ("--first", "INT", "So many. More is better.", "10, or 20 below 0.5"),
        ("--second", "INT ...", "Widths.", "3 4"),
        ("--third, --no-third", "", "Whether.", "yes"),
        ("--fourth", "TEXT", "From elsewhere.", ""),
    ]


@each_rule
def test_help_all_shows_every_option(name, capsys):
    found = options_in(shown(capsys, name, "--help-all"))
    everything = {field.name.replace("_", "-") for kind in (RULES[name], Options) for field in dataclasses.fields(kind)}
    assert everything <= found


def test_what_the_help_leaves_out_can_be_given_all_the_same(tmp_path, capsys):
    run = tmp_path / "run"
    main(
        [
            "train",
            "noprop-dt",
            "--epochs",
            "0",
            "--blocks",
            "1",
            "--loss",
            "clipped",
            "--largest-weight",
            "2",
            "--out",
            str(run),
        ]
    )
    assert "largest_weight = 2.0" in (run / "config.toml").read_text()


@pytest.mark.parametrize("name", [name for name, kind in RULES.items() if hasattr(kind, "learning_rate")])
def test_lr_is_the_learning_rate(name, tmp_path):
    run = tmp_path / "run"
    main(["train", name, "--epochs", "0", "--lr", "0.0123", "--out", str(run)])
    assert "learning_rate = 0.0123" in (run / "config.toml").read_text()


def test_short_names_stand_for_options_that_there_are():
    everything = {
        f"--{field.name.replace('_', '-')}" for kind in (*RULES.values(), Options) for field in dataclasses.fields(kind)
    }
    assert set(ALIASES.values()) <= everything
    assert not set(ALIASES) & everything
    assert long_names(["--lr=1", "lr", "--out", "--lr"]) == ["--learning-rate=1", "lr", "--out", "--learning-rate"]


def test_the_nearest_option_is_named(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["train", "backprop", "--epoch", "3"])
    assert leaving.value.code == 2
    assert "--epochs" in capsys.readouterr().err


WORDS = ["", *COMMANDS, "data show", "align spsa", "reproduce noprop-table1", "study noprop-blocks"]


@pytest.mark.parametrize("given", WORDS)
def test_every_command_takes_help_all(given, capsys):
    printed = []
    for option in ("--help", "--help-all"):
        with contextlib.suppress(SystemExit):
            main([*given.split(), option])
        printed.append(capsys.readouterr())
    assert options_in(printed[0].out) - {"help-all"} <= options_in(printed[1].out)
    assert "usage" in printed[1].out
    assert not printed[0].err
    assert not printed[1].err
