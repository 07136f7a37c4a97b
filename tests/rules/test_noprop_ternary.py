"""NoProp's blocks trained by noise_step: no float weights, no derivative between blocks or backwards, a log."""

import pytest
import torch
from torch import nn

from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.noise import Noise
from sidestep.rules import Batch, NoPropDT, Task
from sidestep.steplog import rebuild

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
SMALL = {"solver": "noise-step", "blocks": 3, "hidden": (24, 16), "flip_share": 0.02}


def batch(size=32):
    labels = torch.arange(size) % 4
    return Batch(Noise(2).normal(size * 64).view(size, 1, 8, 8) + labels[:, None, None, None], labels)


def test_every_weight_is_a_trit_and_stays_one():
    rule = NoPropDT(**SMALL)
    net = rule.build(TASK, Noise(0), None, None)
    optimizer, before = rule.optimizer(net), {name: p.clone() for name, p in ternary_parameters(net).items()}
    for step in range(3):
        update = rule.decide(net, rule.estimate(net, batch(), Noise(0).at(step)), optimizer)
        rule.apply(net, update, optimizer)
    after = ternary_parameters(net)
    assert {p.dtype for p in net.parameters()} == {torch.int8}
    assert all(set(p.unique().tolist()) <= {-1, 0, 1} for p in after.values())
    assert all(not torch.equal(after[f"blocks.{t}.net.stages.0.1.weight"], before[f"blocks.{t}.net.stages.0.1.weight"])
               for t in range(3))  # fmt: skip


def test_a_complete_set_of_directions_gives_the_local_gradient():
    net = NoPropDT(**SMALL).build(TASK, Noise(0), None, None)
    inputs = Batch(batch().inputs.double(), batch().targets)
    probed, exact = (
        NoPropDT(**SMALL, estimator=kind).estimate(net, inputs, Noise(0)) for kind in ("local-probes", "local-losses")
    )
    assert probed.gradients.keys() == exact.gradients.keys()
    for name, gradient in exact.gradients.items():
        torch.testing.assert_close(probed.gradients[name], gradient, rtol=1e-6, atol=1e-9)
    for name, loss in exact.losses.items():
        torch.testing.assert_close(probed.losses[name], loss)


def test_a_block_s_gradient_does_not_depend_on_the_others():
    rule = NoPropDT(**SMALL)
    net = rule.build(TASK, Noise(0), None, None)
    before = rule.estimate(net, batch(), Noise(0)).gradients
    with torch.no_grad():
        for name, trits in net.named_parameters():
            if not name.startswith("blocks.1."):
                trits.neg_()
    after = rule.estimate(net, batch(), Noise(0)).gradients
    same = {name: torch.equal(gradient, after[name]) for name, gradient in before.items()}
    assert all(same[name] for name in same if name.startswith("blocks.1."))
    assert not any(same[name] for name in same if "stages.1" in name and not name.startswith("blocks.1."))


def test_the_image_and_the_noisy_label_weigh_alike_in_a_block_s_first_layer():
    net = NoPropDT(**SMALL).build(TASK, Noise(0), None, None)
    features, latent = Noise(1).normal(512 * 64).view(512, 64), Noise(2).normal(512 * 4).view(512, 4)
    joined = net.block(0).joined(features, latent)
    assert joined[:, 64:].square().sum() / joined[:, :64].square().sum() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("estimator", ["local-probes", "local-losses"])
def test_it_learns_and_its_log_rebuilds_it(tmp_path, estimator):
    rule = NoPropDT(solver="noise-step", blocks=2, hidden=(64,), estimator=estimator, flip_share=0.01)
    run = train(rule, "digits", Options(epochs=6, decay="cosine", out=tmp_path / "run"))
    assert run.result["test_accuracy"] > 0.85
    replayed = rebuild(tmp_path / "run" / "steps.steplog")
    again = dict(replayed.net.named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in run.net.named_parameters())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"readout": "radial"}, "readout = nearest alone"),
        ({"readout": "softmax"}, "readout = nearest alone, got softmax; leave readout out"),
        ({"loss": "clipped"}, "loss = cross-entropy alone"),
        ({"loss": "paper"}, "loss = cross-entropy alone, got paper; leave loss out"),
        ({"embedding": "learned"}, "one-hot or orthogonal"),
        ({"hidden": ()}, "one hidden stage or more"),
        ({"flip_share": 0}, "flip_share must be above 0"),
        ({"momentum": 1.0}, "momentum must lie"),
        ({"solver": "noise"}, "solver must be one of"),
    ],
)
def test_what_needs_float_weights_is_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        NoPropDT(**{**SMALL, **wrong})


def test_what_is_left_out_follows_the_solver():
    plain, ternary = NoPropDT(), NoPropDT(**SMALL)
    assert (plain.loss, plain.readout) == ("paper", "softmax")
    assert (ternary.loss, ternary.readout) == ("cross-entropy", "nearest")
    assert NoPropDT(**{**SMALL, "loss": "cross-entropy", "readout": "nearest"}) == ternary


def test_options_of_ternary_blocks_have_no_use_in_others():
    with pytest.raises(InputError, match=r"flip_share = 0\.02 needs solver = noise-step"):
        NoPropDT(flip_share=0.02)


def test_modules_and_units_in_turn_are_refused(tmp_path):
    with pytest.raises(InputError, match="no place for a module"):
        train(NoPropDT(**SMALL), "digits", Options(epochs=1), module=lambda: nn.Sequential(nn.Flatten()))
    with pytest.raises(InputError, match="units = together"):
        train(NoPropDT(**SMALL), "digits", Options(epochs=1, units="in-turn", out=tmp_path / "run"))


def test_values_are_learned_too():
    noise = Noise(0)
    inputs = noise.normal(400 * 6).view(400, 6)
    targets = inputs @ noise.stream("map").normal(12).view(6, 2)
    arrays = data.from_arrays(inputs.numpy(), targets.numpy(), validation=0.2, targets="values")
    rule = NoPropDT(solver="noise-step", blocks=2, hidden=(64,), flip_share=0.01)
    run = train(rule, arrays, Options(epochs=30, batch=32, decay="cosine"))
    assert run.result["validation_score"] > 0.5  # R2


def test_an_optimiser_of_one_s_own_is_refused():
    with pytest.raises(
        InputError,
        match="steps of noprop-dt with solver = noise-step are moves of single ternary weights: leave optimizer out",
    ):
        train(NoPropDT(**SMALL), "digits", Options(steps=1), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
