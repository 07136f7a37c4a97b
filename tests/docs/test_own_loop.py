"""The programs of the page on loops of one's own, and its example, run as they stand and learn."""

import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own-loop.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"### ([^\n]*)\n\n```python\n(.*?)```", PAGE, re.DOTALL)
AT_MOST = {"A ResNet on pictures": 0.5, "An LSTM, with a log": 0.6, "A small GPT": 0.75, "A table": 0.1}


def test_the_page_has_the_four_programs():
    assert [title for title, _ in PROGRAMS] == list(AT_MOST)


@pytest.mark.parametrize(("title", "program"), PROGRAMS, ids=[title for title, _ in PROGRAMS])
def test_a_program_runs_and_its_loss_falls(title, program, capsys):
    found = {"__name__": "__main__"}
    with torch.random.fork_rng():
        exec(compile(program, title, "exec"), found)
    losses = found["losses"]
    assert losses[-1] < AT_MOST[title] * losses[0]
    printed = capsys.readouterr().out
    assert "->" in printed
    assert "False" not in printed


def test_the_example_runs_and_its_log_leads_to_the_same_weights(capsys):
    with torch.random.fork_rng():
        runpy.run_path(str(ROOT / "examples" / "own_loop.py"), run_name="__main__")
    printed = capsys.readouterr().out
    before, after = (float(share) for share in re.findall(r"([\d.]+)% (?:of them )?in fog", printed))
    assert after > before + 15
    assert "the same weights: True" in printed
