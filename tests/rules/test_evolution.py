"""Evolution strategies and SPSA: unbiased, antithetic, blind to monotone transforms, and equal to plain loops."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from sidestep import Options, data, train
from sidestep.checkpoint import optimizer_tensors, restore_optimizer
from sidestep.errors import InputError
from sidestep.gradients.directions import Directions, weighted_directions
from sidestep.gradients.pairs import paired_logits
from sidestep.gradients.rank_one import Members, _both_ways, rank_one_logits
from sidestep.nets.stages.staged import staged_mlp
from sidestep.noise import Noise
from sidestep.rules import Batch, Task
from sidestep.rules.evolution import Evolution
from sidestep.rules.forward_gradient import ForwardGradient
from sidestep.rules.shared.forward_only import OBJECTIVES, OPTIMIZERS, fitness_of
from sidestep.rules.shared.trits import as_gradients
from sidestep.rules.spsa import SPSA
from sidestep.update import Seeded

TASK = Task((1, 4, 4), tuple("abc"), (0.0,), (1.0,))
RULES = {
    "example": Evolution(hidden=(8, 6)),
    "input": Evolution(hidden=(8, 6), columns="input"),
    "group": Evolution(hidden=(8, 6), per="group", group=4),
    "full-rank": Evolution(hidden=(8, 6), per="group", group=4, noise_kind="full-rank", population=4),
    "spsa": SPSA(hidden=(8,), pairs=2, sides="both", optimizer_kind="sgd", learning_rate=1e-3),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def batch(size=8, seed=0):
    noise = Noise(seed).stream("batch")
    return Batch(noise.normal(size * 16).view(size, 1, 4, 4), noise.stream("labels").integers(size, 3))


def doubles(size=8):
    given = batch(size)
    return Batch(given.inputs.double(), given.targets)


def build(rule, module=None):
    return rule.build(TASK, Noise(0), None, module)


def estimate(rule, net, given=None, step=0):
    return rule.estimate(net, given or batch(), Noise(0).stream("estimate").at(step))


class Noisy(nn.Module):
    """Draws in its forward pass, but is no layer that could be refused by its kind."""

    def forward(self, values):
        return F.dropout(values.flatten(1), 0.5, self.training)


def gradients(rule, net, given=None, step=0):
    """An estimate by parameter name; SPSA's is one number per pair, and its directions are drawn again."""
    update = estimate(rule, net, given, step)
    return as_gradients(net, update) if isinstance(update, Seeded) else update.gradients


