"""SPSA's step sizes that find themselves, one-sided differences, and the kinds of noise on all weights."""

import itertools
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sidestep
from sidestep import Options, data, train
from sidestep.data.share import Share
from sidestep.errors import InputError
from sidestep.gradients import directions as directions_file
from sidestep.gradients.directions import directions_along
from sidestep.gradients.step_search import agreed_share, damped_rate, searched_rate
from sidestep.noise import Noise
from sidestep.probes import DenseProbes, Distribution
from sidestep.rules import SPSA, Batch, Task
from sidestep.steplog import rebuild
from sidestep.update import combined

ROWS, TARGETS = Noise(1).normal(64 * 8).view(64, 8), Noise(2).integers(64, 3)
KINDS = get_args(Distribution)
TABLE = (("a", (40, 30)), ("b", (7,)), ("c", (5, 3, 4)))


def make():
    with Noise(0).torch_seeded():
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def steps(rule, count, scale=1.0, net=None, **options):
    net = net or make()
    step = sidestep.attach(net, rule, seed=3, **options)
    losses = [float(step(lambda: scale * F.cross_entropy(net(ROWS), TARGETS))) for _ in range(count)]
    return net, losses


def drawn(kind, index, count=4, noise=None):
    found = directions_along(DenseProbes(noise or Noise(5).at(2), TABLE, count, kind))
    return {name: found.draw(name, shape, index, torch.zeros(1)) for name, shape in TABLE}


