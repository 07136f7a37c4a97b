"""Modules of the user's: one door for all rules, where what cannot work is refused in one sentence with the fix."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sidestep.errors import InputError
from sidestep.nets import ConvPath, Dropout
from sidestep.nets.check_module import check_module
from sidestep.nets.user_modules import image_paths
from sidestep.noise import Noise
from sidestep.rules import (
    SPSA,
    Backprop,
    Batch,
    DirectFeedbackAlignment,
    Evolution,
    FeedbackAlignment,
    ForwardGradient,
    LocalLoss,
    NeuralODE,
    NoiseStep,
    NoPropCT,
    NoPropDT,
    NoPropFM,
    Task,
)
from sidestep.training import Options, train
from sidestep.update import Dense, Seeded

SHAPE = (1, 8, 8)
TASK = Task(SHAPE, tuple("abcd"), (0.0,), (1.0,))
RULES = {
    "noprop-dt": NoPropDT(blocks=2),
    "noprop-ct": NoPropCT(steps=3),
    "noprop-fm": NoPropFM(steps=3),
    "backprop": Backprop(blocks=2),
    "neural-ode": NeuralODE(steps=2),
    "feedback-alignment": FeedbackAlignment(),
    "direct-feedback-alignment": DirectFeedbackAlignment(),
    "local-loss": LocalLoss(similarity=0.5),
    "spsa": SPSA(pairs=2),
    "evolution": Evolution(population=4),
    "evolution input": Evolution(population=4, columns="input"),
    "evolution full-rank": Evolution(population=4, per="group", group=8, noise_kind="full-rank"),
    "forward-gradient weights": ForwardGradient(kind="weights", tangents=2),
    "forward-gradient activities": ForwardGradient(kind="activities", tangents=2),
    "forward-gradient local": ForwardGradient(kind="local", tangents=2),
    "noise-step": NoiseStep(),
    "noise-step weight probes": NoiseStep(estimator="weight-probes"),
    "noise-step rank-one": NoiseStep(estimator="rank-one"),
    "noise-step activity": NoiseStep(estimator="activity-probes", tangents=2),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def stages(*first, last=()):
    return nn.Sequential(
        *first, nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12), *last
    )


class Does(nn.Module):
    """A part that does what it is given to its input."""

    def __init__(self, does):
        super().__init__()
        self.does = does

    def forward(self, x):
        return self.does(self, x)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


class Forgetful(nn.Module):
    """Says something else at every second call, in state that is no buffer."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


class NeedsArgument(nn.Module):
    def __init__(self, classes):
        super().__init__()


def shifts(module, x):
    x -= 0.5
    x /= 0.5
    return x


def shifts_in_training(module, x):
    return shifts(module, x) if module.training else x


def raises():
    raise FileNotFoundError("weights.pt")


def lstm():
    return nn.Sequential(nn.Flatten(2), nn.LSTM(64, 8, batch_first=True))


WRONG = {
    "needs an argument": (NeedsArgument, r"NeedsArgument cannot be made .*lambda: NeedsArgument\("),
    "raises": (raises, r"raises cannot be made \(FileNotFoundError: weights.pt\)"),
    "no module": (lambda: 3, "must be a torch.nn.Module.*int"),
    "wrong width": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(63, 16)),
        r"does not take images of shape \(batch, 1",
    ),
    "for colour": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()),
        r"does not take images of shape \(batch, 1",
    ),
    "tuple": (lambda: stages(last=[Does(lambda _, x: (x, x))]), "got a tuple of 2"),
    "dictionary": (lambda: stages(last=[Does(lambda _, x: {"x": x})]), "got a dict of 1"),
    "lstm": (lstm, "got a tuple of 2"),
    "no batch": (lambda: stages(last=[Does(lambda _, x: x.sum())]), "must return a tensor"),
    "no features": (lambda: stages(last=[Does(lambda _, x: x[:, :0])]), "must return a tensor"),
    "double weights": (lambda: stages().double(), r"float64.*\.float\(\)"),
    "double outputs": (lambda: stages(last=[Does(lambda _, x: x.double())]), r"float64.*\.float\(\)"),
    "half outputs": (lambda: stages(last=[Does(lambda _, x: x.half())]), r"float16.*\.float\(\)"),
    "sparse": (lambda: stages(last=[Does(lambda _, x: x.to_sparse())]), "plain tensor with values, got sparse_coo"),
    "without values": (lambda: stages(last=[Does(lambda _, x: x.to("meta"))]), "plain tensor with values.*meta"),
    "changes its input to what it was": (lambda: stages(Does(lambda _, x: x.mul_(1))), "changes its input in place"),
    "whole numbers": (lambda: stages(last=[Does(lambda _, x: x.long())]), r"int64.*\.float\(\)"),
    "changes its input": (lambda: stages(Does(shifts)), r"changes its input in place.*x = x - 0\.5"),
    "changes a view of it": (lambda: stages(nn.Flatten(), nn.ReLU(inplace=True)), "changes its input in place"),
    "in training only": (lambda: stages(Does(shifts_in_training)), "changes its input in place"),
    "draws": (lambda: stages(Does(lambda _, x: nn.functional.dropout(x, 0.5))), "same images.*self.training"),
    "counts": (lambda: stages(Counting()), "changes 0.calls in evaluation mode"),
    "counts unseen": (lambda: stages(Forgetful()), "same images.*self.training"),
}


