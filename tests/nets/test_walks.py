"""Samplers, checked with a perfect estimate: what they then reach is known exactly."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from sidestep.errors import InputError
from sidestep.nets import (
    CosineSchedule,
    LearnedSchedule,
    LinearSchedule,
    adaptive_walk,
    ancestral_walk,
    cosine_alpha_bar,
    ddim_walk,
    euler_walk,
    heun_walk,
    readable_alpha_bar,
)
from sidestep.nets.noprop import adaptive
from sidestep.nets.noprop.adaptive import ADAPTIVE
from sidestep.nets.noprop.denoiser_readings import diffusion_velocity
from sidestep.nets.noprop.samplers import check_steps, step_times
from sidestep.noise import Noise
from sidestep.rules import NoPropCT, NoPropFM, Task
from tests.reference.torchdiffeq_walk import plain_adaptive, plain_pair

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))


def evenly(steps):
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


GRIDS = {
    "cosine, 10 blocks": cosine_alpha_bar(10).double(),
    "readable, 4 blocks": readable_alpha_bar(4, 10).double(),
    "one step": LinearSchedule().alpha_bar(evenly(1)),
    "linear, 7 steps": LinearSchedule().alpha_bar(evenly(7)),
    "linear, 40 steps": LinearSchedule().alpha_bar(evenly(40)),
    "cosine, 40 steps": CosineSchedule().alpha_bar(evenly(40)),
    "learned, 40 steps": LearnedSchedule().double().alpha_bar(evenly(40)).detach(),
}


def coefficients(grid):
    """Return what one walk makes of u = 1, of z_0 = 1, and of each step's noise = 1, the others being zero."""
    steps = len(grid) - 1
    probes = torch.eye(steps + 2, dtype=torch.float64)[:, :, None]  # one row of the batch for each
    found = ancestral_walk(lambda latent, index: probes[0], grid, probes[1], lambda index: probes[2 + index])
    return found[:, 0].tolist()


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_with_a_perfect_estimate_the_ancestral_walk_has_the_marginals_of_q_at_every_step(grid):
    """The walk is linear in u, z_0 and each step's noise, so its mean and variance follow from its coefficients."""
    u = -1.7
    for upto in range(1, len(grid)):
        of_u, of_start, *of_noise = coefficients(grid[: upto + 1])
        mean = of_u * u + of_start * math.sqrt(grid[0]) * u  # from z_0 ~ q(z_0 | y)
        variance = of_start**2 * (1 - float(grid[0])) + sum(value**2 for value in of_noise)
        assert mean == pytest.approx(math.sqrt(grid[upto]) * u, rel=1e-9)
        assert variance == pytest.approx(1 - float(grid[upto]), rel=1e-9)


def points(seed=1, count=6):
    """u, eps: a label embedding and noise for each of `count` examples in three dimensions."""
    drawn = Noise(seed).normal(2 * count * 3).double().view(2, count, 3)
    return drawn[0], drawn[1]


