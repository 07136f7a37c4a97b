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


def test_a_row_that_was_cut_off_anywhere_is_none_and_harms_none(tmp_path):
    file = tmp_path / "rows.jsonl"
    whole = b'{"way": "a", "test": 0.5}\n'
    row = '{"way": "å", "test": 0.5}'.encode()  # a cut may go through a character
    for size in range(len(row)):
        file.write_bytes(whole + row[:size])
        assert kept_rows(file) == [{"way": "a", "test": 0.5}]
        keep_row(file, {"way": "c", "test": 0.25})
        assert [row["way"] for row in kept_rows(file)] == ["a", "c"]
        assert file.read_bytes().startswith(whole + b'{"way": "c"')


def test_a_row_that_lacks_but_the_end_of_its_line_is_kept(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"way": "a"}')
    assert kept_rows(file) == [{"way": "a"}]
    keep_row(file, {"way": "b"})
    assert [row["way"] for row in kept_rows(file)] == ["a", "b"]


NO_ROWS = [b"{", b"3", b"[1, 2]", b"", b'{"way": "\xff"}', b"[" * 100_000]


@pytest.mark.parametrize("line", NO_ROWS, ids=lambda line: str(line[:12]))
def test_another_line_that_is_no_row_is_named(tmp_path, line):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"way": "a"}\n' + line + b'\n{"way": "b"}\n')
    with pytest.raises(InputError, match=r"rows.jsonl, line 2, is no JSON object"):
        kept_rows(file)


def test_a_last_line_that_began_as_no_row_is_named_and_stays(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("a file that was meant for something else")
    with pytest.raises(InputError, match=r"notes.txt, line 1, is no JSON object"):
        kept_rows(file)
    keep_row(file, {"way": "a"})
    assert file.read_text().startswith("a file that was meant for something else\n{")
    file.write_text('{"way": "a"}\n{"way": "b", "te\n')  # the end of its line is there: not cut off by a kill
    with pytest.raises(InputError, match=r"notes.txt, line 2, is no JSON object"):
        kept_rows(file)


@pytest.mark.parametrize("tail", ["\n", "\n\n", "\x00\x00", "\n\x00\x00", " ", "\r\n"])
def test_nothing_at_the_end_is_no_line(tmp_path, tail):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"way": "a"}' + tail.encode())
    assert kept_rows(file) == [{"way": "a"}]
    keep_row(file, {"way": "b"})
    assert [row["way"] for row in kept_rows(file)] == ["a", "b"]
    assert file.read_bytes().startswith(b'{"way": "a"}\n{"way": "b"')
