"""Every command that trains takes the options of training, or says why it does not."""

import dataclasses
import json
import re

import pytest

from sidestep.cli import main
from sidestep.cli.help import RARE
from sidestep.cli.options import DataOptions
from sidestep.cli.training_options import LEFT_OUT
from sidestep.errors import InputError
from sidestep.rules import RULES
from sidestep.training import Options

COMMON = [field.name for kind in (Options, DataOptions) for field in dataclasses.fields(kind)]
WORDS = {  # what is typed before the options -> the name by which LEFT_OUT has the command
    "train backprop": "train",
    "align spsa": "align",
    "bench": "bench",
    "study noprop-blocks": "study",
    "fit-memory": "fit-memory",
    "reproduce noprop-table1": "reproduce noprop-table1",
    "reproduce noprop-table2": "reproduce noprop-table2",
}
each_command = pytest.mark.parametrize("words", WORDS)


def help_of(words, capsys, word="--help-all"):
    with pytest.raises(SystemExit) as leaving:
        main([*words.split(), word])
    assert leaving.value.code == 0
    return capsys.readouterr().out


@each_command
def test_a_command_takes_every_option_of_training_or_says_why_not(words, capsys):
    text = help_of(words, capsys)
    shown = set(re.findall(r"^  (?:--[a-z-]+, )?--([a-z-]+)", text, re.MULTILINE))
    left_out = LEFT_OUT.get(WORDS[words], {})
    for name in COMMON:
        taken = name.replace("_", "-") in shown
        assert taken != (name in left_out), f"{words}: {name} is {'taken and left out' if taken else 'missing'}"


def test_what_is_left_out_is_an_option_with_a_reason():
    assert all("exchange_share" in reasons for reasons in LEFT_OUT.values())  # steps are divided by train alone
    assert set(LEFT_OUT) <= set(WORDS.values())
    for reasons in LEFT_OUT.values():
        assert set(reasons) <= set(COMMON)
        assert all(reason and not reason.endswith(".") for reason in reasons.values())


@each_command
def test_the_options_stand_in_groups(words, capsys):
    text = help_of(words, capsys, "--help")
    assert {"run:", "data:"} <= set(text.splitlines())
    assert "\noptions:" not in text


@pytest.mark.parametrize("command", LEFT_OUT)
def test_an_option_that_is_left_out_is_refused_with_the_reason(command, capsys):
    words = next(words for words, name in WORDS.items() if name == command)
    name, reason = next(iter(LEFT_OUT[command].items()))
    with pytest.raises(SystemExit) as leaving:
        main([*words.split(), f"--{name.replace('_', '-')}", "3"])
    assert leaving.value.code == 2
    assert reason in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train noise-step --estimator localprobes", "did you mean local-probes?"),
        ("train noprop-dt --solver noisestep", "did you mean noise-step?"),
        ("train backprop --hidden 64,32", "--hidden 64 32"),
        ("bench --rules local-los --epochs 1", "did you mean local-loss?"),
    ],
)
def test_a_value_that_there_is_not_has_the_nearest_named(words, said, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(words.split())
    assert leaving.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_python_names_the_nearest_value_and_rule():
    with pytest.raises(InputError, match=r"solver must be one of .* got 'noisestep'; did you mean noise-step\?"):
        RULES["noprop-dt"](solver="noisestep")
    with pytest.raises(InputError, match=r"norm must be one of [a-z, ]*, got 'zzz'$"):
        RULES["backprop"](norm="zzz")
    with pytest.raises(InputError, match=r"did you mean local-loss\?"):
        pytest.importorskip("sidestep.integrations.sklearn_data").rule_of("local-los")


def test_a_study_of_so_many_steps_is_asked_for_again_by_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "study",
        "noprop-blocks",
        "--blocks",
        "1",
        "--steps",
        "2",
        "--seeds",
        "1",
        "--seed",
        "3",
        "--device",
        "cpu",
        "--out",
        "s",
        "--json",
    ]
    main(words)
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["asked"]["steps"], record["steps"], record["seeds"]) == (2, 2, [3])
    assert "steps: 2" in (tmp_path / "s" / "study.md").read_text()
    main(words)  # its runs are there
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["mean"] == record["mean"]


def test_the_smallest_budget_of_a_study_is_a_look_at_whether_everything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["study", "noprop-blocks", "--blocks", "1", "--seeds", "1", "--device", "cpu", "--out", "s", "--json"]
    main([*words, "--budget", "tiny"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["asked"]["budget"], record["steps"]) == ("tiny", 5)
    with pytest.raises(SystemExit) as leaving:
        main([*words, "--steps", "5"])  # other images: the results are not mixed
    assert leaving.value.code == 2
    assert "other options" in capsys.readouterr().err
    main([*words, "--budget", "tiny", "--steps", "2", "--overwrite", "--out", "t"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 2


def test_an_option_that_few_need_stays_out_of_the_short_help(capsys):
    assert "precision" in RARE["Options"]
    assert "--precision" not in help_of("fit-memory", capsys, "--help")
    assert "--precision" in help_of("fit-memory", capsys)