def true_gradient(net, given):
    loss = F.cross_entropy(net(given.inputs), given.targets)
    parameters = dict(net.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@dataclass
class GivenSigns:
    """Directions read off one sign vector, in the order in which they are asked for first."""

    signs: tuple[int, ...]

    def __post_init__(self):
        self.drawn, self.used = {}, 0

    def draw(self, name, shape, index, like):
        if (name, index) not in self.drawn:
            count = math.prod(shape)
            values = self.signs[self.used : self.used + count]
            self.drawn[name, index] = torch.tensor(values, dtype=like.dtype).view(tuple(shape))
            self.used += count
        return self.drawn[name, index].clone()

    def weighted(self, name, coefs, first, like):
        return sum(coef * self.draw(name, like.shape, index, like) for index, coef in enumerate(coefs, first))


def sign_vectors(count):
    return itertools.product((-1, 1), repeat=count)


def tiny(examples=1):
    """2 inputs, 1 hidden unit, 2 classes: 3 + 4 parameters; ReLU away from its kink."""
    with Noise(3).torch_seeded():
        net = staged_mlp((1, 1, 2), (1,), 2, norm=False).double()
    net.stages[0][1].bias.data.fill_(2.0)
    images = torch.tensor([[0.3, -0.8], [-0.5, 0.2]], dtype=torch.float64).view(2, 1, 1, 2)
    return net, Batch(images[:examples], torch.tensor([1, 0])[:examples])


PAIR = {"eps": 1e-5, "population": 2}  # the population of one pair
OVER_ALL_SIGNS = {  # rule, and the signs that one step draws for the tiny net: 7 weights; or rows, columns, biases
    "spsa": (SPSA(eps=1e-5, pairs=1, sides="both", learning_rate=1e-3), 7),
    "full-rank": (Evolution(noise_kind="full-rank", per="group", group=1, **PAIR), 7),
    "rank-1": (Evolution(**PAIR), 9),
    "rank-1 group": (Evolution(per="group", group=1, **PAIR), 9),
    "rank-1 input": (Evolution(columns="input", **PAIR), 3),
    "rank-1 controlled": (Evolution(control="responses", norm=False, **PAIR), 9),
    "rank-1 input controlled": (Evolution(columns="input", control="responses", norm=False, **PAIR), 3),
}


def mean_over_all_signs(rule, count, monkeypatch, examples=1):
    """The mean of what `estimate` gives for the tiny net, over every sign vector."""
    net, given = tiny(examples)
    drawn, sums = [], {}
    for name in ("Directions", "directions_along"):
        place = f"{type(rule).__module__}.{name}"
        monkeypatch.setattr(place, lambda *_: drawn.append(GivenSigns(signs)) or drawn[-1], raising=False)
    monkeypatch.setattr("sidestep.rules.shared.trits.directions_along", lambda *_: drawn[-1])
    for signs in sign_vectors(count):  # noqa: B007 (the lambda above reads it)
        for name, part in gradients(rule, net, given).items():
            sums[name] = sums.get(name, 0) + part / 2**count
    assert {directions.used for directions in drawn} == {count}
    return sums


class TestUnbiased:
    @pytest.mark.parametrize(("rule", "count"), OVER_ALL_SIGNS.values(), ids=OVER_ALL_SIGNS)
    def test_the_mean_over_all_sign_vectors_is_the_gradient(self, rule, count, monkeypatch):
        found = mean_over_all_signs(rule, count, monkeypatch)
        exact = true_gradient(*tiny())
        assert found.keys() == exact.keys()
        for name, gradient in exact.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-9)

    def test_a_control_fitted_to_the_other_example_leaves_the_mean(self, monkeypatch):
        rule = OVER_ALL_SIGNS["rank-1 input controlled"][0]
        found = mean_over_all_signs(rule, 6, monkeypatch, examples=2)
        for name, gradient in true_gradient(*tiny(2)).items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("name", ["spsa", "full-rank"])
    def test_the_bias_falls_with_the_square_of_eps(self, name, monkeypatch):
        exact = torch.cat([gradient.flatten() for gradient in true_gradient(*tiny()).values()])
        errors, sizes = [], (0.02, 0.01, 0.005)
        for eps in sizes:
            found = mean_over_all_signs(replace(OVER_ALL_SIGNS[name][0], eps=eps), 7, monkeypatch)
            errors.append(float((torch.cat([part.flatten() for part in found.values()]) - exact).norm()))
        for (larger, smaller), (big, small) in zip(itertools.pairwise(sizes), itertools.pairwise(errors), strict=True):
            assert math.log(big / small) / math.log(larger / smaller) == pytest.approx(2, abs=0.05)

    @pytest.mark.parametrize(
        "rule",
        [
            SPSA(hidden=(8,), pairs=3, sides="both", learning_rate=1e-3, distribution="rademacher"),
            replace(RULES["full-rank"], population=6),
        ],
    )
    def test_more_pairs_are_the_mean_of_what_each_pair_says(self, rule):
        """By a plain loop over shifted copies of the net."""
        net, given = build(rule).double(), doubles()
        directions = Directions(Noise(0).stream("estimate").stream("directions"))
        size = len(given.targets) if isinstance(rule, SPSA) else rule.group
        groups = [slice(first, first + size) for first in range(0, len(given.targets), size)]
        wanted = {name: 0 for name, _ in net.named_parameters()}
        for index in range(3 * len(groups)):
            rows = groups[index % len(groups)]
            noise = {n: directions.draw(n, p.shape, index, p) for n, p in net.named_parameters()}
            losses = []
            for sign in (1, -1):
                shifted = {n: p.detach() + sign * rule.eps * noise[n] for n, p in net.named_parameters()}
                losses.append(
                    F.cross_entropy(functional_call(net, shifted, (given.inputs[rows],)), given.targets[rows])
                )
            for name, direction in noise.items():
                wanted[name] += (losses[0] - losses[1]) / (2 * rule.eps) * direction / (3 * len(groups))
        for name, gradient in gradients(rule, net, given).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-6, atol=1e-9)


