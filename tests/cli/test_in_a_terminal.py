"""The command line at a terminal, where bars are drawn: commands end, and what they print is there."""

import os
import select
import subprocess
import sys
import time

import pytest

pty = pytest.importorskip("pty", reason="takes pseudo-terminals")

_FORCING = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # which rich obeys
QUICK = ["--epochs", "2"]
BENCH = ["bench", "--rules", "local-loss", "--epochs", "1", "--seeds", "1"]
TABLE = ["reproduce", "noprop-table1", "--data", "mnist", "--rows", "fm-one-hot", "--budget", "cpu", "--plan"]


def at_a_terminal(folder, words, stdout=None, most=120.0):
    """Return status and what stands on a terminal of 100 columns after a command of Sidestep; stopped after a while."""
    ours, theirs = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in _FORCING}
    process = subprocess.Popen(
        [sys.executable, "-m", "sidestep", *words], stdin=theirs, stdout=stdout or theirs, stderr=theirs, cwd=folder,
        env={**plain, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    found, end = b"", time.monotonic() + most
    while time.monotonic() < end:
        ready, _, _ = select.select([ours], [], [], 0.2)
        try:
            part = os.read(ours, 1 << 16) if ready else b""
        except OSError:  # Linux says so that nobody writes any more
            break
        found += part
        if ready and not part:
            break
    process.kill() if time.monotonic() >= end else None
    os.close(ours)
    return process.wait(timeout=30), found.decode(errors="replace")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "local-loss", *QUICK], ["examples/s", "validation", "local-loss on digits, seed 0: 2 epochs"]),
        (["train", "noprop-ct", *QUICK, "--json"], ["examples/s", '"test_accuracy"']),
        (BENCH, ["runs", "local-loss on digits, seed 0: ", "written: runs/bench/bench.md"]),
        (TABLE, ["the plan alone"]),
        (["data"], ["digits"]),
        (["train", "local-loss", "--epochs", "few"], ["epochs"]),
    ],
    ids=["train", "json", "bench", "plan", "data", "refused"],
)
def test_a_command_ends_at_a_terminal(tmp_path, words, said):
    status, shown = at_a_terminal(tmp_path, words)
    assert status == (2 if "few" in words else 0), shown[-2000:]
    assert [line for line in said if line not in shown] == []
    assert "Traceback" not in shown


def test_what_is_sent_elsewhere_stays_out_of_the_terminal_and_out_of_the_bar(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\nclass Path(nn.Flatten):\n    def forward(self, images):\n"
        "        print('of the module')\n        return super().forward(images)\n"
    )
    words = ["train", "noprop-ct", "--module", "mine.py:Path", *QUICK]
    with (tmp_path / "out.txt").open("w") as out:
        status, shown = at_a_terminal(tmp_path, words, out)
    said = (tmp_path / "out.txt").read_text()
    assert status == 0, shown[-2000:]
    assert "examples/s" in shown
    assert ("of the module" in said, "of the module" in shown) == (True, False)
    assert ("noprop-ct on digits, seed 0: 2 epochs" in said, "noprop-ct on digits" in shown) == (True, False)
    assert "\x1b" not in said
    status, shown = at_a_terminal(tmp_path, [*words, "--out", "again"])  # where both are one, above the bar
    assert (status, "of the module" in shown) == (0, True), shown[-2000:]
