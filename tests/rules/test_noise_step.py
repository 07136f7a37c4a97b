"""noise_step: estimators against their definitions, what is logged, how weights move."""

import itertools
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jvp
from torch.nn.functional import cross_entropy, layer_norm

from sidestep import Options, data, load_run, train
from sidestep.errors import InputError, NonFiniteError
from sidestep.gradients.local_losses import local_gradients
from sidestep.gradients.ternary_directions import activity_gradients, check_chain, rank_one_alignments, rank_one_shapes
from sidestep.nets import ternary_conv_net, ternary_mlp, ternary_parameters
from sidestep.nets.ternary.nets import ternary_own
from sidestep.noise import Noise
from sidestep.notices import RunNotice
from sidestep.probes import RankOneProbes, SparseProbes
from sidestep.rules import Batch, NoiseStep, Task
from sidestep.rules.shared.density import advanced, density_and_count, first_density
from sidestep.rules.shared.flips import TernaryOptimizer, choose_by_threshold, choose_flips
from sidestep.rules.shared.trits import accumulate, along_probes, move, sign_and_median, subtract
from sidestep.steplog.codecs.parts import part_of_probes
from sidestep.update import Dense, Flips, Seeded
from tests.reference.noise_step_plain import plain_step

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))


def mlp(hidden=(4, 3), shape=(1, 2, 1), classes=2, bias=True, local=False, seed=0):
    net = ternary_mlp(shape, hidden, classes, bias, local)
    net.draw(Noise(seed))
    return net.double()


def conv(hidden=(3, 2), local=False, seed=0):
    net = ternary_conv_net((2, 5, 4), hidden, 3, True, local)
    net.draw(Noise(seed))
    return net.double()


def example(net_shape, classes, copies=1, seed=1):
    size = net_shape[0] * net_shape[1] * net_shape[2]
    image = Noise(seed).normal(size).double().view(1, *net_shape)
    return image.expand(copies, *net_shape).contiguous(), torch.full((copies,), classes - 1)


def floats(net):
    return {name: trits.double() for name, trits in net.named_parameters()}


def true_gradient(net, images, labels):
    weights = {name: trits.requires_grad_() for name, trits in floats(net).items()}
    loss = cross_entropy(functional_call(net, weights, (images,)), labels)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@dataclass
class EverySign:
    """Stands for rank-one probes: all combinations of signs, one after another."""

    shapes: tuple

    def __post_init__(self):
        bits = sum(rows + columns for rows, columns in self.shapes)
        self.table = torch.tensor(list(itertools.product([1, -1], repeat=bits)), dtype=torch.int8)
        self.count = len(self.table)

    def factors(self, layer, device="cpu", first=0, last=None):
        start = sum(rows + columns for rows, columns in self.shapes[:layer])
        rows, columns = self.shapes[layer]
        table = self.table[first:last]
        return table[:, start : start + rows], table[:, start + rows : start + rows + columns]