def on_the_line(alpha_bar, u, eps):
    return alpha_bar.sqrt() * u + (1 - alpha_bar).sqrt() * eps


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_with_a_perfect_estimate_ddim_stays_on_the_line_from_its_noise_to_the_label(grid):
    u, eps = points()
    landed = ddim_walk(lambda latent, index: u, grid, on_the_line(grid[0], u, eps))
    torch.testing.assert_close(landed, on_the_line(grid[-1], u, eps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("start", ["zero", "noise"])
def test_ddim_with_a_constant_estimate_ends_in_one_place_for_any_number_of_steps(start):
    u, eps = points(2)
    first = torch.zeros_like(u) if start == "zero" else eps
    ends = [
        ddim_walk(lambda latent, index: u, LinearSchedule().alpha_bar(evenly(steps)), first)
        for steps in (1, 2, 7, 50, 1000)
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-9)


SCHEDULES = [LinearSchedule(), CosineSchedule(), LearnedSchedule().double()]
IDS = ["linear", "cosine", "learned"]


def perfect(u):
    """What diffusion_velocity needs of a net whose estimate is u, whatever it is given."""
    return SimpleNamespace(label_estimate=lambda outputs: u)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_the_probability_flow_s_velocity_is_the_derivative_of_that_line(schedule):
    u, eps = points(3)
    for moment in (0.0, 0.01, 0.3, 0.5, 0.9, 0.99, 1.0):
        time = torch.tensor([moment], dtype=torch.float64)
        latent, rate = torch.autograd.functional.jvp(
            lambda t: on_the_line(schedule.alpha_bar(t), u, eps), time, torch.ones_like(time)
        )
        found = diffusion_velocity(perfect(u), schedule, None, latent, time)
        torch.testing.assert_close(found, rate, rtol=1e-8, atol=1e-10)
        assert found.isfinite().all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_solvers_of_the_probability_flow_end_where_ddim_does(schedule):
    u, eps = points(4)
    ends = schedule.alpha_bar(evenly(1)).detach()
    start, wanted = on_the_line(ends[0], u, eps), on_the_line(ends[1], u, eps)

    def rate(latent, time, rows=None):
        wanted = u if rows is None else u[rows]
        return diffusion_velocity(perfect(wanted), schedule, None, latent, time).detach()

    assert (heun_walk(rate, evenly(100), start) - wanted).abs().max() < 5e-3
    assert (euler_walk(rate, evenly(300), start) - wanted).abs().max() < 5e-2
    assert (adaptive_walk(rate, (0.0, 1.0), start, tolerance=1e-7) - wanted).abs().max() < 1e-5


def swinging(latent, time):
    """dz/dt = cos(t) z, so z(1) = z(0) exp(sin 1)."""
    return time.cos() * latent


@pytest.mark.parametrize(("walk", "order"), [(euler_walk, 1), (heun_walk, 2)])
def test_the_order_of_a_solver_by_the_slope_of_its_error(walk, order):
    start = torch.ones(1, 1, dtype=torch.float64)
    exact = math.exp(math.sin(1))
    errors = [abs(walk(swinging, evenly(steps), start).item() - exact) for steps in (100, 200, 400)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.05)


def test_heun_without_the_end_takes_an_euler_step_there_and_never_asks_for_the_rate_at_one():
    asked = []

    def rate(latent, time):
        asked.append(time.item())
        return torch.ones_like(latent) / (1 - time)

    heun_walk(rate, evenly(4), torch.zeros(1, 1, dtype=torch.float64), to_the_end=False)
    assert max(asked) == 0.75
    asked.clear()
    heun_walk(rate, evenly(4), torch.zeros(1, 1, dtype=torch.float64))
    assert max(asked) == 1


class TestAdaptive:
    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_every_solver_finds_the_known_end_and_asks_for_no_time_beyond_it(self, method):
        asked = []

        def watched(latent, time, _rows):
            asked.extend(time.tolist())
            return swinging(latent, time[:, None])

        single, double = torch.float32, torch.float64
        for dtype, tolerance, error in ((single, 1e-3, 5e-3), (double, 1e-3, 5e-3), (double, 1e-6, 2e-4)):
            start = torch.tensor([[1.0, -0.5]], dtype=dtype)
            found = adaptive_walk(watched, (0.0, 1.0), start, method, tolerance)
            assert found.dtype == dtype
            torch.testing.assert_close(found, start * math.exp(math.sin(1)), rtol=error, atol=0)
        assert min(asked) >= 0
        assert max(asked) <= 1  # a net has seen no time after 1

    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_the_coefficients_are_those_of_torchdiffeq(self, method):
        pair = adaptive._PAIRS[method]
        wanted = plain_pair(method)
        assert pair.order == wanted.order
        for name in ("nodes", "weights", "errors"):
            assert getattr(pair, name) == pytest.approx(getattr(wanted, name), rel=1e-14, abs=1e-16)
        for own, theirs in zip(pair.stages, wanted.stages, strict=True):
            assert own == pytest.approx(theirs, rel=1e-14, abs=1e-16)

    @pytest.mark.parametrize("method", ADAPTIVE)
    def test_each_example_ends_where_torchdiffeq_takes_it_alone(self, method):
        start, pace = torch.linspace(-1, 1, 10, dtype=torch.float64).view(5, 2), torch.tensor([0.1, 1, 3, 9, 30])

        def rate(latent, time, rows):
            return pace[rows, None] * ((pace[rows] * time)[:, None].cos() - latent)

        found = adaptive_walk(rate, (0.0, 0.9), start, method, 1e-6)
        for index in range(5):
            rows = torch.tensor([index])
            alone = plain_adaptive(
                lambda z, t, rows=rows: rate(z, t.view(1), rows), (0.0, 0.9), start[rows], "dopri5", 1e-10
            )
            torch.testing.assert_close(found[rows], alone, rtol=0, atol=1e-4)  # a hundred steps of 1e-6

    def test_slow_examples_do_not_pay_for_fast_ones_and_none_changes_another(self):
        pace, asked = torch.tensor([0.1, 100.0]), torch.zeros(2)

        def rate(latent, time, rows):
            asked.index_add_(0, rows, torch.ones(len(rows)))
            return (pace[rows] * time).cos()[:, None] * pace[rows, None] + 0 * latent

        start = torch.zeros(2, 3)
        found = adaptive_walk(rate, (0.0, 1.0), start)
        assert asked[1] > 3 * asked[0]
        for index in (0, 1):
            pace_of = pace[index]
            alone = adaptive_walk(
                lambda z, t, rows, one=pace_of: (one * t).cos()[:, None] * one + 0 * z, (0.0, 1.0), start[:1]
            )
            torch.testing.assert_close(found[index : index + 1], alone, rtol=0, atol=1e-6)

    def test_a_last_bit_stays_one_where_the_rate_swings_faster_than_the_steps(self):
        """Steps that are a smooth function of the estimated error make a thousandth of it."""
        start = torch.linspace(-1, 1, 40, dtype=torch.float64).view(20, 2)

        def rate(latent, time, _rows):
            return (time[:, None] - latent) + 0.02 * (1000 * time[:, None] + latent).sin()

        one, other = (adaptive_walk(rate, (0.0, 1.0), start + moved) for moved in (0, 1e-9))
        assert (one - other).abs().max() < 1e-8

    def test_what_is_not_finite_ends_as_nan_and_leaves_the_others_alone(self):
        def rate(latent, time, rows):
            return torch.where(rows[:, None] == 1, torch.nan, 1.0) + 0 * latent

        found = adaptive_walk(rate, (0.0, 1.0), torch.zeros(3, 2))
        assert found[1].isnan().all()
        torch.testing.assert_close(found[::2], torch.ones(2, 2))

    def test_another_solver_is_refused(self):
        with pytest.raises(InputError, match="dopri5, dopri8, bosh3, fehlberg2, adaptive_heun, got 'rk45'"):
            adaptive_walk(lambda z, _t, _rows: z, (0.0, 1.0), torch.ones(1, 1), "rk45")

    def test_no_example_at_all_is_fine(self):
        assert adaptive_walk(lambda z, _t, _rows: z, (0.0, 1.0), torch.ones(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("rule", [NoPropCT, NoPropFM])
def test_one_to_a_thousand_steps(rule):
    check_steps(1)
    check_steps(1000)
    for steps in (0, 1001, -3):
        with pytest.raises(InputError, match=f"between 1 and 1000, got {steps}"):
            rule(steps=steps)
    net = rule().build(TASK, Noise(0), None, None)
    images = Noise(1).normal(2 * 64).view(2, 1, 8, 8)
    reading = rule.readings[0]
    for steps in (1, 2, 1000):
        found = rule(steps=steps).predict(net, images, Noise(0), names=[reading])[reading]
        assert found.isfinite().all()


def test_times_rise_from_zero_to_one_evenly_or_closer_together_near_both_ends():
    for steps in (1, 2, 7, 50, 1000):
        assert torch.equal(step_times(steps), torch.linspace(0, 1, steps + 1))
        times = step_times(steps, "cosine")
        wanted = [math.sin(math.pi / 2 * index / steps) ** 2 for index in range(steps + 1)]
        torch.testing.assert_close(times, torch.tensor(wanted), rtol=1e-6, atol=0)
        assert (times[0].item(), times[-1].item(), times.dtype) == (0.0, 1.0, torch.float32)
        assert (times.diff() > 0).all()
    with pytest.raises(InputError, match="grid must be one of uniform, cosine, got 'square'"):
        step_times(5, "square")


class PerfectFlow:
    """A flow-matching net that knows the labels, as no real one may; it notes where each walk lands."""

    def __init__(self, prediction, labels, steps=10, **options):
        loss = "paper" if prediction == "velocity" else "cross-entropy"
        self.rule = NoPropFM(prediction=prediction, loss=loss, steps=steps, draws=3, **options)
        self.net = self.rule.build(TASK, Noise(0), None, None)
        self.u, self.landed = torch.eye(4)[labels], []
        self.images, self.noise = torch.zeros(len(labels), 1, 8, 8), Noise(5)
        self.net.block.outputs = self.velocity if prediction == "velocity" else self.label
        self.net.probabilities = self.note

    def label(self, prepared, latent, time):
        return 300.0 * self.u

    def velocity(self, prepared, latent, time):
        """u - z_0, from where the latent stands now: the same all along a straight line; at its end 0 / 0."""
        if (time == 0).all():
            self.constant = self.u - latent
        return self.constant

    def note(self, latent):
        self.landed.append(latent)
        return latent.softmax(dim=1)

    def walk(self, *names):
        self.rule.predict(self.net, self.images, self.noise, names=names)
        return self.landed


@pytest.mark.parametrize("prediction", ["label", "velocity"])
@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_with_a_perfect_flow_euler_from_anywhere_lands_on_the_label(prediction, steps):
    flow = PerfectFlow(prediction, torch.tensor([2, 0, 3, 1, 1]), steps)
    names = ("euler", "euler from noise", "mean", "first step")
    landed = flow.walk(*names)
    assert len(landed) == 1 + 1 + 3 + 1
    for latent in landed:
        torch.testing.assert_close(latent, flow.u, rtol=0, atol=2e-4)


@pytest.mark.parametrize("prediction", ["label", "velocity"])
@pytest.mark.parametrize("steps", [1, 2, 1000])
@pytest.mark.parametrize("options", [{}, {"start": "noise", "grid": "cosine"}], ids=["default", "noise, cosine"])
def test_with_a_perfect_flow_the_other_solvers_land_there_too(prediction, steps, options):
    flow = PerfectFlow(prediction, torch.tensor([2, 0, 3, 1, 1]), steps, **options)
    for latent in flow.walk("heun", "adaptive"):
        torch.testing.assert_close(latent, flow.u, rtol=0, atol=2e-3)


@pytest.mark.parametrize("steps", [1, 2, 50, 400])
def test_label_estimates_near_the_end_of_time_keep_every_solver_finite(steps):
    rule = NoPropFM(steps=steps)
    net = rule.build(TASK, Noise(0), None, None)
    landed = []
    net.probabilities = lambda latent: landed.append(latent) or latent.softmax(dim=1)
    images = 5 * Noise(1).normal(3 * 64).view(3, 1, 8, 8)
    rule.predict(net, images, Noise(0), names=("heun", "adaptive", "euler from noise"))
    for latent in landed:  # the last estimate is a mean of one-hot labels, and the walk ends near it
        assert latent.min() > -0.1
        assert latent.max() < 1.1
