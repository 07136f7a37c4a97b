"""What answers at once: commands that import no torch, and the table of commands."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

from sidestep.cli import COMMANDS, HELP

PROGRAM = """
import sys
from sidestep.__main__ import main
sys.argv = ["sidestep", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("imported:", *[name for name in ("torch", "numpy", "matplotlib") if name in sys.modules])
"""


def imported_by(*arguments: str) -> tuple[str, str]:
    """What a command prints in a process of its own, and the large libraries that it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(arguments=arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    shown, _, libraries = done.stdout.rpartition("imported:")
    return shown, libraries.strip()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_and_version_import_no_torch(arguments: list[str]) -> None:
    shown, libraries = imported_by(*arguments)
    assert shown.startswith("usage: sidestep" if arguments != ["--version"] else "sidestep ")
    assert libraries == ""


@pytest.mark.parametrize("arguments", [["rules"], ["presets", "--data", "mnist"], ["data"], ["data", "--json"]])
def test_lists_import_no_torch(arguments: list[str]) -> None:
    shown, libraries = imported_by(*arguments)
    assert "mnist" in shown if arguments[0] != "rules" else "noprop-dt" in shown
    assert libraries == ""


def test_a_rule_s_file_is_imported_when_the_rule_is_asked_for() -> None:
    program = """
import sys
from sidestep import cli, rules
def there():
    return {name for name in rules.RULES if f"sidestep.rules.{name.replace('-', '_')}" in sys.modules}
assert not there()
try:
    cli.main(["train", "noprop-dt", "--help"])
except SystemExit:
    pass
assert there() == {"noprop-dt"} and rules.RULES["spsa"] is rules.SPSA and there() == {"noprop-dt", "spsa"}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_is_where_the_table_says() -> None:
    for name, later in COMMANDS.items():
        assert callable(getattr(import_module(f"sidestep.cli.{later.module}"), later.command))
        assert f"\n  {name} " in HELP


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")
def test_a_terminal_is_told_that_torch_is_loaded() -> None:
    import pty

    ours, theirs = pty.openpty()
    program = PROGRAM.format(arguments=("runs", "nowhere"))
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, timeout=120, check=False)
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    words, blanks, rest = said.split("\r", 2)
    assert (words, blanks.strip()) == ("loading torch ...", "")
    assert "nowhere" in rest


def test_what_a_command_has_imported_is_not_looked_through_for_garbage() -> None:
    program = """
import gc
from sidestep.cli import COMMANDS
assert gc.get_freeze_count() == 0
COMMANDS["rules"](["--json"])
frozen = gc.get_freeze_count()
assert frozen > 1000 and gc.isenabled(), frozen
COMMANDS["rules"](["--json"])
assert gc.get_freeze_count() <= frozen  # later objects are not kept
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
