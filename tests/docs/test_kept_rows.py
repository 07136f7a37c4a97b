"""Rows of an experiment: what is kept beside them, and that files of before and after it are read alike."""

import json
from dataclasses import asdict, dataclass

import pytest
import torch

from experiments.kept_rows import keep_row, kept_as, kept_rows
from sidestep.errors import InputError


@dataclass(frozen=True)
class Way:
    way: str
    test: float


def test_a_kept_row_says_where_and_by_what_it_was_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["some.py", "--seeds", "0 1"])
    file = tmp_path / "new" / "rows.jsonl"
    keep_row(file, {"way": "a", "test": 0.5})
    (row,) = kept_rows(file)
    assert row["command"].endswith("--seeds '0 1'")
    assert row["environment"]["torch"] == torch.__version__
    assert row["environment"]["threads"] == torch.get_num_threads()
    assert row["environment"]["processor"]
    assert json.loads(capsys.readouterr().out) == {"way": "a", "test": 0.5}


def test_rows_without_an_environment_are_read_as_those_with_one(tmp_path):
    file = tmp_path / "rows.jsonl"
    earlier, later = Way("a", 0.5), Way("b", 0.25)
    file.write_text(json.dumps(asdict(earlier)) + "\n")
    keep_row(file, asdict(later))
    assert kept_as(Way, file) == [earlier, later]
    assert kept_as(Way, tmp_path / "none.jsonl") == []


def test_a_line_that_was_cut_off_is_no_row_and_harms_none(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"way": "a", "test": 0.5}\n{"way": "b", "te')
    assert kept_rows(file) == [{"way": "a", "test": 0.5}]
    keep_row(file, {"way": "c", "test": 0.25})
    assert [row["way"] for row in kept_rows(file)] == ["a", "c"]
    file.write_text('{"way": "a"}')  # whole, but for the end of its line
    keep_row(file, {"way": "b"})
    assert [row["way"] for row in kept_rows(file)] == ["a", "b"]


@pytest.mark.parametrize("line", ["{", "3", ""])
def test_another_line_that_is_no_row_is_named(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"way": "a"}}\n{line}\n{{"way": "b"}}\n')
    with pytest.raises(InputError, match=r"rows.jsonl, line 2, is no JSON object"):
        kept_rows(file)
