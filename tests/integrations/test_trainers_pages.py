"""The complete programs on the pages of other libraries' trainers, run as they stand, and learn."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs"


def programs(page):
    found = re.findall(r"^```python\n(\"\"\".*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)
    return [(page, program) for program in found]


def run(program, capsys):
    with torch.random.fork_rng():
        exec(compile(program, "page", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


@pytest.mark.parametrize(("page", "program"), programs("transformers.md"), ids=["GPT-2", "BERT"])
def test_a_program_of_the_page_on_transformers(page, program, capsys):
    pytest.importorskip("transformers")
    printed = run(program, capsys)
    if losses := re.findall(r"loss ([\d.]+) -> ([\d.]+)", printed):
        shown = re.search(r"prints `loss ([\d.]+) -> ([\d.]+)`", (DOCS / page).read_text(encoding="utf-8"))
        assert [float(each) for each in losses[0]] == pytest.approx([float(each) for each in shown.groups()], abs=0.15)
    else:
        moved = re.search(r"moved: (.*)", printed)[1].split(", ")
        assert moved == ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
        assert 0 <= float(re.search(r"accuracy: ([\d.]+)", printed)[1]) <= 1


@pytest.mark.parametrize(("page", "program"), programs("lightning.md"), ids=["moons"])
def test_the_program_of_the_page_on_lightning(page, program, capsys):
    pytest.importorskip("lightning")
    accuracy = float(re.search(r"accuracy: ([\d.]+)", run(program, capsys))[1])
    assert accuracy > 0.8