class TestRankOne:
    def test_the_mean_over_all_signs_is_the_gradient(self):
        net = mlp(hidden=(2,), bias=False)
        probes = EverySign(rank_one_shapes(net))
        images, labels = example((1, 2, 1), 2, probes.count)
        alpha, _ = rank_one_alignments(net, images, labels, probes)
        true = true_gradient(net, images[:1], labels[:1])
        for layer, name in enumerate(true):
            left, right = (f.double() for f in probes.factors(layer))
            mean = torch.einsum("k,kr,kc->rc", alpha, left, right) / probes.count
            torch.testing.assert_close(mean, true[name], rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("make", [mlp, conv])
    def test_every_alignment_is_the_derivative_of_its_example_s_loss(self, make):
        net = make()
        shape = (1, 2, 1) if make is mlp else (2, 5, 4)
        images = Noise(2).normal(4 * 40).double()[: 4 * shape[0] * shape[1] * shape[2]].view(4, *shape)
        labels = torch.tensor([0, 1, 1, 0])
        probes = RankOneProbes(Noise(5), rank_one_shapes(net), 8)
        alpha, loss = rank_one_alignments(net, images, labels, probes)
        torch.testing.assert_close(loss, cross_entropy(net(images), labels))
        for index in range(8):
            one = index % 4
            direction = {}
            for layer, (name, trits) in enumerate(net.named_parameters()):
                left, right = probes.factors(layer)
                direction[name] = torch.outer(left[index], right[index]).double().view(trits.shape)

            def loss_of(weights, one=one):
                return cross_entropy(functional_call(net, weights, (images[one : one + 1],)), labels[one : one + 1])

            _, expected = jvp(loss_of, (floats(net),), (direction,))
            torch.testing.assert_close(alpha[index], expected, rtol=1e-9, atol=1e-12)

    def test_probes_come_in_whole_batches(self):
        net = mlp()
        with pytest.raises(InputError, match="whole batches of 3, got 4"):
            rank_one_alignments(net, *example((1, 2, 1), 2, 3), RankOneProbes(Noise(0), rank_one_shapes(net), 4))

    def test_layers_that_data_cannot_be_followed_to_are_named(self):
        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(64, 64)

            def forward(self, x):
                return x + self.inner(x)

        net = ternary_own(lambda: nn.Sequential(nn.Flatten(), Residual()), (1, 8, 8), 4, False, False, Noise(0))
        with pytest.raises(InputError, match=r"stages.0.1.inner lies inside.*weight-probes"):
            check_chain(net)


class Twice(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class TestForeignChains:
    def test_modules_that_stand_in_a_chain_twice_and_own_forwards_are_followed(self):
        activation = nn.ReLU()
        parts = (nn.Flatten(), nn.Linear(64, 6), activation, nn.Linear(6, 5), activation)
        net = ternary_own(lambda: nn.Sequential(*parts), (1, 8, 8), 4, False, False, Noise(0)).double()
        images, labels = Noise(1).normal(5 * 64).double().view(5, 1, 8, 8), torch.arange(5) % 4
        _, loss = activity_gradients(net, images, labels, Noise(2), 1)
        torch.testing.assert_close(loss, cross_entropy(net(images), labels))
        cut = ternary_own(lambda: nn.Sequential(*parts), (1, 8, 8), 4, False, True, Noise(0))
        assert [[type(part).__name__ for part in stage] for stage in cut.stages][1] == ["TernaryLinear", "ReLU"]
        odd = ternary_own(lambda: Twice(nn.Flatten(), nn.Linear(64, 6)), (1, 8, 8), 4, False, False, Noise(0))
        with pytest.raises(InputError, match=r"no nn.Sequential"):
            check_chain(odd)

    def test_a_local_loss_trains_one_layer(self):
        own = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)))
        with pytest.raises(InputError, match="part 2 of the module has 2 ternary layers"):
            ternary_own(lambda: own, (1, 8, 8), 4, False, True, Noise(0))

    def test_dropout_in_a_forward_pass_is_a_function_of_the_step(self):
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(64, 8)

            def forward(self, x):
                return nn.functional.dropout(self.inner(x.flatten(1)).relu(), 0.5, self.training)

        rule = NoiseStep(estimator="weight-probes", codec="flips", probes=4)
        net = rule.build(TASK, Noise(0), None, Noisy)
        batch = Batch(Noise(1).normal(8 * 64).view(8, 1, 8, 8), torch.arange(8) % 4)
        one, two = (rule.estimate(net, batch, Noise(2).at(3)) for _ in range(2))
        assert torch.equal(one.coefs, two.coefs)


class EverySignNoise:
    """Stands for Noise: hands out all sign combinations for two layers, whatever the substream."""

    def __init__(self, widths, names):
        self.table = torch.tensor(list(itertools.product([1, -1], repeat=sum(widths))), dtype=torch.int8)
        self.columns = dict(zip(names, self.table.split(widths, dim=1), strict=True))

    def stream(self, name):
        return replace_columns(self.columns[name])

    def sub(self, index):
        return self


def replace_columns(columns):
    class Drawn:
        def sub(self, index):
            return self

        def signs(self, n, device="cpu"):
            assert n == columns.numel()
            return columns.reshape(-1)

    return Drawn()


