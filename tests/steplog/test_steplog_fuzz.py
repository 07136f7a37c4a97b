"""Damaged step logs, a few thousand of the hundred thousand that `python -m benchmarks.fuzz_steplog` reads."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_steplog import CHANGES, forge, fuzz, read
from sidestep.errors import SidestepError
from tests.reference.steplog_sample import write_sample


@pytest.mark.parametrize("changes", [CHANGES, [forge]], ids=["damaged", "forged"])
def test_a_changed_log_is_refused_or_used_up_to_the_damage(tmp_path, changes):
    found = fuzz(1000, 1, tmp_path, changes)
    failed = {name: outcomes for name, outcomes in found.items() if any(key.startswith("FAILED") for key in outcomes)}
    assert not failed
    assert sum(sum(outcomes.values()) for outcomes in found.values()) == 1000


@settings(max_examples=300)
@given(st.binary(max_size=400), st.integers(0, 1200))
def test_a_log_that_goes_on_with_anything_gives_only_true_steps(tmp_path_factory, tail, place):
    path = tmp_path_factory.mktemp("fuzz") / "log"
    write_sample(path)
    _, steps, _ = read(path)
    path.write_bytes(path.read_bytes()[:place] + tail)
    try:
        _, found, _ = read(path)
    except SidestepError:
        return
    assert found == steps[: len(found)]
