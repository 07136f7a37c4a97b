"""The cost of a step grows as theory says: counts, so a quadratic slip is seen on any machine."""

import pytest

from benchmarks.growth import AXES, Axis, Step, exponent, grown
from sidestep.rules import LocalLoss


@pytest.mark.parametrize("name", AXES)
def test_the_cost_of_a_step_grows_as_theory_says(name):
    axis = AXES[name]
    sizes = axis.sizes[-2:]
    costs = grown(axis, sizes, steps=0)
    for what in ("operations", "elements", "memory"):
        least, most = getattr(axis, what)
        found = exponent(sizes, [getattr(cost, what) for cost in costs])
        assert least <= found <= most, f"{name}: {what} grow with exponent {found:.2f}, not {least} to {most}"


def test_a_quadratic_cost_is_seen_as_one():
    wide = Axis(lambda size: Step(LocalLoss(hidden=(size, size))), (512, 2048), (0, 1), (0, 1), (0, 1), "width squared")
    costs = grown(wide, wide.sizes, steps=0)
    assert exponent(wide.sizes, [cost.operations for cost in costs]) > 1.7
    assert exponent(wide.sizes, [cost.memory for cost in costs]) > 1.5
    assert exponent((10, 100), (3.0, 300.0)) == pytest.approx(2.0)