class TestActivity:
    def test_the_mean_over_all_signs_is_the_gradient(self):
        net = mlp(hidden=(4, 3))
        noise = EverySignNoise([4, 3], ["stages.0.1", "stages.1.0"])
        images, labels = example((1, 2, 1), 2, len(noise.table))
        found, loss = activity_gradients(net, images, labels, noise, 1)
        true = true_gradient(net, images[:1], labels[:1])
        assert found.keys() == true.keys()
        for name in true:
            torch.testing.assert_close(found[name], true[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(loss, cross_entropy(net(images), labels))

    def test_many_tangents_of_a_conv_net_come_near_the_gradient(self):
        net = conv()
        images, labels = Noise(3).normal(3 * 40).double().view(3, 2, 5, 4), torch.tensor([0, 1, 2])
        true = true_gradient(net, images, labels)
        found, _ = activity_gradients(net, images, labels, Noise(1), 1500)
        last = "heads.0.2.weight"
        torch.testing.assert_close(found[last], true[last], rtol=1e-9, atol=1e-12)  # exact, whatever the draws
        for name in (name for name in true if name.endswith("weight")):  # a bias before a norm hardly matters
            cosine = torch.nn.functional.cosine_similarity(found[name].flatten(), true[name].flatten(), dim=0)
            slope = (found[name] * true[name]).sum() / true[name].square().sum()
            assert cosine > 0.93, name
            assert slope == pytest.approx(1, abs=0.1), name


class TestLocal:
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_gradients_are_those_of_each_stage_s_own_loss(self, smoothing):
        net = mlp(hidden=(5, 4), classes=3, local=True)
        images, labels = Noise(3).normal(12).double().view(6, 1, 2, 1), torch.tensor([0, 1, 2, 0, 1, 1])
        found, losses = local_gradients(net, images, labels, smoothing)
        weights = {name: trits.requires_grad_() for name, trits in floats(net).items()}
        features = images.flatten(1)
        for index, width in enumerate((5, 4)):
            weight, bias = (weights[f"stages.{index}.{1 - index}.{kind}"] for kind in ("weight", "bias"))
            before = (features @ weight.T + bias) * (1.5 / weight.shape[1]) ** 0.5
            features = layer_norm(before, (width,)).relu()
            head, shift = weights[f"heads.{index}.weight"], weights[f"heads.{index}.bias"]
            logits = (features @ head.T + shift) * (1.5 / width) ** 0.5
            loss = cross_entropy(logits, labels, label_smoothing=smoothing)
            torch.testing.assert_close(losses[f"stage {index}: cross-entropy"], loss.detach())
            own = {n: weights[n] for n in weights if n.split(".")[1] == str(index)}
            for name, true in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
                torch.testing.assert_close(found[name], true, rtol=1e-10, atol=1e-12)
            features = features.detach()
        assert found.keys() == weights.keys()

    def test_a_stage_s_loss_reaches_no_other_stage(self):
        net = conv(local=True)
        images, labels = Noise(3).normal(3 * 40).double().view(3, 2, 5, 4), torch.tensor([0, 1, 2])
        before, _ = local_gradients(net, images, labels)
        net.heads[1][2].weight.data.mul_(-1)
        after, _ = local_gradients(net, images, labels)
        for name in before:
            same = torch.equal(before[name], after[name])
            assert same == (name.split(".")[1] == "0"), name


class TestSignAndMedian:
    @given(st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=1, max_size=40, unique_by=abs))
    @settings(max_examples=200, deadline=None)
    def test_half_are_kept_and_they_are_the_larger_half(self, values):
        coefs = torch.tensor(values, dtype=torch.float64)
        trits = sign_and_median(coefs)
        assert torch.equal(trits, sign_and_median(7 * coefs))
        assert torch.equal(trits, -sign_and_median(-coefs))
        kept = trits != 0
        assert kept.sum() == (len(values) + 1) // 2 - (1 if 0 in values and len(values) == 1 else 0)
        assert torch.equal(trits[kept], coefs[kept].sign().to(torch.int8))
        if kept.any() and (~kept).any():
            assert coefs[kept].abs().min() >= coefs[~kept].abs().max()

    def test_the_median_is_that_of_all_probes_not_of_a_part(self):
        coefs = torch.tensor([1.0, -2.0, 3.0, -4.0, 50.0, 60.0, 70.0, -80.0])
        assert sign_and_median(coefs).tolist() == [0, 0, 0, 0, 1, 1, 1, -1]

    def test_probes_that_are_all_zero_move_nothing(self):
        assert sign_and_median(torch.zeros(6)).tolist() == [0] * 6


def weights_of(net):
    return torch.cat([trits.flatten() for trits in ternary_parameters(net).values()]).long()


class TestMoves:
    @pytest.mark.parametrize("make", [
        lambda net: SparseProbes(Noise(3), weights_of(net).numel(), 40, 0.2),
        lambda net: RankOneProbes(Noise(3), rank_one_shapes(net), 5),
    ])  # fmt: skip
    def test_the_clamped_sum_is_that_of_dense_probes(self, make):
        net = mlp()
        probes, before = make(net), weights_of(net)
        trits = (Noise(4).integers(probes.count, 3) - 1).to(torch.int8)
        position, value = probes.weighted_sum(trits)
        total = torch.zeros_like(before)
        total[position] = value
        subtract(net, trits, probes)
        assert torch.equal(weights_of(net), (before - total.clamp(-1, 1)).clamp(-1, 1))
        assert (total.abs() > 1).any()

    @pytest.mark.parametrize(("kind", "threshold", "dtype"), [
        ("sparse", 4, torch.int8), ("rank-one", 20, torch.int8), ("rank-one", 4, torch.int8),
        ("rank-one", 130, torch.int16), ("part", 20, torch.int8),
    ])  # fmt: skip
    def test_accumulators_are_those_of_a_plain_loop(self, kind, threshold, dtype):
        net = mlp()
        optimizer = TernaryOptimizer([(list(net.parameters()), 0.1)])
        plain, evidence, moved = weights_of(net), torch.zeros_like(weights_of(net), dtype=torch.int64), 0
        count = 12 if threshold < 100 else 700
        for step in range(30):
            probes = SparseProbes(Noise(3).at(step), len(plain), count, 0.2)
            if kind != "sparse":
                probes = RankOneProbes(Noise(3).at(step), rank_one_shapes(net), count)
            if kind == "part":
                probes = part_of_probes(probes, 7, 29)
            trits = (Noise(4).at(step).integers(count, 3) - 1).to(torch.int8)
            accumulate(net, trits, probes, optimizer, threshold)
            position, value = probes.weighted_sum(trits)
            for p, v in zip(position.tolist(), value.tolist(), strict=True):
                evidence[p] += v
                if abs(evidence[p]) >= threshold:
                    plain[p] = max(-1, min(1, plain[p] - (1 if evidence[p] > 0 else -1)))
                    evidence[p] = 0
                    moved += 1
            assert torch.equal(weights_of(net), plain)
        assert moved > 5
        assert {state["evidence"].dtype for state in optimizer.state.values()} == {dtype}

    @pytest.mark.parametrize(("threshold", "dtype"), [(127, torch.int8), (128, torch.int16), (40_000, torch.int32)])
    def test_accumulators_are_as_wide_as_the_threshold_needs(self, threshold, dtype):
        net = mlp()
        optimizer = TernaryOptimizer([(list(net.parameters()), 0.1)])
        accumulate(net, torch.ones(50, dtype=torch.int8), SparseProbes(Noise(0), 35, 50, 1.0), optimizer, threshold)
        assert {state["evidence"].dtype for state in optimizer.state.values()} == {dtype}

    def test_positions_of_another_net_are_refused(self):
        with pytest.raises(InputError, match="another net"):
            move(mlp(), torch.tensor([3, 10_000]), torch.tensor([1, 1]))

    def test_projections_are_inner_products(self):
        net = mlp()
        gradients = {
            name: Noise(i).normal(t.numel()).view(t.shape) for i, (name, t) in enumerate(net.named_parameters())
        }
        probes = SparseProbes(Noise(9), weights_of(net).numel(), 6, 0.3)
        found = probes.entries()
        dense = torch.zeros(6, probes.weights).index_put_((found.probe, found.position), found.sign.float())
        expected = dense @ torch.cat([g.flatten() for g in gradients.values()])
        torch.testing.assert_close(along_probes(net, gradients, probes), expected)


class TestFlips:
    def setup_method(self):
        self.net = ternary_mlp((1, 5, 4), (10,), 2, bias=False, local=False)  # 200 and 20 weights
        self.net.draw(Noise(0))
        self.optimizer = TernaryOptimizer([(list(self.net.parameters()), 0.05)])

    def gradients(self, seed=1):
        return {n: Noise(seed).normal(t.numel()).view(t.shape) for n, t in self.net.named_parameters()}

    def test_the_largest_share_that_can_move_is_chosen_and_its_momentum_cleared(self):
        gradients = self.gradients()
        flips = choose_flips(self.net, gradients, self.optimizer, 0.9)
        assert torch.equal(flips.positions, flips.positions.sort().values)
        assert ((flips.positions < 200).sum(), len(flips.positions)) == (10, 11)
        weights = torch.cat([t.flatten() for t in self.net.parameters()])
        for (name, trits), offset in zip(self.net.named_parameters(), (0, 200), strict=True):
            gradient = gradients[name].flatten()
            can = -gradient.sign() != trits.flatten()
            count = {0: 10, 200: 1}[offset]
            best = (gradient.abs() * can).topk(count).indices.sort().values + offset
            here = (flips.positions >= offset) & (flips.positions < offset + trits.numel())
            assert torch.equal(flips.positions[here], best)
            assert torch.equal(flips.moves[here], -gradient[best - offset].sign().to(torch.int8))
            momentum = self.optimizer.state[trits]["momentum"].flatten()
            expected = -gradient / gradient.square().mean().sqrt()
            expected[best - offset] = 0
            torch.testing.assert_close(momentum, expected)
        assert ((weights[flips.positions] + flips.moves).abs() <= 1).all()

    def test_a_layer_that_flips_less_than_one_weight_a_step_waits_until_one_is_due(self):
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0125  # 2.5 of the stage's 200 weights, and a quarter of one of the head's 20
        seen = [choose_flips(self.net, self.gradients(seed), self.optimizer, 0.9).positions for seed in range(8)]
        assert [int((positions < 200).sum()) for positions in seen] == [2, 3] * 4
        assert [int((positions >= 200).sum()) for positions in seen] == [0, 0, 0, 1] * 2

    def test_heads_can_flip_at_a_share_of_their_own(self):
        rule = NoiseStep(hidden=(20,), flip_share=0.01, head_share=0.1)
        net = rule.build(TASK, Noise(0), None, None)  # 64 * 20 and 20 * 4 weights
        batch = Batch(Noise(1).normal(8 * 64).view(8, 1, 8, 8), torch.arange(8) % 4)
        optimizer = rule.optimizer(net)
        flips = rule.decide(net, rule.estimate(net, batch, Noise(2)), optimizer)
        assert [int((flips.positions < 1280).sum()), int((flips.positions >= 1280).sum())] == [12, 8]

    def test_momentum_builds_up(self):
        gradients = self.gradients()
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        for _ in range(3):
            assert len(choose_flips(self.net, gradients, self.optimizer, 0.5).positions) == 0
        name, trits = next(self.net.named_parameters())
        expected = -gradients[name] / gradients[name].square().mean().sqrt() * 1.75
        torch.testing.assert_close(self.optimizer.state[trits]["momentum"], expected)

    def test_a_gradient_of_zero_moves_nothing(self):
        zero = {name: torch.zeros(t.shape) for name, t in self.net.named_parameters()}
        assert len(choose_flips(self.net, zero, self.optimizer, 0.9).positions) == 0

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
    def test_a_gradient_that_is_not_finite_is_named_and_leaves_no_trace(self, wrong):
        gradients = self.gradients()
        name, trits = next(self.net.named_parameters())
        gradients[name][0, 0] = wrong
        with pytest.raises(NonFiniteError, match=f"gradient of {name} is not finite"):
            choose_flips(self.net, gradients, self.optimizer, 0.9)
        assert "momentum" not in self.optimizer.state[trits]

    @pytest.mark.parametrize("factor", [1e-25, 1e25])
    def test_the_size_of_the_gradient_does_not_matter(self, factor):
        twin = TernaryOptimizer([(list(self.net.parameters()), 0.05)])
        plain = choose_flips(self.net, self.gradients(), self.optimizer, 0.9)
        scaled = {name: gradient * factor for name, gradient in self.gradients().items()}
        assert torch.equal(plain.positions, choose_flips(self.net, scaled, twin, 0.9).positions)

    def test_the_optimiser_has_no_step_of_its_own(self):
        with pytest.raises(NotImplementedError):
            self.optimizer.step()


class TestBop:
    """Helwegen et al. (2019), algorithm 1, for weights of -1, 0 and 1."""

    def setup_method(self):
        self.net = ternary_mlp((1, 5, 4), (10,), 2, bias=False, local=False)
        self.net.draw(Noise(0))
        self.optimizer = TernaryOptimizer([(list(self.net.parameters()), 0.25)])

    def gradients(self, seed):
        return {n: Noise(seed).normal(t.numel()).view(t.shape) for n, t in self.net.named_parameters()}

    def test_it_is_a_plain_loop_over_weights(self):
        weights = weights_of(self.net).tolist()
        means = [0.0] * len(weights)
        for step in range(12):
            gradients = self.gradients(step)
            flips = choose_by_threshold(self.net, gradients, self.optimizer, 0.2)
            for place, slope in enumerate(torch.cat([g.flatten() for g in gradients.values()]).tolist()):
                means[place] = 0.75 * means[place] + 0.25 * slope
                if abs(means[place]) > 0.2 and means[place] * weights[place] >= 0:
                    weights[place] += -1 if means[place] > 0 else 1
            move(self.net, flips.positions, flips.moves)
            assert weights_of(self.net).tolist() == weights

    def test_weights_of_one_sign_or_the_other_flip_where_the_paper_flips_them(self):
        for trits in self.net.parameters():
            trits.data.copy_(Noise(3).signs(trits.numel()).view(trits.shape))
        before, gradients = weights_of(self.net), self.gradients(1)
        flips = choose_by_threshold(self.net, gradients, self.optimizer, 0.1)
        mean = 0.25 * torch.cat([g.flatten() for g in gradients.values()])
        wanted = ((mean.abs() > 0.1) & (mean.sign() == before.sign())).nonzero()[:, 0]
        assert torch.equal(flips.positions, wanted)
        assert torch.equal(flips.moves, -before[wanted])

    def test_the_average_is_not_cleared_so_a_weight_goes_all_the_way(self):
        name, trits = next(self.net.named_parameters())
        trits.data.fill_(1)
        gradient, seen = {name: torch.ones(trits.shape)}, []
        for _ in range(4):
            flips = choose_by_threshold(self.net, gradient, self.optimizer, 0.1)
            move(self.net, flips.positions, flips.moves)
            seen.append(int(trits[0, 0]))
        assert seen == [0, -1, -1, -1]

    def test_a_rate_that_has_fallen_to_zero_moves_nothing_that_stood(self):
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        assert len(choose_by_threshold(self.net, self.gradients(1), self.optimizer, 0.0).positions) == 0

    def test_a_gradient_that_is_not_finite_is_named(self):
        gradients = self.gradients(1)
        name = next(iter(gradients))
        gradients[name][0, 0] = float("nan")
        with pytest.raises(NonFiniteError, match=f"gradient of {name} is not finite"):
            choose_by_threshold(self.net, gradients, self.optimizer, 0.1)

    def test_it_learns(self):
        options = Options(epochs=6, decay="cosine")
        rule = NoiseStep(update="bop", bop_rate=0.01, bop_threshold=1e-4, hidden=(64, 64))
        assert train(rule, "digits", options).result["test_accuracy"] > 0.88


class TestDensity:
    def test_two_stages_as_in_the_paper(self):
        schedule, seen = torch.zeros(4), []
        for loss in (17.0, 2.5, 1.9, 2.4, 0.9, 3.0):
            seen.append(density_and_count("two-stage", schedule, 16e-4, 128, 1024, 10_000))
            schedule = advanced("two-stage", schedule, loss)
        assert [round(1e4 * density) for density, _ in seen] == [16, 16, 16, 4, 4, 1]
        assert {count for _, count in seen} == {128}

    def test_the_loss_triggered_schedule_halves_the_density_and_doubles_the_probes_when_the_loss_rises(self):
        schedule, seen = torch.zeros(4), []
        for step in range(120):
            schedule = advanced("loss-triggered", schedule, [3.0, 2.0, 2.5, 2.4, 2.6, 2.7][step // 20])
            seen.append(density_and_count("loss-triggered", schedule, 0.01, 300, 1024, 250))
        assert seen[58] == (0.01, 300)
        assert seen[59] == seen[98] == (0.005, 600)
        assert seen[99] == (0.004, 1024)  # not below 1 / d, nor above the most
        assert seen[119] == (0.004, 1024)

    @pytest.mark.parametrize("given", [0.0, 1.5, 0.0005, float("nan")])
    def test_densities_that_cannot_work_name_the_smallest_useful_one(self, given):
        with pytest.raises(InputError, match=r"1/d = 0.001"):
            first_density(given, 1000)

    @pytest.mark.parametrize("given", [0.0, 1.5, 1e-9, float("nan")])
    @pytest.mark.parametrize("estimator", ["weight-probes", "local-losses"])
    def test_such_densities_are_refused_before_training(self, given, estimator):
        with pytest.raises(InputError, match=r"for the 544 weights of this net is 1/d = 0.0018"):
            NoiseStep(density=given, estimator=estimator, hidden=(8,)).build(TASK, Noise(0), None, None)


class TestChoices:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, ("flips", "flips")),
            ({"estimator": "weight-probes"}, ("trits", "clamped-sum")),
            ({"estimator": "rank-one"}, ("trits", "accumulators")),
            ({"estimator": "activity-probes"}, ("flips", "flips")),
            ({"codec": "trits"}, ("trits", "clamped-sum")),
            ({"update": "accumulators"}, ("trits", "accumulators")),
            ({"update": "bop"}, ("flips", "bop")),
            ({"update": "sets"}, ("flips", "sets")),
            ({"estimator": "weight-probes", "update": "flips"}, ("flips", "flips")),
            ({"estimator": "rank-one", "codec": "flips"}, ("flips", "flips")),
        ],
    )
    def test_auto_fits_the_rest(self, options, expected):
        assert NoiseStep(**options).choices == expected

    @pytest.mark.parametrize("wrong", [("trits", "flips"), ("flips", "clamped-sum"), ("flips", "accumulators")])
    def test_choices_that_contradict_are_refused(self, wrong):
        with pytest.raises(InputError, match=f"codec {wrong[0]} does not go with update {wrong[1]}"):
            NoiseStep(codec=wrong[0], update=wrong[1])

    @pytest.mark.parametrize("estimator", ["local-losses", "weight-probes", "rank-one", "activity-probes"])
    @pytest.mark.parametrize("update", ["clamped-sum", "accumulators", "flips", "sets", "bop"])
    @pytest.mark.parametrize("net", ["mlp", "conv"])
    def test_every_estimator_goes_with_every_update_and_every_net(self, estimator, update, net):
        rule = NoiseStep(
            net=net,
            hidden=(6, 5),
            estimator=estimator,
            update=update,
            probes=8,
            bias=True,
            threshold=1,
            flip_share=0.02,
        )
        made = rule.build(TASK, Noise(0), None, None)
        optimizer, before = rule.optimizer(made), weights_of(made)
        batch = Batch(Noise(1).normal(8 * 64).view(8, 1, 8, 8), torch.arange(8) % 4)
        for step in range(3):
            update = rule.decide(made, rule.estimate(made, batch, Noise(2).at(step)), optimizer)
            assert isinstance(update, Flips if rule.choices[0] == "flips" else Seeded)
            rule.apply(made, update, optimizer)
        after = weights_of(made)
        assert not torch.equal(before, after)
        assert after.abs().max() <= 1
        assert {p.dtype for p in made.parameters()} == {torch.int8}

    @pytest.mark.parametrize(
        "options",
        [
            {"probes": 0},
            {"tangents": 0},
            {"threshold": 0},
            {"momentum": 1.0},
            {"set_size": 0},
            {"set_size": 257},
            {"bop_rate": 0.0},
            {"bop_threshold": -1.0},
            {"memory": 0},
            {"head_share": 0.0},
        ],
    )
    def test_values_that_cannot_work_are_refused(self, options):
        with pytest.raises(InputError, match=next(iter(options))):
            NoiseStep(**options)

    def test_another_kind_of_update_is_refused(self):
        rule = NoiseStep(hidden=(4,))
        net = rule.build(TASK, Noise(0), None, None)
        with pytest.raises(InputError, match="got Dense"):
            rule.apply(net, Dense({}), rule.optimizer(net))
        with pytest.raises(InputError, match="got Dense"):
            replace(rule, codec="trits").decide(net, Dense({}), rule.optimizer(net))