def own_conv():
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.GroupNorm(1, 3, affine=False), nn.Tanh())


class TestRankOneAgainstALoop:
    @pytest.mark.parametrize(
        ("rule", "module"),
        [
            (RULES["example"], None),
            (RULES["group"], None),
            (replace(RULES["example"], distribution="gaussian"), None),
            (RULES["group"], own_conv),
            (replace(RULES["example"], fitness="z-score"), own_conv),
        ],
        ids=["example", "group", "gaussian", "conv group", "conv example"],
    )
    def test_every_member_is_the_net_at_shifted_weights(self, rule, module):
        given, size = doubles(), 1 if rule.per == "example" else rule.group
        net = build(rule, module).double()
        found = estimate(rule, net, given)
        members = Members(rule.population // 2, len(given.targets) // size, size)
        directions = Directions(Noise(0).stream("estimate").stream("directions"), rule.distribution)
        layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        noise = {}
        for name, layer in layers.items():
            outputs, columns = layer.weight.shape[0], layer.weight[0].numel()
            rows = directions.draw(f"{name}.rows", (members.count, outputs), 0, layer.weight)
            across = directions.draw(f"{name}.columns", (members.count, columns), 0, layer.weight)
            noise[f"{name}.weight"] = torch.einsum("ko,ki->koi", rows, across).view(-1, *layer.weight.shape)
            noise[f"{name}.bias"] = directions.draw(f"{name}.bias", (members.count, outputs), 0, layer.weight)
        losses = torch.zeros(2, members.count, dtype=torch.float64)
        for side, member in itertools.product((0, 1), range(members.count)):
            step = rule.eps * (1 - 2 * side)
            shifted = {n: p + step * noise[n][member] for n, p in net.named_parameters()}
            rows = slice((member % members.groups) * size, (member % members.groups + 1) * size)
            logits = functional_call(net, shifted, (given.inputs[rows],))
            losses[side, member] = F.cross_entropy(logits, given.targets[rows]).detach()
        plus, minus = fitness_of(losses, rule.fitness)
        coefs = (plus - minus) / (2 * rule.eps * members.count)
        assert coefs.abs().max() > 0
        for name in found.gradients:
            plain = torch.einsum("k,k...->...", coefs, noise[name])
            torch.testing.assert_close(found.gradients[name], plain, rtol=1e-8, atol=1e-10)

    def test_multiplying_after_the_first_layer_changes_nothing(self):
        net, given = build(RULES["group"]).double(), doubles()
        members, directions = Members(3, 2, 4), Directions(Noise(1))
        with torch.no_grad():
            one, two = (
                rank_one_logits(net, given.inputs, members, directions, 0.1, multiply_late=late)[0]
                for late in (True, False)
            )
        torch.testing.assert_close(one, two)

    def test_input_columns_shift_the_weights_along_the_input(self):
        net, given = build(RULES["input"]).double(), doubles(1)
        directions, first = Directions(Noise(1)), build(RULES["input"]).double().stages[0][1]
        seen = []
        hook = net.stages[0][1].register_forward_hook(lambda layer, inputs, output: seen.append(output))
        with torch.no_grad():
            logits, factors = rank_one_logits(net, given.inputs, Members(1, 1, 1), directions, 0.1, True)
        hook.remove()
        length = (given.inputs.square().sum() + 1).sqrt()
        rows = factors["stages.0.1"].rows
        torch.testing.assert_close(factors["stages.0.1"].columns[0], given.inputs.flatten() / length)
        shifted = first.weight + 0.1 * rows.T @ factors["stages.0.1"].columns
        bias = first.bias + 0.1 * factors["stages.0.1"].bias[0]
        moved = F.linear(given.inputs.flatten(1), shifted, bias)
        torch.testing.assert_close(moved - seen[0][:1], 0.1 * length * rows)
        assert logits.shape == (2, 1, 1, 3)


class TestFitness:
    def test_ranks_ignore_increasing_functions_of_the_loss(self, monkeypatch):
        rule = replace(RULES["group"], fitness="ranks")
        net = build(rule).double()
        before = estimate(rule, net, doubles()).gradients
        rule_one = replace(rule, per="example", population=4)
        before_one = estimate(rule_one, net, doubles()).gradients
        plain = OBJECTIVES["cross-entropy"]
        monkeypatch.setitem(OBJECTIVES, "cross-entropy", lambda x, y: 5 * plain(x, y) - 3)
        after = estimate(rule, net, doubles()).gradients
        assert all(torch.equal(before[name], after[name]) for name in before)
        monkeypatch.setitem(OBJECTIVES, "cross-entropy", lambda x, y: plain(x, y).exp())  # a mean over one example
        after = estimate(rule_one, net, doubles()).gradients
        assert all(torch.equal(before_one[name], after[name]) for name in before_one)

    def test_z_scores_ignore_scale_and_shift(self):
        losses = Noise(0).normal(20).view(2, 10).double()
        torch.testing.assert_close(fitness_of(losses, "z-score"), fitness_of(7 * losses + 2, "z-score"))
        assert float(fitness_of(losses, "z-score").square().mean()) == pytest.approx(1)

    def test_equal_losses_share_their_rank_and_give_no_direction(self):
        assert fitness_of(torch.ones(2, 3), "ranks").abs().max() == 0
        assert fitness_of(torch.ones(2, 3), "z-score").abs().max() == 0
        assert fitness_of(torch.tensor([[0.0, 1.0], [1.0, 5.0]]), "ranks").tolist()[0][0] == -0.5

    def test_errors_are_counted_without_a_derivative(self):
        rule = Evolution(hidden=(8,), objective="accuracy", per="group", group=8, population=64, eps=0.3)
        update = estimate(rule, build(rule))
        assert any(gradient.abs().max() > 0 for gradient in update.gradients.values())
        assert 0 <= update.losses["net: accuracy"] <= 1


class TestNoise:
    @each_rule
    def test_pairs_are_exactly_opposite(self, rule):
        """At weights of zero and inputs of one, the outputs of the first layer are the noise itself."""
        net, given = build(rule), Batch(torch.ones(8, 1, 4, 4), batch().targets)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()
        outputs = []
        layer = net.stages[0][1]
        forward = net.stages[0][2].register_forward_hook(lambda module, inputs, output: outputs.append(inputs[0]))
        estimate(rule, net, given)
        forward.remove()
        plus, minus = outputs[0].chunk(2) if len(outputs) == 1 else (torch.cat(outputs[::2]), torch.cat(outputs[1::2]))
        assert plus.abs().max() > 0
        assert torch.equal(plus, -minus)
        assert layer.weight.abs().max() == 0

    def test_layers_of_one_shape_do_not_share_noise(self):
        with Noise(0).torch_seeded():
            net = staged_mlp((1, 2, 2), (4, 4, 4), 4, norm=True)
        _, factors = rank_one_logits(net, torch.ones(8, 1, 2, 2), Members(2, 8, 1), Directions(Noise(0)), 0.1)
        for one, two in itertools.combinations(factors.values(), 2):
            for kind in ("rows", "columns", "bias"):
                assert not torch.equal(getattr(one, kind), getattr(two, kind))
        found = weighted_directions(net, Directions(Noise(0)), torch.ones(1))
        for one, two in itertools.combinations([g for name, g in found.items() if name.endswith("weight")], 2):
            assert not torch.equal(one, two)

    def test_pairs_and_steps_do_not_share_noise(self):
        net = build(RULES["spsa"])
        draws = [weighted_directions(net, Directions(Noise(0).at(step)), torch.tensor(c)) for step, c in
                 ((0, [1.0, 0.0]), (0, [0.0, 1.0]), (1, [1.0, 0.0]))]  # fmt: skip
        for one, two in itertools.combinations(draws, 2):
            assert not torch.equal(one["readout.weight"], two["readout.weight"])


class TestCommon:
    @each_rule
    def test_estimate_writes_nothing_and_repeats(self, rule):
        net = build(rule)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        state = torch.get_rng_state()
        first, second, other = (gradients(rule, net, step=step) for step in (3, 3, 4))
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert all(parameter.grad is None for parameter in net.parameters())
        assert first.keys() == dict(net.named_parameters()).keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)
        assert torch.equal(state, torch.get_rng_state())
        assert not net.stages[0][1]._forward_hooks

    @pytest.mark.parametrize("name", ["full-rank", "spsa"])
    def test_a_module_that_draws_repeats_and_leaves_torch_s_generator_alone(self, name):
        rule = RULES[name]
        net, state = build(rule, Noisy), torch.get_rng_state()
        first, second, other = (gradients(rule, net, step=step) for step in (0, 0, 1))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)
        assert torch.equal(state, torch.get_rng_state())

    def test_a_module_that_draws_draws_the_same_for_both_members_of_a_pair(self):
        net, images = build(SPSA(), lambda: nn.Sequential(Noisy(), nn.Linear(16, 8), Noisy())), batch().inputs
        directions = Directions(Noise(0))
        with torch.no_grad():
            pairs = [paired_logits(net, images, directions, index, 0.0) for index in (0, 1)]
            near = paired_logits(net, images, directions, 0, 1e-6)
        for plus, minus in pairs:
            assert torch.equal(plus, minus)
        assert not torch.equal(pairs[0][0], pairs[1][0])  # each pair has masks of its own
        torch.testing.assert_close(near[0], near[1], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("name", ["example", "input", "group"])
    def test_a_module_that_draws_is_refused_with_rank_one_noise(self, name):
        with pytest.raises(InputError, match=r"draws random numbers.*full-rank"):
            build(RULES[name], Noisy)

    @each_rule
    def test_runs_repeat(self, rule):
        runs = [train(rule, "digits", Options(epochs=1, batch=256)) for _ in range(2)]
        one, two = (run.net.state_dict() for run in runs)
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_a_module_of_the_user_s_is_trained(self):
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32, elementwise_affine=False), nn.ReLU())
        for rule in (Evolution(columns="input"), SPSA()):
            run = train(rule, "digits", Options(epochs=2, batch=256), module=module)
            assert run.net.readout.weight.shape == (10, 32)

    @pytest.mark.parametrize("kind", OPTIMIZERS)
    def test_every_optimiser_goes_on_from_its_saved_state_with_the_same_bits(self, kind):
        rule = SPSA(hidden=(8,), optimizer_kind=kind, learning_rate=0.01, weight_decay=0.01)
        net, twin = build(rule), build(rule)
        optimizer, again = rule.optimizer(net), rule.optimizer(twin)
        for step in range(2):
            rule.apply(net, estimate(rule, net, step=step), optimizer)
        twin.load_state_dict(net.state_dict())
        restore_optimizer(again, *optimizer_tensors(optimizer))
        before = net.readout.weight.detach().clone()
        update = estimate(rule, net, step=2)
        rule.apply(net, update, optimizer)
        rule.apply(twin, update, again)
        assert not torch.equal(net.readout.weight, before)
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))

    def test_an_optimiser_of_one_s_own_can_be_named(self, monkeypatch):
        class Half(torch.optim.SGD):
            pass

        monkeypatch.setitem(OPTIMIZERS, "half", Half)
        for rule in (
            Evolution(optimizer_kind="half"),
            SPSA(optimizer_kind="half", learning_rate=1e-3),
            ForwardGradient(optimizer_kind="half"),
        ):
            assert isinstance(rule.optimizer(build(rule)), Half)


