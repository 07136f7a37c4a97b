"""Forward gradients: exact derivatives, unbiased over all sign vectors, local where they should be."""

import itertools
import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.gradients import along
from sidestep.gradients.activities import output_gradients
from sidestep.gradients.directions import Directions
from sidestep.gradients.forward_mode import forward_mode
from sidestep.nets.stages.staged import GroupHeads
from sidestep.nets.ternary.nets import ChannelsLast
from sidestep.noise import Noise
from sidestep.rules import Batch, Task, forward_gradient
from sidestep.rules.forward_gradient import ForwardGradient

TASK = Task((1, 4, 4), tuple("abc"), (0.0,), (1.0,))
RULES = {
    "weights": ForwardGradient(kind="weights", hidden=(8, 6), tangents=2),
    "activities": ForwardGradient(kind="activities", hidden=(8, 6), tangents=1),
    "local": ForwardGradient(hidden=(8, 6), groups=2, tangents=1),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def batch(size=8, seed=0):
    noise = Noise(seed).stream("batch")
    return Batch(noise.normal(size * 16).view(size, 1, 4, 4), noise.stream("labels").integers(size, 3))


def build(rule, module=None):
    return rule.build(TASK, Noise(0), None, module)


def estimate(rule, net, given=None, step=0):
    return rule.estimate(net, given or batch(), Noise(0).stream("estimate").at(step))


def gradients_of(loss, net):
    parameters = dict(net.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def local_losses(net, given):
    """The sum of every stage's own loss, with the data cut between stages, by autograd."""
    inputs, total = given.inputs, 0
    for stage, head in zip(net.stages, net.heads, strict=True):
        outputs = stage(inputs.detach())
        logits = head(outputs)
        per_group = [F.cross_entropy(logits[:, group], given.targets) for group in range(logits.shape[1])]
        total, inputs = total + sum(per_group), outputs
    return total + F.cross_entropy(net.readout(inputs.detach().flatten(1)), given.targets)


def tiny(rule, hidden, images):
    rule = replace(rule, hidden=hidden, tangents=1)
    net = rule.build(Task((1, 1, 2), ("a", "b"), (0.0,), (1.0,)), Noise(3), None, None).double()
    noise = Noise(5)
    return (
        rule,
        net,
        Batch(noise.normal(images * 2).double().view(images, 1, 1, 2), noise.stream("y").integers(images, 2)),
    )


def average_over_all_signs(rule, net, given, count, monkeypatch):
    """The mean of `estimate` over every sign vector, dealt out in the order in which directions are drawn."""

    @dataclass
    class Dealt:
        used: int = 0

        def draw(self, name, shape, index, like):
            values = signs[self.used : self.used + math.prod(shape)]
            self.used += math.prod(shape)
            return torch.tensor(values, dtype=like.dtype).view(tuple(shape))

    made = []
    monkeypatch.setattr(forward_gradient, "Directions", lambda *_: made.append(Dealt()) or made[-1])
    sums = {}
    for signs in itertools.product((-1, 1), repeat=count):  # noqa: B007 (Dealt reads it)
        for name, gradient in estimate(rule, net, given).gradients.items():
            sums[name] = sums.get(name, 0) + gradient / 2**count
    assert {dealt.used for dealt in made} == {count}
    return sums


class TestUnbiased:
    """Exactly, over all sign vectors, in float64."""

    def test_weights(self, monkeypatch):
        rule, net, given = tiny(RULES["weights"], (1,), 3)
        found = average_over_all_signs(rule, net, given, 7, monkeypatch)
        for name, gradient in gradients_of(F.cross_entropy(net(given.inputs), given.targets), net).items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-14)

    def test_activities(self, monkeypatch):
        rule, net, given = tiny(RULES["activities"], (3, 2), 2)
        found = average_over_all_signs(rule, net, given, 10, monkeypatch)
        wanted = gradients_of(F.cross_entropy(net(given.inputs), given.targets), net)
        assert wanted["stages.0.1.weight"].abs().max() > 0
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-14)

    def test_local(self, monkeypatch):
        rule, net, given = tiny(replace(RULES["local"], norm=False), (4, 2), 2)
        found = average_over_all_signs(rule, net, given, 12, monkeypatch)
        wanted = gradients_of(local_losses(net, given), net)
        assert wanted["stages.1.0.weight"].abs().max() > 0
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-14)