class TestStepSize:
    def test_a_parabola_gives_half_of_the_way_and_a_rise_a_quarter_of_that(self):
        assert searched_rate(lambda size: (3 - 2 * size) ** 2, 9.0, 0.1).most == pytest.approx(0.75)
        assert searched_rate(lambda size: (3 + 2 * size) ** 2, 9.0, 0.1).most == 0.0  # it goes up there
        assert searched_rate(lambda size: math.nan, 9.0, 0.1).most == 0.0
        assert searched_rate(lambda size: math.inf if size < 0 else (3 - 2 * size) ** 2, 9.0, 0.1).most == 0.1
        # a parabola near zero, and a wall behind 0.5: half of the way is 0.75, a quarter of it 0.1875
        found = searched_rate(lambda size: (3 - 2 * size) ** 2 + 100 * (size > 0.5), 9.0, 0.1)
        assert found.most == pytest.approx(0.1875)

    def test_what_a_slope_shares_with_other_batches_is_unbiased(self):
        """Over all batches of two out of four examples, its numerator is the squared derivative of all four."""
        all_four = [torch.tensor([0.3, -1.0, 2.0, 0.9]), torch.tensor([1.0, 1.2, 0.8, 3.0])]
        batches = list(itertools.product(range(4), repeat=2))  # drawn with replacement
        shared = []
        for batch in batches:
            own = [each[list(batch)] for each in all_four]
            whole = sum(float(each.double().mean() ** 2) for each in own)
            noise = sum(float(each.double().var() / 2) for each in own)
            shared.append(whole - noise)
            if 1 - noise / whole > 0.02:
                assert agreed_share(own) == pytest.approx(1 - noise / whole)
        expected = sum(float(each.double().mean() ** 2) for each in all_four)
        assert sum(shared) / len(batches) == pytest.approx(expected)

    def test_without_a_loss_for_each_example_a_share_is_assumed(self):
        each = torch.tensor([1.0, 2.0])
        assert agreed_share([None, None]) == agreed_share([each, None]) == agreed_share([each[:1]]) == 0.25
        assert agreed_share([torch.tensor([1.0, -1.0])]) == 0.02  # nothing is shared, but a step is still tried
        assert agreed_share([torch.tensor([math.inf, 1.0])]) == 0.25

    def test_a_step_goes_by_the_means_of_the_steps_before(self):
        means = []
        assert damped_rate(means, 9.0, 2.0, 4.0, length=0.5) == pytest.approx(0.75 * 2 / 4 / 0.5)
        assert damped_rate(means, 9.0, 4.0, 4.0, length=0.5) == pytest.approx(0.75 * 3 / 4 / 0.5)
        # a longer estimate counts for more: half of it slope 2 and 4 at length 0.5, the last third 1 at length 2
        assert damped_rate(means, 9.0, 1.0, 4.0, length=2.0) == pytest.approx(0.75 * (1 + 2 + 2) / (1 + 1 + 16))
        assert damped_rate(means, 0.1, 4.0, 4.0, length=0.5) == 0.1  # no further than the batch itself allows
        assert damped_rate(means, 9.0, -99.0, 4.0, length=0.5) == 0.0
        kept = list(means)
        assert damped_rate(means, 9.0, math.nan, math.nan, length=0.5) == 0.0
        assert means == kept
        assert damped_rate([], 9.0, 2.0, -1.0, length=0.5) == 9.0  # no parabola yet: what the batch itself allows

    @pytest.mark.parametrize(("each", "worst"), [(True, 1.2), (False, 1.35)])
    def test_small_batches_do_not_walk_a_fitted_model_away(self, each, worst):
        """Half of the way to the lowest point of every batch walks to 1.5 to 1.8: these slopes are mostly noise."""
        noise = Noise(7)
        rows, truth = noise.stream("rows").normal(4096 * 20).view(4096, 20), noise.stream("truth").normal(20)
        values = rows @ truth + noise.stream("errors").normal(4096)
        net = nn.Linear(20, 1, bias=False)
        net.weight.data = torch.linalg.lstsq(rows, values[:, None]).solution.T.contiguous()
        step = sidestep.attach(net, SPSA(pairs=8), seed=1)

        def losses(start, size):
            part = slice(start, start + size)
            return (net(rows[part])[:, 0] - values[part]).square()

        before = losses(0, 4096).mean().item()
        for start in range(0, 512, 8):
            step(lambda start=start: losses(start, 8) if each else losses(start, 8).mean())
        assert losses(0, 4096).mean().item() < worst * before

    def test_a_loss_that_no_direction_changes_takes_steps_of_nothing(self):
        net = make()
        before = [parameter.clone() for parameter in net.parameters()]
        step = sidestep.attach(net, SPSA(pairs=2), seed=3)
        for _ in range(2):
            assert step(lambda: (ROWS[:, 0] > 0).float()) == (ROWS[:, 0] > 0).float().mean()
        assert all(map(torch.equal, before, net.parameters()))

    def test_a_loss_that_is_infinite_uphill_still_has_a_way_down(self):
        net = nn.Linear(1, 1, bias=False)
        net.weight.data.fill_(1.0)
        step = sidestep.attach(net, SPSA(pairs=1), seed=3)  # tried at 0.001 to a side, and searched from 0.003 on
        step(lambda: torch.where(net.weight > 1.002, math.inf, net.weight**2).sum())
        assert net.weight.item() < 0.999

    def test_another_optimiser_has_its_own_memory_alone(self):
        found = train(
            SPSA(hidden=(4,), pairs=2),
            data.load("digits"),
            Options(steps=2, batch=8),
            optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01),
        )
        assert found.step == 2

    def test_the_means_are_part_of_what_is_saved(self, tmp_path):
        net, twin = make(), make()
        step = sidestep.attach(net, SPSA(pairs=4), seed=3)
        for _ in range(3):
            step(lambda: F.cross_entropy(net(ROWS), TARGETS))
        step.save(tmp_path / "kept")
        other = sidestep.attach(twin, SPSA(pairs=4), seed=3)
        other.load(tmp_path / "kept")
        for attached, model in ((step, net), (other, twin)):
            for _ in range(3):
                attached(lambda model=model: F.cross_entropy(model(ROWS), TARGETS))
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))

    def test_the_step_does_not_depend_on_the_scale_of_the_loss(self):
        """A hundred times the loss has the same steps: no learning rate has to be chosen for it."""
        one, other = steps(SPSA(pairs=8), 5)[0], steps(SPSA(pairs=8), 5, scale=128.0)[0]
        for mine, others in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, others, rtol=1e-3, atol=1e-4)

    def test_no_step_makes_the_loss_of_its_batch_larger(self):
        _, losses = steps(SPSA(pairs=4), 30)
        assert all(after <= before for before, after in itertools.pairwise(losses))
        assert losses[-1] < 0.9 * losses[0]

    def test_a_schedule_is_a_factor(self):
        net, twin = make(), make()
        step, other = sidestep.attach(net, SPSA(), seed=3), sidestep.attach(twin, SPSA(), seed=3)
        other.optimizer.param_groups[0]["lr"] = 0.5
        before = net[0].weight.detach().clone()
        for attached, model in ((step, net), (other, twin)):
            attached(lambda model=model: F.cross_entropy(model(ROWS), TARGETS))
        whole, half = net[0].weight.detach() - before, twin[0].weight.detach() - before
        torch.testing.assert_close(half, whole / 2, rtol=1e-4, atol=1e-7)

    def test_by_the_spread_of_the_losses(self):
        """FZOO: `w <- w - rate / std_i(L_i) mean_i (L_i - L) nu_i`."""
        rule, net = SPSA(pairs=8, spread=True, learning_rate=0.01), make()
        before = {name: p.detach().clone() for name, p in net.named_parameters()}

        def loss(weights):
            return F.cross_entropy(torch.func.functional_call(net, weights, (ROWS,)), TARGETS)

        probes = sidestep.attach(net, rule, seed=3).estimate(lambda: F.cross_entropy(net(ROWS), TARGETS)).update.probes
        source, tried = directions_along(probes), []
        nus = [{n: source.draw(n, p.shape, index, p) for n, p in before.items()} for index in range(8)]
        here = loss(before)
        tried = torch.stack([loss({n: p + rule.eps * nu[n] for n, p in before.items()}) for nu in nus])
        steps(rule, 1, net=net)
        for name, parameter in net.named_parameters():
            move = sum((t - here) * nu[name] for t, nu in zip(tried, nus, strict=True)) / 8
            expected = before[name] - 0.01 / tried.std() * move
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-3, atol=2e-5)

    def test_a_run_and_a_loop_are_replayed_to_the_bit(self, tmp_path):
        rule = SPSA(hidden=(8,), pairs=4)
        run = train(rule, "digits", Options(epochs=1, batch=256, out=tmp_path / "run", decay="cosine"))
        again = rebuild(tmp_path / "run" / "steps.steplog").net.state_dict()
        assert all(torch.equal(value, again[name]) for name, value in run.net.state_dict().items())
        net, _ = steps(SPSA(pairs=4), 5, log=tmp_path / "a.steplog")
        sidestep.replay(tmp_path / "a.steplog", fresh := make())
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), fresh.parameters(), strict=True))

    def test_parts_of_a_step_have_the_coefficients_of_the_whole(self):
        rule = SPSA(hidden=(8,), pairs=8)
        task = Task((1, 2, 4), ("a", "b", "c"), (0.0,), (1.0,))
        net = rule.build(task, Noise(0), None, None)
        batch = Batch(ROWS.view(64, 1, 2, 4), TARGETS)
        whole = rule.estimate(net, batch, Noise(4))
        parts = [rule.estimate(net, replace(batch, share=Share("probes", i, 2)), Noise(4)) for i in range(2)]
        assert torch.equal(combined(parts).coefs, whole.coefs)
        assert float(combined(parts).losses["net: step size"]) > 0

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"optimizer_kind": "adamw"}, "give a learning_rate"),
            ({"spread": True}, "give a learning_rate"),
            ({"spread": True, "learning_rate": 0.1, "pairs": 1}, "pairs of 2 or more"),
            ({"sides": "none"}, "sides must be one of one, both"),
            ({"distribution": "cauchy"}, "distribution must be one of"),
        ],
    )
    def test_bad_input(self, options, words):
        with pytest.raises(InputError, match=words):
            SPSA(**options)