@each_rule
@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_refused_before_training_in_one_line(rule, name):
    make, message = WRONG[name]
    with pytest.raises(InputError, match=message) as refused:
        rule.build(TASK, Noise(0), None, make)
    assert "\n" not in str(refused.value)


class Careful(nn.Module):
    """A module with state of every kind."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.generator, self.numbers, self.seen = torch.Generator(), random.Random(3), 0
        self.layers[2].eval()

    def forward(self, x):
        self.seen += 1
        if self.training:
            self.calls += 1
            x = x + torch.rand(x.shape, generator=self.generator) + self.numbers.random() + random.random()
        return self.layers(x)


class NoCopy(Careful):
    def __deepcopy__(self, memo):
        raise TypeError("not to be copied")


@pytest.mark.parametrize("kind", [Careful, NoCopy])
def test_the_trial_leaves_weights_buffers_modes_and_generators_as_they_were(kind):
    module = kind()
    before = {name: value.clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}
    modes = [part.training for part in module.modules()]
    kept = torch.get_rng_state(), random.getstate(), module.generator.get_state(), module.numbers.getstate()
    check_module(module, "module", SHAPE, Noise(0))
    assert all(torch.equal(value, before[n]) for n, value in [*module.named_parameters(), *module.named_buffers()])
    assert modes == [part.training for part in module.modules()]
    assert torch.equal(torch.get_rng_state(), kept[0])
    assert random.getstate() == kept[1]
    if kind is Careful:
        assert module.seen == 0
        assert torch.equal(module.generator.get_state(), kept[2])
        assert module.numbers.getstate() == kept[3]


def test_dropout_and_draws_in_training_are_fine():
    assert len(image_paths(Careful, 2, Noise(0), SHAPE)) == 2


class Part(nn.Module):
    """A layer behind a dropout of the library's own, computed anew on the way back or not; it keeps its masks."""

    def __init__(self, rate, masks, again):
        super().__init__()
        self.layers, self.again = nn.Sequential(nn.Linear(16, 16), Dropout(rate), nn.ReLU()), again
        self.layers[1].register_forward_hook(
            lambda layer, given, out: masks.append(out == 0) if layer.training else None
        )

    def forward(self, values):
        return checkpoint(self.layers, values, use_reentrant=False) if self.again else self.layers(values)


DRAWING = ["noprop-dt", "noprop-ct", "backprop", "neural-ode", "feedback-alignment", "local-loss"]


