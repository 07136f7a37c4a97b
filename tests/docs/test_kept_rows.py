"""Rows of an experiment: what is kept beside them, and that files of before and after it are read alike."""

import json
from dataclasses import asdict, dataclass

import torch

from experiments.kept_rows import keep_row, kept_as, kept_rows


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