class TestNoise:
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_weight_has_mean_0_and_variance_1(self, kind):
        sums = {name: torch.zeros(shape) for name, shape in TABLE}
        squares = {name: torch.zeros(shape) for name, shape in TABLE}
        found = directions_along(DenseProbes(Noise(5), TABLE, 600, kind))
        for index in range(600):
            for name, shape in TABLE:
                nu = found.draw(name, shape, index, torch.zeros(1))
                sums[name] += nu / 600
                squares[name] += nu.square() / 600
        mean = torch.cat([part.flatten() for part in sums.values()])
        variance = torch.cat([part.flatten() for part in squares.values()])
        assert mean.abs().max() < 0.25  # six of its standard errors
        assert mean.square().mean() * 600 == pytest.approx(1, abs=0.25)
        assert variance.mean() == pytest.approx(1, abs=0.05)

    @pytest.mark.parametrize("kind", KINDS)
    def test_parameters_probes_and_steps_have_noise_of_their_own(self, kind):
        draws = [drawn(kind, 0), drawn(kind, 1), drawn(kind, 0, noise=Noise(5).at(3))]
        for one in draws:
            assert sum(torch.equal(one["a"], other["a"]) for other in draws) == 1
            assert not torch.equal(one["a"].flatten()[:7], one["b"]) or kind == "sparse"

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_small_net_s_noise_is_that_of_a_large_one(self, kind, monkeypatch):
        """Whether all signs of a step are drawn at once or not is a matter of speed alone."""
        many = drawn(kind, 3)
        monkeypatch.setattr(directions_file, "_SMALL", 0)
        for name, part in drawn(kind, 3).items():
            assert torch.equal(part, many[name])

    def test_rank_one_is_of_rank_one_and_sparse_is_sparse(self):
        assert torch.linalg.matrix_rank(drawn("rank-one", 0)["a"]) == 1
        assert torch.linalg.matrix_rank(drawn("rank-one", 0)["c"].flatten(1)) == 1
        assert set(drawn("sparse", 0)["a"].unique().tolist()) == {-4.0, 0.0, 4.0}
        assert float((drawn("sparse", 0)["a"] != 0).float().mean()) == pytest.approx(1 / 16, abs=0.03)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("sides", ["one", "both"])
    def test_it_learns_and_replays(self, kind, sides, tmp_path):
        net, losses = steps(SPSA(pairs=8, distribution=kind, sides=sides), 20, log=tmp_path / "a.steplog")
        assert losses[-1] < 0.9 * losses[0]
        sidestep.replay(tmp_path / "a.steplog", fresh := make())
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), fresh.parameters(), strict=True))

    def test_part_of_a_replay_leaves_the_rest(self, tmp_path):
        """Where a parameter's signs lie follows from the whole net, also where one alone is rebuilt."""
        run = train(SPSA(hidden=(8,), pairs=4), "digits", Options(steps=3, batch=64, out=tmp_path / "run"))
        part = rebuild(tmp_path / "run" / "steps.steplog", only="readout").net
        whole = run.net.state_dict()
        assert torch.equal(part.readout.weight, whole["readout.weight"])
        assert not torch.equal(part.state_dict()["stages.0.1.weight"], whole["stages.0.1.weight"])


@pytest.mark.slow
def test_without_options_it_learns_the_digits():
    """Five points under the mean test accuracy of seeds 0, 1 and 2 (95.0)."""
    assert train(SPSA(), data.load("digits"), Options()).result["test_accuracy"] > 0.90