@pytest.mark.parametrize("name", [*DRAWING, "model"])
def test_dropout_of_the_librarys_own_follows_the_runs_seed(name):
    def run(seed, rate=0.5, again=False):
        masks = []

        def parts():
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), Part(rate, masks, again))

        how = {"module": parts}
        if name == "model":
            with Noise(seed).torch_seeded():
                how = {"model": nn.Sequential(parts(), nn.Linear(16, 10))}
        options = Options(seed=seed, precision="float32")
        rule = RULES.get(name, Backprop())
        return train(rule, "digits", options, steps=2, **how).net.state_dict(), masks

    before = torch.get_rng_state()
    weights, masks = run(0)
    again, same_masks = run(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[key]) for key, value in weights.items())
    assert all(map(torch.equal, masks, same_masks))
    assert not torch.equal(masks[-1], masks[-2])  # of two steps, or of two blocks
    assert not all(map(torch.equal, masks, run(1)[1]))
    plain, _ = run(0, rate=0.0)
    assert not all(torch.equal(value, plain[key]) for key, value in weights.items())
    twice, _ = run(0, again=True)
    assert all(torch.equal(value, twice[key]) for key, value in weights.items())


def test_paths_of_the_librarys_own_are_fine_in_a_users_module():
    run = train(NoPropDT(blocks=2), "digits", Options(), steps=2, module=lambda: nn.Sequential(ConvPath(SHAPE)))
    assert not run.net.together  # its masks are torch's


def test_a_module_that_knows_its_sizes_later_is_fine():
    paths = image_paths(lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), 1, Noise(0), SHAPE)
    assert nn.parameter.is_lazy(paths[0][1].weight)  # the trial has made nothing of it


def test_a_module_that_takes_certain_values_only_is_tried_with_black_images():
    image_paths(lambda: nn.Sequential(Does(lambda _, x: x.flatten(1).long()), nn.Embedding(4, 3)), 1, Noise(0), SHAPE)


def gradients(rule, module):
    """What one estimate says, by name; of probes, their numbers."""
    net = rule.build(TASK, Noise(0), None, module)
    images, labels = Noise(1).normal(32 * 64).view(32, *SHAPE), torch.arange(32) % 4
    update = rule.estimate(net, Batch(images, labels), Noise(0))
    kept = images.clone()
    assert torch.equal(images, kept)
    if isinstance(update, Seeded):
        return {"coefs": update.coefs}
    assert isinstance(update, Dense)
    return update.gradients


class Twice(nn.Module):
    """Doubles what the layer before it gave, in that memory or in its own."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.mul_(2) if self.inplace else x * 2


def with_parts(inplace):
    def make():
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), Twice(inplace), nn.ReLU(inplace=inplace),
            nn.Linear(16, 16), Twice(inplace), nn.ReLU(inplace=inplace), nn.Linear(16, 12), nn.ReLU(inplace=inplace),
        )  # fmt: skip

    return make


@each_rule
def test_parts_that_work_in_place_give_the_same_numbers_as_out_of_place(rule):
    plain, inplace = gradients(rule, with_parts(False)), gradients(rule, with_parts(True))
    assert plain.keys() == inplace.keys()
    for name, wanted in plain.items():
        torch.testing.assert_close(inplace[name], wanted, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("name", ["noprop-dt", "backprop", "direct-feedback-alignment", "local-loss", "noise-step"])
def test_what_cannot_be_differentiated_for_working_in_place_says_so(name):
    """A rectifier keeps its output for the way back, and the part after it writes over that."""
    with pytest.raises(InputError, match=r"in place.*x = x \* 2"):
        gradients(RULES[name], lambda: nn.Sequential(*stages(), nn.ReLU(), Twice(True), nn.Linear(12, 12), nn.ReLU()))


@pytest.mark.parametrize("name", ["direct-feedback-alignment", "noise-step"])
def test_a_module_that_cuts_derivatives_off_says_so(name):
    with pytest.raises(InputError, match=r"cuts them off; leave detach"):
        gradients(RULES[name], lambda: stages(nn.Flatten(), last=[Does(lambda _, x: x.detach())]))


class CountsInTraining(Counting):
    def forward(self, x):
        if self.training:
            self.calls += 1
        return x


@pytest.mark.parametrize("name", RULES)
def test_a_buffer_that_counts_in_training_is_fine_or_refused_with_the_fix(name):
    if name in ("forward-gradient weights", "noise-step weight probes"):
        with pytest.raises(InputError, match=r"self\.count = self\.count \+ 1"):
            gradients(RULES[name], lambda: stages(CountsInTraining()))
    else:
        assert gradients(RULES[name], lambda: stages(CountsInTraining()))


def test_outputs_that_are_not_finite_are_no_draws():
    RULES["evolution"].build(TASK, Noise(0), None, lambda: stages(last=[Does(lambda _, x: x / 0 * 0)]))


class AlwaysEval(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(False)


@pytest.mark.parametrize("name", [name for name in RULES if name.split()[0] in (
    "noprop-dt", "noprop-ct", "noprop-fm", "backprop", "neural-ode", "feedback-alignment",
    "direct-feedback-alignment", "local-loss")])  # fmt: skip
def test_a_batch_norm_that_stays_in_evaluation_mode_trains(name):
    def make():
        norm = AlwaysEval(16).requires_grad_(False)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), norm, nn.ReLU(), nn.Linear(16, 12), nn.ReLU())

    assert gradients(RULES[name], make)


def shared_relu():
    relu = nn.ReLU()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), relu, nn.Linear(16, 16), relu, nn.Linear(16, 12), relu)


def own_relus():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU()
    )


@each_rule
def test_one_module_in_several_places_works_as_several_do(rule):
    wanted, found = gradients(rule, own_relus), gradients(rule, shared_relu)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


class Tied(nn.Module):
    """The same weight twice, in one module that no rule looks into."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(16, 16), nn.Linear(16, 12)

    def forward(self, x):
        return self.last(self.layer(self.layer(x).relu()).relu())


