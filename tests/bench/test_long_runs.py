"""The benchmark of long runs sees memory that grows, and what it prints is of runs and logs that were made."""

import pytest

from benchmarks import long_runs
from sidestep.steplog import LogReader


def test_a_slope_is_that_of_the_last_half_alone():
    steps = [float(step) for step in range(0, 100, 10)]
    grown = [1e6 if step < 50 else 1e6 + 3 * step for step in steps]
    assert long_runs.slope(steps, grown) == pytest.approx(3.0)


def test_memory_that_grows_by_the_step_is_seen(tmp_path, monkeypatch):
    memory = iter(range(10**6, 10**9, 2048))
    monkeypatch.setattr(long_runs, "resident", lambda: next(memory))
    found = long_runs.long_run("backprop", 40, tmp_path / "run")
    assert found["steps"] == [float(step) for step in range(1, 41)]
    assert found["resident_slope"] == pytest.approx(2048)
    assert found["files"][-1] > 0


def test_a_long_log_is_read_and_replayed_to_its_end(tmp_path):
    path = long_runs.long_log(tmp_path / "run", 200)
    assert sum(1 for _ in LogReader(path).records()) == 200
    found = long_runs.opened(path, 10)
    assert found["steps"] == 200
    assert found["bytes"] == path.stat().st_size
    assert found["resident_last"] > 0
