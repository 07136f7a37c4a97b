"""Several processes for a command that each would do alone: refused with a sentence, before anything is written."""

import pytest

from sidestep.cli import COMMANDS, main

READING = {"rules", "presets"}
SHARED = {"train"}  # what several processes do together


def launched(monkeypatch, world_size="2", rank="0"):
    """Set what torchrun sets."""
    for name, value in {"WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)


def ended(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, " ".join(captured.err.split())


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - READING - SHARED))
def test_every_command_that_computes_or_writes_is_refused(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    launched(monkeypatch)
    status, out, said = ended(capsys, command, "spsa", "--out", "runs/a")
    assert (status, out) == (2, "")
    assert said.startswith("sidestep: rank 0: started in 2 processes at once")
    assert "without torchrun" in said
    launched(monkeypatch, rank="1")
    assert ended(capsys, command, "spsa", "--out", "runs/a") == (
        2,
        "",
        said.replace("rank 0", "rank 1"),
    )  # rank 0 may have been stopped by then
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


def test_a_launcher_says_who_a_process_is(capsys, monkeypatch):
    launched(monkeypatch)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    status, out, said = ended(capsys, "train", "backprop", "--net", "linear", "--epochs", "0")
    assert (status, out) == (2, "")
    assert said.startswith("sidestep: rank 0: WORLD_SIZE is 2, but MASTER_ADDR, MASTER_PORT is not set")