class TestDerivatives:
    def test_activities_are_a_plain_jvp_of_every_example(self):
        rule, given = replace(RULES["activities"], distribution="gaussian"), batch()
        net = build(rule).double()
        given = Batch(given.inputs.double(), given.targets)
        found = estimate(rule, net, given).gradients
        directions = Directions(Noise(0).stream("estimate").stream("directions"), "gaussian")
        like = given.inputs
        one, two = (directions.draw(f"stages.{i}.{j}", (8, w), 0, like) for i, j, w in ((0, 1, 8), (1, 0, 6)))

        def losses(step):
            hidden = net.stages[0][1](given.inputs.flatten(1))
            hidden = net.stages[0][3](net.stages[0][2](hidden + step * one))
            last = net.stages[1][2](net.stages[1][1](net.stages[1][0](hidden) + step * two))
            return F.cross_entropy(net.readout(last), given.targets, reduction="none")

        alpha = torch.func.jvp(losses, (torch.zeros((), dtype=torch.float64),), (torch.ones((), dtype=torch.float64),))[
            1
        ]
        plain = torch.einsum("b,bo,bi->oi", alpha, one, given.inputs.flatten(1)) / 8
        torch.testing.assert_close(found["stages.0.1.weight"], plain)
        torch.testing.assert_close(found["stages.1.0.bias"], (alpha[:, None] * two).mean(dim=0))

    def test_the_read_out_and_the_heads_are_exact(self):
        for kind in ("activities", "local"):
            net, given = build(RULES[kind]).double(), batch()
            given = Batch(given.inputs.double(), given.targets)
            loss = local_losses(net, given) if kind == "local" else F.cross_entropy(net(given.inputs), given.targets)
            wanted, found = gradients_of(loss, net), estimate(RULES[kind], net, given).gradients
            for name in wanted:
                if name.startswith(("readout", "heads")):
                    torch.testing.assert_close(found[name], wanted[name])

    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (nn.Linear(3, 4), (5, 3)),
            (nn.Linear(3, 4), (5, 6, 3)),
            (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 5)),
        ],
        ids=["linear", "places", "convolution"],
    )
    def test_a_layer_s_gradient_from_that_of_its_outputs(self, layer, shape):
        inputs = Noise(1).normal(math.prod(shape)).view(shape)
        outputs = layer(inputs)
        upstream = Noise(2).normal(outputs.numel()).view(outputs.shape)
        wanted = torch.autograd.grad(outputs, [layer.weight, layer.bias], upstream)
        with torch.no_grad():
            found = output_gradients(layer, inputs, upstream)
        torch.testing.assert_close(found["weight"], wanted[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["bias"], wanted[1], rtol=1e-4, atol=1e-5)

    @each_rule
    def test_more_tangents_are_the_mean_of_single_ones(self, rule):
        net = build(rule).double()
        given = Batch(batch().inputs.double(), batch().targets)
        many = estimate(replace(rule, tangents=3), net, given).gradients
        directions = Directions(Noise(0).stream("estimate").stream("directions"))
        ways = {"weights": "along_weights", "activities": "along_activities", "local": "along_local"}
        way = getattr(along, ways[rule.kind])
        with torch.no_grad():
            single = [way(net, given, directions, range(index, index + 1), Noise(0))[0] for index in range(3)]
        for name, gradient in many.items():
            torch.testing.assert_close(gradient, sum(found[name] for found in single) / 3)


class Attention(nn.Module):
    """Rows of the image attend to each other; or a recurrent layer reads them."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.layer = nn.MultiheadAttention(4, 2, batch_first=True)
        else:
            self.layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind](4, 5, batch_first=True)

    def forward(self, images):
        rows = images.flatten(1).view(len(images), 4, 4)
        given = (rows, rows, rows) if self.kind == "attention" else (rows,)
        more = {"need_weights": False} if self.kind == "attention" else {}
        return self.layer(*given, **more)[0].flatten(1)


class TestLayersOfTheUserS:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    @pytest.mark.parametrize("kind", ["attention", "lstm", "gru", "rnn"])
    def test_attention_and_recurrent_layers_have_exact_derivatives(self, kind, dtype):
        rule = replace(RULES["weights"], tangents=1)
        net, given = build(rule, lambda: Attention(kind)).to(dtype), batch()
        given = Batch(given.inputs.to(dtype), given.targets)
        found = estimate(rule, net, given).gradients
        directions = Directions(Noise(0).stream("estimate").stream("directions"))
        along = {name: directions.draw(name, p.shape, 0, p) for name, p in net.named_parameters()}
        exact = gradients_of(F.cross_entropy(net(given.inputs), given.targets), net)
        alpha = sum((exact[name] * along[name]).sum() for name in exact)
        assert alpha.abs() > 1e-3
        for name, v in along.items():
            torch.testing.assert_close(found[name], alpha * v, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("kind", RULES)
    def test_norms_over_channels_last_give_the_gradients_of_those_in_torch_s_own_order(self, kind):
        def convolutions(layout):  # by names that are the same, since directions are drawn by them
            return nn.Sequential(
                nn.Conv2d(1, 4, 3), layout, nn.GroupNorm(1, 4, affine=False), nn.ReLU(),
                nn.Conv2d(4, 4, 2), layout, nn.GroupNorm(2, 4, affine=False), nn.ReLU(),
            )  # fmt: skip

        rule = replace(RULES[kind], groups=1)
        plain, last = (
            estimate(rule, build(rule, partial(convolutions, layout()))).gradients.values()
            for layout in (nn.Identity, ChannelsLast)
        )
        for expected, found in zip(plain, last, strict=True):
            assert expected.any()
            torch.testing.assert_close(found, expected)

    def test_recurrent_layers_run_without_cudnn_and_others_with_it(self):
        before = torch.backends.cudnn.enabled
        for net, enabled in ((Attention("lstm"), False), (Attention("attention"), before)):
            with forward_mode(net):
                assert torch.backends.cudnn.enabled == enabled
        assert torch.backends.cudnn.enabled == before

    def test_an_operation_without_a_derivative_is_named_with_what_to_do(self, monkeypatch):
        net = build(RULES["weights"])

        def refuse(features):
            raise NotImplementedError("Trying to use forward AD with odd_kernel that does not support it because ...")

        monkeypatch.setattr(net.readout, "forward", refuse)
        with pytest.raises(InputError, match=r"odd_kernel.*spsa or evolution"):
            estimate(RULES["weights"], net)


class TestLocality:
    def test_a_stage_s_gradient_does_not_depend_on_later_stages_and_heads(self):
        net = build(RULES["local"])
        before = estimate(RULES["local"], net).gradients
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.startswith(("stages.1", "heads.1", "readout")):
                    parameter.add_(1.0)
        after = estimate(RULES["local"], net).gradients
        for name in before:
            assert torch.equal(before[name], after[name]) == name.startswith(("stages.0", "heads.0")), name

    def test_a_group_s_gradient_does_not_depend_on_the_other_groups(self):
        net = build(RULES["local"])
        before = estimate(RULES["local"], net).gradients["stages.0.1.weight"]
        with torch.no_grad():
            net.stages[0][1].weight[4:].mul_(2.0)
            net.heads[0].weight[1].mul_(3.0)
        after = estimate(RULES["local"], net).gradients["stages.0.1.weight"]
        assert torch.equal(before[:4], after[:4])
        assert not torch.equal(before[4:], after[4:])

    def test_units(self):
        units = RULES["local"].units(build(RULES["local"]))
        assert list(units) == ["stage 0", "stage 1", "read-out"]
        assert units["stage 1"] == ["stages.1.0.weight", "stages.1.0.bias", "heads.1.weight", "heads.1.bias"]


class TestCommon:
    @each_rule
    def test_estimate_writes_nothing_and_repeats(self, rule):
        net = build(rule)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        state = torch.get_rng_state()
        first, second, other = (estimate(rule, net, step=step).gradients for step in (3, 3, 4))
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert first.keys() == dict(net.named_parameters()).keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)
        assert torch.equal(state, torch.get_rng_state())
        assert not net.stages[0][1]._forward_hooks

    @each_rule
    def test_runs_repeat(self, rule):
        runs = [train(rule, "digits", Options(epochs=1, batch=256)) for _ in range(2)]
        one, two = (run.net.state_dict() for run in runs)
        assert all(torch.equal(one[name], two[name]) for name in one)

    @each_rule
    def test_a_module_of_the_user_s_is_trained_with_dropout(self, rule):
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 16), nn.ReLU()
        )
        run = train(rule, "digits", Options(epochs=1, batch=256), module=module)
        assert len(run.net.heads) == (2 if rule.kind == "local" else 0)

    def test_layers_of_one_shape_do_not_share_directions(self, monkeypatch):
        seen = []
        plain = Directions.draw
        monkeypatch.setattr(Directions, "draw", lambda *given: seen.append(plain(*given)) or seen[-1])
        rule = replace(RULES["activities"], hidden=(8, 8))
        estimate(rule, build(rule))
        assert [one.shape for one in seen] == [(8, 8), (8, 8)]
        assert not torch.equal(*seen)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"tangents": 0}, "tangents"),
            ({"groups": 0}, "groups"),
            ({"kind": "backward"}, "kind"),
            ({"learning_rate": float("nan")}, "learning_rate"),
            ({"weight_decay": -1}, "weight_decay"),
        ],
    )
    def test_hyper_parameters_that_cannot_work(self, options, says):
        with pytest.raises(InputError, match=says):
            ForwardGradient(**options)

    def test_widths_that_do_not_divide_into_groups(self):
        with pytest.raises(InputError, match="do not divide into 16 groups"):
            build(ForwardGradient(hidden=(40,)))
        with pytest.raises(InputError, match="divide"):
            GroupHeads(5, 3, 2)

    @each_rule
    def test_batch_norm_is_refused(self, rule):
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8))
        with pytest.raises(InputError, match=r"nn.GroupNorm or nn.LayerNorm"):
            build(rule, module)

    def test_layers_and_modules_that_a_kind_is_not_defined_for(self):
        with pytest.raises(InputError, match=r"LayerNorm.*kind = weights"):
            build(RULES["activities"], nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8)))
        with pytest.raises(InputError, match=r"nn\.Sequential"):
            build(RULES["local"], nn.Flatten)
        nested = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8)))
        with pytest.raises(InputError, match="one linear or convolutional layer each"):
            build(RULES["local"], nested)


LEARN = {
    "local": (ForwardGradient(hidden=(128, 128), learning_rate=0.003), 0.910),
    "activities": (ForwardGradient(kind="activities", hidden=(128, 128), learning_rate=0.001), 0.892),
    "weights": (ForwardGradient(kind="weights", hidden=(16,), tangents=16, learning_rate=0.01), 0.792),
}


@pytest.mark.parametrize(("rule", "least"), LEARN.values(), ids=LEARN)
def test_it_learns_the_digits(rule, least):
    """`least` is five points under the mean test accuracy of seeds 0, 1 and 2."""
    assert train(rule, data.load("digits"), Options(epochs=12)).result["test_accuracy"] > least


def with_dropout(place, frozen):
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()]
    layers.insert(place, nn.Dropout(0.5))
    for layer in layers:
        if isinstance(layer, nn.Linear) and layer.in_features == 64:
            layer.weight.requires_grad_(not frozen)
            layer.bias.requires_grad_(not frozen)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("place", "frozen"), [(1, False), (3, True)], ids=["before the layer", "in a frozen stage"])
def test_dropout_under_local_losses_is_a_function_of_the_seed_alone(place, frozen):
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        rule = ForwardGradient(groups=4)
        run = train(rule, "digits", Options(steps=2, batch=32), module=lambda: with_dropout(place, frozen), readings=[])
        found.append(torch.cat([value.flatten() for value in run.net.state_dict().values()]))
    assert torch.equal(*found)


def test_the_loss_of_the_read_out_has_the_name_of_the_objective():
    values = data.from_arrays(Noise(0).normal(160).view(40, 4), Noise(1).normal(40).view(40, 1), targets="values")
    told = []

    class Watch:
        def on_step(self, event):
            told.extend(event.losses)

    train(ForwardGradient(hidden=(8,), groups=2), values, Options(steps=1, batch=16), observers=[Watch()], readings=[])
    assert told == ["stage 0: squared error", "read-out: squared error"]
