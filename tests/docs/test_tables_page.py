"""The page on tables in files: its example runs from top to bottom."""

import re
import shlex
from pathlib import Path

import pytest

from sidestep.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tables.md"


@pytest.mark.filterwarnings("ignore::sidestep.notices.DataNotice")
def test_the_example_runs_and_prints_what_the_page_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said, shown = "", []
    namespace = {"__name__": "__main__"}
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S):
        if language == "python":
            exec(compile(body, str(PAGE), "exec"), namespace)
        elif language == "bash":
            for line in body.splitlines():
                main(shlex.split(line)[1:])
            said = capsys.readouterr().out
        else:
            shown += [" ".join(line.split()) for line in body.splitlines()]
    printed = [" ".join(line.split()) for line in said.splitlines()]
    assert len(shown) > 5
    assert [line for line in shown if line not in printed] == []
    assert len(Path("species.csv").read_text().splitlines()) == 4
    assert namespace["run"].result["test_score"] > 0.7
    assert "setosa" in capsys.readouterr().out