@pytest.mark.parametrize("bias", [False, True])
def test_ten_steps_are_those_of_the_plain_reference(bias):
    rule = NoiseStep(estimator="weight-probes", hidden=(8, 6), probes=32, density=0.02, bias=bias)
    net, twin = (rule.build(TASK, Noise(0), None, None) for _ in range(2))
    optimizer, noise = rule.optimizer(net), Noise(3).stream("estimate")
    labels = torch.arange(16) % 4
    images = (Noise(1).normal(16 * 64).view(16, 1, 8, 8) + labels[:, None, None, None]).double()
    start = weights_of(net)
    for step in range(10):
        update = rule.decide(net, rule.estimate(net, Batch(images, labels), noise.at(step)), optimizer)
        found = update.probes.entries()
        rows = torch.zeros(32, len(start)).index_put_((found.probe, found.position), found.sign.float())
        assert torch.equal(plain_step(twin, images, labels, rows), update.coefs.long())
        rule.apply(net, update, optimizer)
        assert torch.equal(weights_of(net), weights_of(twin))
    assert not torch.equal(start, weights_of(net))


def test_own_modules_become_ternary_and_train(tmp_path):
    def own():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())

    for estimator in ("local-losses", "weight-probes", "activity-probes"):
        rule = NoiseStep(estimator=estimator, probes=16)
        run = train(rule, data.load("digits"), Options(epochs=2, batch=256), module=own)
        assert {p.dtype for p in run.net.parameters()} == {torch.int8}
        assert 0 <= run.result["test_accuracy"] <= 1


