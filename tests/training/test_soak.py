"""A small part of what `make soak` does: a run that is killed at any file operation ends as if nobody had killed it."""

import os

import pytest

from benchmarks import soak
from benchmarks.soak import kills, peers
from sidestep.training.folder import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


def test_kills_torn_writes_and_faults_change_nothing():
    told = []
    counts = kills.run(seed=3, count=8, rules=["noise-step"], report=told.append)
    assert not told
    assert counts["points"] == 8
    assert not sum(counts[name] for name in soak.FAILURES)


def test_a_planted_fault_is_found(monkeypatch):
    """Metrics that nobody cuts off on resuming: lines of steps that are taken again stand there twice."""

    class FoundError(Exception):
        pass

    def report(words):
        raise FoundError(words)

    monkeypatch.setattr(RunFolder, "metrics_of", lambda folder, record: folder.metrics_file.stat().st_size)
    with pytest.raises(FoundError, match="silent differences: metrics"):
        kills.run(seed=3, count=40, rules=["backprop"], report=report)


def test_workers_that_are_killed_while_a_run_trains_change_nothing():
    told = []
    counts = peers.run(seed=1, count=2, rules=["spsa"], epochs=30, report=told.append)
    assert not told
    assert counts["kills"] == 2
    assert counts["joins"] >= peers.PEERS
    assert not sum(counts[name] for name in soak.FAILURES)
