"""Several processes that would each do the whole job: refused with a sentence, before anything is written."""

import pytest
import torch

from sidestep import Options, rules, train
from sidestep.cli import COMMANDS, main
from sidestep.errors import InputError

READING = {"rules", "presets"}


def launched(monkeypatch, world_size="2", rank="0"):
    """Set what torchrun sets."""
    for name, value in {"WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)


def ended(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, " ".join(captured.err.split())


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - READING))
def test_every_command_that_computes_or_writes_is_refused(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    launched(monkeypatch)
    status, out, said = ended(capsys, command, "spsa", "--out", "runs/a")
    assert (status, out) == (2, "")
    assert said.startswith("sidestep: started in 2 processes at once")
    assert "without torchrun" in said
    launched(monkeypatch, rank="1")
    assert ended(capsys, command, "spsa", "--out", "runs/a") == (2, "", said)  # rank 0 may have been stopped by then
    assert not list(tmp_path.iterdir())


def test_help_and_lists_are_shown(capsys, monkeypatch):
    launched(monkeypatch)
    for arguments in (["--help"], ["train", "--help"], ["rules"], ["presets", "--data", "bloodmnist"]):
        main(arguments)
        assert capsys.readouterr().out


@pytest.mark.parametrize("world_size", ["1", "", "many"])
def test_one_process_trains(world_size, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    launched(monkeypatch, world_size)
    main(["train", "backprop", "--net", "linear", "--epochs", "0"])
    assert "run: runs/backprop-digits-0" in capsys.readouterr().out


def test_python_refuses_in_a_process_group_of_several(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    rule, options = rules.Backprop(net="linear"), Options(epochs=0)
    with pytest.raises(InputError, match="one of the 2 of an initialised"):
        train(rule, "digits", options)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    assert train(rule, "digits", options).step == 0
