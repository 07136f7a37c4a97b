"""Damaged files of every kind, a few hundred of the tens of thousands that `make soak` reads."""

import random

import pytest

from benchmarks.soak import FAILURES, mutations
from benchmarks.soak._changes import BINARY, TEXT
from sidestep.data import npz_file


def test_a_damaged_file_is_read_as_before_or_refused_in_a_sentence():
    told = []
    counts = mutations.run(11, 100, told.append)
    assert all(counts[failure] == 0 for failure in FAILURES), "\n".join(told)
    assert counts["cases"] == 100
    assert counts["refused"] > 30, counts
    assert counts["same"] > 15, counts


def test_a_reader_that_falls_over_or_lies_is_found(monkeypatch):
    """The search itself: with a check of the size taken away it must count failures."""
    monkeypatch.setattr(npz_file, "_reading", lambda path, what: __import__("contextlib").nullcontext())
    assert mutations.run(3, 60, lambda line: None)["tracebacks"] > 0


@pytest.mark.parametrize("change", [*BINARY, *TEXT])
def test_changes_take_any_file(change):
    dice = random.Random(0)
    for data in (b"x", b"\n", b'{"a": 1}\n', b"a = 1\nb = [2]\n", bytes(300)):
        for _ in range(20):
            assert isinstance(change(data, dice), bytes)
