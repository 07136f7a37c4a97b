"""Frozen parameters (`requires_grad` False) keep their bits, whatever the rule, and logs and replays agree with it."""

import pytest
import torch
from torch import nn

from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.nets.trained import frozen, trained
from sidestep.noise import Noise
from sidestep.rules import (
    RULES,
    SPSA,
    Backprop,
    Batch,
    Blockwise,
    DirectFeedbackAlignment,
    Evolution,
    FeedbackAlignment,
    ForwardForward,
    ForwardGradient,
    Hebbian,
    LocalLoss,
    NeuralODE,
    NoiseStep,
    NoPropCT,
    NoPropDT,
    NoPropFM,
    Task,
)
from sidestep.steplog import LogReader, rebuild
from sidestep.testing import check_rule

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
DECAY = {"weight_decay": 0.5}


def fixed(*shape):
    return Noise(7).normal(torch.Size(shape).numel()).view(shape) * 0.1


class LowRank(nn.Module):
    """A frozen layer, and a correction of rank 2 that is trained."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(64, 16), nn.Linear(64, 2, bias=False), nn.Linear(2, 16, bias=False)
        self.base.requires_grad_(False)
        self.base.weight.copy_(fixed(16, 64))
        self.base.bias.copy_(fixed(16))

    def forward(self, values):
        return self.base(values) + self.up(self.down(values))


def low_rank():
    return nn.Sequential(nn.Flatten(), LowRank(), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())


def first_layer_frozen():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12))
    layers[1].requires_grad_(False)
    layers[1].weight.copy_(fixed(16, 64))
    layers[1].bias.copy_(fixed(16))
    return layers


def bias_frozen():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12))
    layers[3].bias.requires_grad_(False).copy_(fixed(12))
    return layers


def middle_weight_frozen():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12))
    layers[3].weight.requires_grad_(False).copy_(fixed(12, 16))
    return layers


EVERY = {
    "noprop-dt": NoPropDT(blocks=2, **DECAY),
    "noprop-dt learned": NoPropDT(blocks=2, embedding="learned", unit_norm=True, **DECAY),
    "noprop-ct": NoPropCT(steps=3, optimizer_kind="adam", **DECAY),
    "noprop-fm": NoPropFM(steps=3, **DECAY),
    "backprop": Backprop(blocks=2, accumulate=2, **DECAY),
    "neural-ode adjoint": NeuralODE(steps=2, **DECAY),
    "neural-ode direct": NeuralODE(steps=2, gradient="direct", **DECAY),
    "feedback-alignment": FeedbackAlignment(**DECAY),
    "feedback-alignment sign-symmetric": FeedbackAlignment(feedback="sign-symmetric", **DECAY),
    "feedback-alignment kolen-pollack": FeedbackAlignment(feedback="kolen-pollack", **DECAY),
    "direct-feedback-alignment": DirectFeedbackAlignment(**DECAY),
    "local-loss": LocalLoss(similarity=0.5, **DECAY),
    "spsa": SPSA(pairs=2, learning_rate=0.01, **DECAY),
    "spsa adamw normal": SPSA(optimizer_kind="adamw", distribution="gaussian", learning_rate=1e-3, **DECAY),
    "evolution": Evolution(population=4, **DECAY),
    "evolution input": Evolution(population=4, columns="input", **DECAY),
    "evolution full-rank": Evolution(population=4, per="group", group=8, noise_kind="full-rank", **DECAY),
    "forward-gradient weights": ForwardGradient(kind="weights", **DECAY),
    "forward-gradient activities": ForwardGradient(kind="activities", **DECAY),
    "forward-gradient local": ForwardGradient(kind="local", **DECAY),
    "noise-step": NoiseStep(flip_share=0.05),
    "noise-step projected": NoiseStep(codec="trits", density=0.01, schedule="constant"),
    "noise-step weight probes": NoiseStep(estimator="weight-probes"),
    "noise-step rank-one": NoiseStep(estimator="rank-one", threshold=2),
    "noise-step activity": NoiseStep(estimator="activity-probes", flip_share=0.05),
}
WITHOUT_MODULES = {
    "blockwise": Blockwise(groups=2, depth=2, width=16, **DECAY),
    "forward-forward": ForwardForward(hidden=(8, 8)),
    "hebbian": Hebbian(hidden=(8, 8)),
}
# what a rule has no definition for: local losses train one layer a stage, trits a whole layer, inputs a whole weight
CANNOT = {
    ("forward-gradient local", "low_rank"),
    ("noise-step", "low_rank"),
    ("noise-step projected", "low_rank"),
    ("noise-step rank-one", "low_rank"),
    ("noise-step activity", "low_rank"),
    ("evolution input", "middle_weight_frozen"),
    *((name, module) for name in EVERY if "noise" in name for module in ("bias_frozen", "middle_weight_frozen")),
}
MODULES = {module.__name__: module for module in (low_rank, first_layer_frozen, bias_frozen, middle_weight_frozen)}


def made(module):
    def make():
        with torch.no_grad():
            return MODULES[module]()

    return make


def arrays():
    noise = Noise(0)
    labels = noise.stream("labels").integers(96, 4)
    images = noise.normal(96 * 64).view(96, 1, 8, 8) + labels[:, None, None, None]
    return data.from_arrays(images[:64].numpy(), labels[:64].numpy(), images[64:].numpy(), labels[64:].numpy())


def test_every_rule_is_here():
    assert {rule.name for rule in (EVERY | WITHOUT_MODULES).values()} == set(RULES)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", EVERY)
def test_frozen_parameters_keep_their_bits_and_the_others_move(name, module):
    rule, make = EVERY[name], made(module)
    options = Options(epochs=2, batch=16, average=0 if rule.name == "noise-step" else 0.5)
    if (name, module) in CANNOT:
        with pytest.raises(InputError):
            train(rule, arrays(), options, module=make)
        return
    set_ = arrays()
    before = rule.build(Task.of(set_), Noise(options.seed).stream("build"), set_.train, make)
    net = train(rule, set_, options, module=make).net
    still, wanted = frozen(net), [p for p in make().parameters() if not p.requires_grad]
    assert wanted
    assert len(still) % len(wanted) == 0  # as often as the module is there
    for value, same in zip(still.values(), wanted * (len(still) // len(wanted)), strict=True):
        assert torch.equal(value, same)
    moving, start = trained(net), trained(before)
    assert moving.keys() == start.keys()
    assert sum(not torch.equal(start[n], p) for n, p in moving.items()) > len(moving) / 2


@pytest.mark.parametrize(
    "name", ["spsa", "spsa adamw normal", "noise-step", "noise-step weight probes", "noise-step rank-one"]
)
def test_a_replay_of_the_log_has_the_same_bits_and_the_header_says_what_is_trained(name, tmp_path):
    make = made("first_layer_frozen")
    run = train(EVERY[name], arrays(), Options(epochs=2, batch=16, out=tmp_path / "run"), module=make)
    header = LogReader(run.folder / "steps.steplog").header
    assert [entry[0] for entry in header.parameters] == list(trained(run.net))
    assert [entry[0] for entry in header.frozen] == list(frozen(run.net))
    replayed = rebuild(run.folder / "steps.steplog", module=make)
    ours, theirs = dict(run.net.named_parameters()), dict(replayed.net.named_parameters())
    assert replayed.step == run.step
    assert all(torch.equal(value, theirs[n]) for n, value in ours.items())


def test_a_log_without_frozen_parameters_has_no_entry_for_them(tmp_path):
    run = train(SPSA(hidden=(8,)), arrays(), Options(epochs=1, out=tmp_path / "run"))
    assert b'"frozen"' not in (run.folder / "steps.steplog").read_bytes()


def test_a_replay_refuses_a_module_whose_frozen_weights_are_others(tmp_path):
    run = train(SPSA(), arrays(), Options(epochs=1, out=tmp_path / "run"), module=made("first_layer_frozen"))

    def other():
        module = made("first_layer_frozen")()
        with torch.no_grad():
            module[1].weight.add_(1)
        return module

    with pytest.raises(Exception, match="digest"):
        rebuild(run.folder / "steps.steplog", module=other)


def test_what_is_frozen_gets_no_noise():
    """Freezing a layer leaves the directions of the others as they were."""
    rule, images = SPSA(), torch.zeros(8, 1, 8, 8)
    plain = rule.build(TASK, Noise(0), None, made("first_layer_frozen"))
    probes = rule.estimate(plain, Batch(images, torch.arange(8) % 4), Noise(0)).probes
    assert [name for name, _ in probes.parameters] == list(trained(plain))


@pytest.mark.parametrize("name", (EVERY | WITHOUT_MODULES).keys())
def test_a_net_that_is_frozen_as_a_whole_is_refused(name):
    rule = (EVERY | WITHOUT_MODULES)[name]
    if rule.name == "noise-step":
        pytest.skip("whole numbers cannot be frozen")
    net = rule.build(TASK, Noise(0), None, None).requires_grad_(False)
    with pytest.raises(InputError, match="frozen"):
        rule.optimizer(net)


@pytest.mark.parametrize("name", (EVERY | WITHOUT_MODULES).keys())
def test_what_is_frozen_after_the_net_was_built_stays_too(name):
    check_rule((EVERY | WITHOUT_MODULES)[name], only="frozen_stays")


def test_a_module_that_is_copied_keeps_its_frozen_values_and_starts_the_others_anew():
    given = made("first_layer_frozen")()
    run = train(Backprop(blocks=2), arrays(), Options(epochs=1), module=given)
    for block in run.net.blocks:
        assert torch.equal(block.image[1].weight, given[1].weight)
        assert not torch.equal(block.image[3].weight, given[3].weight)
