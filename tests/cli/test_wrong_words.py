"""What is given in the wrong place or form is answered in a sentence that says so."""

import pytest
from torch import nn

from sidestep import attach, rules
from sidestep.cli import main
from sidestep.cli.misread import sentences
from sidestep.errors import InputError
from sidestep.noise import Noise


@pytest.mark.parametrize("command", ["predict", "export"])
def test_a_run_and_a_file_that_are_swapped_are_told(command, tmp_path, capsys):
    main(["train", "backprop", "--net", "linear", "--epochs", "0", "--out", str(tmp_path / "run")])
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main([command, str(tmp_path / "model.onnx"), str(tmp_path / "run")])
    said = " ".join(capsys.readouterr().err.split())
    assert (leaving.value.code, "look swapped" in said) == (2, True)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("rule", [rules.SPSA(), rules.Backprop()])
def test_backward_inside_the_function_is_told(rule):
    model, inputs = nn.Linear(3, 2), Noise(0).normal(12).view(4, 3)
    step = attach(model, rule)

    def loss():
        found = model(inputs).square().mean()
        found.backward()
        return found

    with pytest.raises(InputError, match=r"calls no backward\(\)"):
        step(loss)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train spsa --lr abc", "--lr takes a number, got 'abc': give, for example, --lr 0.1"),
        ("train spsa --seed=1.5", "--seed takes a whole number, got '1.5': give, for example, --seed 0"),
        ("train spsa --out", "--out takes a path, got nothing: give, for example, --out runs/a"),
        ("train spsa --batch-size --epochs 3", "--batch-size takes a whole number, got nothing: give, for example, "
         "--batch-size 128"),
        ("train backprop --hidden 64,32", "--hidden takes whole numbers, got '64,32': several stand with spaces "
         "between them: --hidden 64 32"),
        ("train noprop-dt --solver nois-step", "--solver takes back-propagation or noise-step, got 'nois-step': "
         "did you mean noise-step?"),
        ("train spsa --lrr 1", "sidestep train spsa takes no --lrr: did you mean --lr?"),
        ("train spsa --zzzz 1", "sidestep train spsa takes no --zzzz: `sidestep train spsa --help-all` lists its "
         "options"),
        ("train noprop-dt --grid 3", "sidestep train noprop-dt takes no --grid: it is an option of noprop-ct, "
         "noprop-fm"),
        ("predict a b --epochs 3", "sidestep predict takes no --epochs: it is an option of sidestep train"),
        ("tune a --epochs 3", "sidestep tune MODEL takes no --epochs: a fine-tune is as long as --steps says"),
        ("train spsa epochs=3", "sidestep train spsa has no place for 'epochs=3': did you mean --epochs?"),
        ("train spsa --json yes", "--json is a switch, which takes no value, got 'yes': leave 'yes' out"),
        ("presets foo", "sidestep presets has no place for 'foo': leave it out; `sidestep presets --help-all` lists "
         "its options"),
        ("show runs/x --port x", "--port takes a whole number, got 'x': give, for example, --port 8765"),
        ("show --port x", "sidestep show needs RUN: folder of the run, on images with classes"),
        ("join", "sidestep join needs WHERE: HOST:PORT of `sidestep train RULE --listen HOST:PORT`, or PORT on this "
         "machine"),
        ("compare runs/a", "sidestep compare needs SECOND: folder of the run that is compared with it"),
    ],
)  # fmt: skip
def test_a_wrong_option_or_word_is_answered_in_one_sentence(words, said, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(words.split())
    printed = capsys.readouterr()
    assert (leaving.value.code, printed.out, printed.err) == (2, "", f"sidestep: {said}\n")


def test_what_the_parser_says_in_a_form_of_its_own_is_kept_on_one_line():
    box = "╭─ Odd ─╮\n│ a thing that is │\n│ not known       │\n╰───╯"
    assert sentences(box, "sidestep show", [], ["a"]) == ["Odd a thing that is not known"]
