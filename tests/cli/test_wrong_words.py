"""What is given in the wrong place or form is answered in a sentence that says so."""

import pytest
from torch import nn

from sidestep import attach, rules
from sidestep.cli import main
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