class TestBadInput:
    @pytest.mark.parametrize(
        ("kind", "options", "says"),
        [
            (Evolution, {"population": 5}, "even"),
            (Evolution, {"population": 0}, "population"),
            (Evolution, {"eps": 0}, "eps"),
            (Evolution, {"eps": -1.0}, "eps"),
            (Evolution, {"eps": float("nan")}, "eps"),
            (Evolution, {"group": 0}, "group"),
            (Evolution, {"objective": "beauty"}, "objective must be one of"),
            (Evolution, {"fitness": "best"}, "fitness"),
            (Evolution, {"noise_kind": "full-rank"}, "per = group"),
            (Evolution, {"columns": "input", "per": "group"}, "per = example"),
            (Evolution, {"optimizer_kind": "lbfgs"}, "optimizer_kind must be one of adamw"),
            (SPSA, {"optimizer_kind": ""}, "optimizer_kind must be one of adamw"),
            (ForwardGradient, {"optimizer_kind": "muon"}, "optimizer_kind must be one of adamw"),
            (SPSA, {"pairs": 0}, "pairs"),
            (SPSA, {"eps": 0.0}, "eps"),
            (SPSA, {"objective": "beauty"}, "objective must be one of"),
            (SPSA, {"learning_rate": 0}, "learning_rate"),
        ],
    )
    def test_hyper_parameters_that_cannot_work(self, kind, options, says):
        with pytest.raises(InputError, match=says):
            kind(**options)

    @pytest.mark.parametrize("rule", [RULES["example"], RULES["spsa"]], ids=["evolution", "spsa"])
    def test_batch_norm_and_dropout_are_refused(self, rule):
        for layer, says in ((nn.BatchNorm2d(1), "GroupNorm"), (nn.Dropout(), "leave it out")):
            with pytest.raises(InputError, match=says):
                build(rule, nn.Sequential(layer, nn.Flatten(), nn.Linear(16, 4)))

    def test_layers_without_rank_one_noise_are_named(self):
        module = nn.Sequential(nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 4))
        with pytest.raises(InputError, match=r"LayerNorm.*full-rank"):
            build(RULES["example"], module)
        build(RULES["full-rank"], module)
        with pytest.raises(InputError, match="columns = drawn"):
            build(RULES["input"], nn.Conv2d(1, 2, 3))
        with pytest.raises(InputError, match="at least one unit"):
            build(Evolution(hidden=()))

    def test_a_batch_that_does_not_divide_into_groups(self):
        with pytest.raises(InputError, match="multiple of group = 4"):
            estimate(RULES["group"], build(RULES["group"]), batch(10))

    @each_rule
    def test_objectives_that_count_need_no_floats(self, rule, monkeypatch):
        found = []
        for wrong in (
            lambda x, y: x.argmax(dim=1) != y,
            lambda x, y: (x.argmax(dim=1) != y).long(),
            OBJECTIVES["accuracy"],
        ):
            monkeypatch.setitem(OBJECTIVES, "cross-entropy", wrong)
            found.append(gradients(replace(rule, eps=0.5), build(rule)))
        assert all(torch.equal(found[0][name], other[name]) for other in found for name in other)

    @each_rule
    def test_objectives_of_the_wrong_shape(self, rule, monkeypatch):
        monkeypatch.setitem(OBJECTIVES, "cross-entropy", lambda logits, labels: F.cross_entropy(logits, labels))
        with pytest.raises(InputError, match="one loss per example"):
            estimate(rule, build(rule))