def test_batch_norm_in_a_module_is_refused_with_what_to_take():
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))
    with pytest.raises(InputError, match="GroupNorm"):
        train(NoiseStep(), data.load("digits"), Options(epochs=1), module=own)


def test_noise_of_a_step_is_a_function_of_the_step():
    """The estimate's probes are those that the seed, the stream and the step give, with nothing kept in between."""
    rule = NoiseStep(estimator="weight-probes", hidden=(8,), probes=4)
    net = rule.build(TASK, Noise(0), None, None)
    batch = Batch(Noise(1).normal(8 * 64).view(8, 1, 8, 8), torch.arange(8) % 4)
    noise = Noise(2).stream("estimate")
    seen = [rule.estimate(net, batch, noise.at(step)).probes for step in (5, 6, 5)]
    assert seen[0] == seen[2] != seen[1]
    assert seen[0].noise == noise.at(5).stream("probes")


@pytest.mark.filterwarnings("always:codec = trits with")
def test_trits_of_a_dense_gradient_are_noted_once_where_a_net_begins(tmp_path):
    quick = {"hidden": (8,), "probes": 32}
    with pytest.warns(RunNotice, match=r"estimator = local-losses: .* of 592 weights is projected on 32 random probes"):
        train(NoiseStep(codec="trits", **quick), "digits", Options(steps=1, out=tmp_path / "run"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RunNotice)
        load_run(tmp_path / "run")
        for rule in (NoiseStep(estimator="weight-probes", **quick), NoiseStep(codec="flips", **quick)):
            train(rule, "digits", Options(steps=1))