def tied():
    layer = nn.Linear(16, 16)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), layer, nn.ReLU(), layer, nn.ReLU())


@pytest.mark.parametrize(
    "rule",
    [SPSA(distribution="rademacher"), Evolution(population=2, per="group", group=32, noise_kind="full-rank")],
    ids=lambda rule: rule.name,
)
def test_a_weight_that_stands_twice_is_moved_alike_in_both_places(rule):
    """An estimate is the directional derivative along its own direction of the net as it is, with the weight twice."""
    from sidestep.gradients.directions import Directions
    from sidestep.gradients.pairs import paired_logits

    net = rule.build(TASK, Noise(0), None, tied)
    images, directions, eps = Noise(1).normal(8 * 64).view(8, *SHAPE), Directions(Noise(0)), 0.01
    with torch.no_grad():
        plus, minus = paired_logits(net, images, directions, 0, eps)
        for sign, found in ((1, plus), (-1, minus)):
            moved = copy.deepcopy(net)
            for name, weight in moved.named_parameters():
                weight.add_(directions.draw(name, weight.shape, 0, weight), alpha=sign * eps)
            torch.testing.assert_close(found, moved(images))


TAKEN = {"noprop-dt", "noprop-ct", "noprop-fm", "backprop", "neural-ode", "feedback-alignment",
         "direct-feedback-alignment", "spsa", "evolution", "evolution full-rank", "forward-gradient weights",
         "noise-step weight probes"}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_layers_that_share_weights_are_taken_where_a_rule_can_and_refused_where_it_cannot(name):
    rule = RULES[name]
    if name in TAKEN:
        assert gradients(rule, tied)
        return
    with pytest.raises(InputError, match=r"twice|share|again"):
        rule.build(TASK, Noise(0), None, tied)


def test_feedback_reaches_a_layer_in_every_place_where_it_stands():
    from sidestep.nets.stages.feedback import FeedbackLayer

    net = FeedbackAlignment().build(TASK, Noise(0), None, tied)
    assert not [
        name
        for name, layer in net.named_modules(remove_duplicate=False)
        if isinstance(layer, nn.Linear) and not isinstance(net.get_submodule(name.rpartition(".")[0]), FeedbackLayer)
    ]


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_an_estimate_leaves_a_net_with_a_layer_that_stands_twice_as_it_was(name):
    net = RULES[name].build(TASK, Noise(0), None, tied)
    before = [(key, id(parameter)) for key, parameter in net.named_parameters()]
    batch = Batch(Noise(1).normal(32 * 64).view(32, *SHAPE), torch.arange(32) % 4)
    RULES[name].estimate(net, batch, Noise(0))
    RULES[name].true_gradients(net, batch)
    assert [(key, id(parameter)) for key, parameter in net.named_parameters()] == before