LEARN = {
    "rank-1": (Evolution(), 0.782),
    "rank-1 input": (Evolution(columns="input"), 0.900),
    "rank-1 group": (Evolution(per="group", group=4, population=32, learning_rate=0.01), 0.868),
    "rank-1 ranks": (Evolution(fitness="ranks", per="group", group=4, population=32, learning_rate=0.01), 0.856),
    "rank-1 accuracy": (
        Evolution(objective="accuracy", eps=0.05, per="group", group=4, population=64, learning_rate=0.01),
        0.547,
    ),
    "full-rank": (Evolution(noise_kind="full-rank", per="group", group=128, population=32, hidden=(32,)), 0.691),
    "spsa": (SPSA(hidden=(32,), pairs=8, optimizer_kind="adamw", learning_rate=0.01), 0.743),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("places", [(), (5,)])
def test_moves_in_place_have_the_bits_of_the_plain_sum(dtype, sides, once, places):
    members, noise = Members(8, 4, 3), Noise(2)
    rows = members.examples * (1 if once else 2 * members.pairs)
    output = noise.normal(rows * math.prod(places) * 6).view(rows, *places, 6).to(dtype)
    size = members.size * math.prod(places)
    moved = noise.sub(1).normal(sides * members.count * size * 6).view(sides, members.count, size, 6)
    signed = torch.tensor([0.01, -0.01]).view(2, 1, 1, 1)
    whole = output.repeat(2 * members.pairs, *[1] * (output.ndim - 1)) if once else output
    plain = whole + (signed * moved).reshape(whole.shape)
    found = _both_ways(output, moved.clone(), signed, members)
    assert torch.equal(found, plain)
    assert (found.dtype, found.stride()) == (plain.dtype, plain.stride())


@pytest.mark.parametrize(("rule", "least"), LEARN.values(), ids=LEARN)
def test_it_learns_the_digits(rule, least):
    """`least` is five points under the mean test accuracy of seeds 0, 1 and 2."""
    assert train(rule, data.load("digits"), Options(epochs=12)).result["test_accuracy"] > least


class TestControl:
    """A control variate takes away what the responses of layers explain, and a wrong one costs noise alone."""

    RULE = Evolution(hidden=(8, 6), norm=False, control="responses", population=2, eps=1e-4)

    @staticmethod
    def cosine(rule):
        net, given = build(rule), doubles(256)
        net.double()
        exact, found = true_gradient(net, given), gradients(rule, net, given)
        both = [torch.cat([part[name].flatten() for name in exact]) for part in (found, exact)]
        return float(F.cosine_similarity(*both, dim=0))

    @pytest.mark.parametrize("columns", ["drawn", "input"])
    def test_where_responses_fit_one_pair_for_each_example_is_nearly_the_gradient(self, columns):
        rule = replace(self.RULE, columns=columns)
        assert self.cosine(replace(rule, control="none")) < 0.9
        assert self.cosine(rule) > 0.99

    def test_with_an_objective_that_says_nothing_of_single_outputs_it_changes_nothing(self):
        rule = replace(self.RULE, objective="accuracy", eps=0.05)  # no example is on the verge of another class
        net = build(rule)
        found, plain = (gradients(each, net) for each in (rule, replace(rule, control="none")))
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient)

    @pytest.mark.parametrize(
        ("changes", "word"), [({"norm": True}, "norm"), ({"per": "group"}, "per"), ({"fitness": "ranks"}, "fitness")]
    )
    def test_what_it_does_not_fit_is_refused(self, changes, word):
        with pytest.raises(InputError, match=word):
            replace(self.RULE, **changes)

    def test_a_module_is_refused(self):
        with pytest.raises(InputError, match="MLP that the rule builds"):
            build(self.RULE, lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)))
