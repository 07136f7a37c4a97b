"""Alignment with the true gradient: exact where it can be, held to theory where it is sampled, harmless to training."""

import itertools
import json
import math
from dataclasses import dataclass, replace
from statistics import mean

import pytest
import torch
import torch.nn.functional as F

from sidestep import Options, align, data, load_run, train
from sidestep.cli import main
from sidestep.errors import CheckpointError, InputError
from sidestep.measure import WHOLE, Comparison, effective_probes
from sidestep.nets.stages.feedback import FeedbackLayer
from sidestep.nets.ternary.layers import pack_layers, unpack_layers
from sidestep.noise import Noise
from sidestep.rules import (
    RULES,
    Backprop,
    Batch,
    Blockwise,
    DirectFeedbackAlignment,
    Evolution,
    FeedbackAlignment,
    ForwardGradient,
    HasTrueGradient,
    Hebbian,
    LocalLoss,
    NeuralODE,
    NoiseStep,
    NoPropCT,
    NoPropDT,
    NoPropFM,
    Task,
)
from sidestep.rules.shared.trits import sign_and_median
from sidestep.training import alignment_curves
from sidestep.training import alignment_watch as alignment
from sidestep.training.alignment_watch import TimeBudget

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
PLAIN = Options(precision="float32")


def batch(size=16):
    noise = Noise(0)
    return Batch(noise.normal(size * 64).view(size, 1, 8, 8), noise.stream("labels").integers(size, 4))


def compared(true, *estimates):
    comparison = Comparison({"w": true})
    for estimate in estimates:
        comparison.add({"w": estimate})
    return comparison.result()["w"]


def normal(*shape, seed=0):
    return Noise(seed).normal(math.prod(shape)).double().view(shape)


def test_a_gradient_agrees_with_itself_and_not_with_its_negative():
    true = normal(5, 4)
    same, other, longer = compared(true, true), compared(true, -true), compared(true, 2.5 * true, 2.5 * true)
    assert (same.cosine, same.sign_agreement, same.norm_ratio) == (pytest.approx(1), 1, pytest.approx(1))
    assert (other.cosine, other.sign_agreement, other.effective_probes) == (pytest.approx(-1), 0, 0)
    assert (longer.norm_ratio, longer.spread, longer.signal_to_noise) == (pytest.approx(2.5), 0, math.inf)
    assert same.effective_probes == math.inf
    assert math.isnan(same.signal_to_noise)  # a single estimate cannot tell


def test_signs_are_counted_where_neither_is_zero():
    found = compared(torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.tensor([3.0, 1.0, 5.0, 0.0]))
    assert found.sign_agreement == 0.5
    assert found.cosine == pytest.approx((3 - 1) / (math.sqrt(35) * math.sqrt(6)))


def test_all_tensors_together_are_one_long_vector():
    true = {"a": normal(3), "b": normal(7, seed=1)}
    estimates = [{"a": normal(3, seed=k), "b": normal(7, seed=k + 9), "c": normal(2)} for k in (2, 3, 4)]
    comparison = Comparison(true)
    for estimate in estimates:
        comparison.add(estimate)
    found = comparison.result()
    whole = compared(torch.cat(list(true.values())), *(torch.cat([e["a"], e["b"]]) for e in estimates))
    assert list(found) == ["a", "b", WHOLE]
    for name in ("elements", "cosine", "spread", "sign_agreement", "norm_ratio", "signal_to_noise", "effective_probes"):
        assert getattr(found[WHOLE], name) == pytest.approx(getattr(whole, name)), name


def test_one_sign_probe_over_all_sign_vectors_is_one_effective_probe_exactly():
    d, true = 10, normal(10)
    signs = [torch.tensor(v, dtype=torch.float64) for v in itertools.product((1.0, -1.0), repeat=d)]
    found = compared(true, *(v * (v @ true) for v in signs))
    assert found.effective_probes == pytest.approx(1, rel=1e-9)
    assert found.cosine == pytest.approx(float(torch.stack(signs).matmul(true).abs().mean() / true.norm() / d**0.5))
    count = len(signs)
    variance = (d - 1) * count / (count - 1)  # of one estimate, in units of |g|^2; its mean is g
    assert found.signal_to_noise == pytest.approx((1 - variance / count) / variance, rel=1e-9)


def test_the_ratio_of_moments_of_several_sign_probes_is_theory_s_over_all_sign_vectors():
    d, true = 4, normal(4, seed=3)
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=d)), dtype=torch.float64)
    for probes in (2, 3):
        chosen = torch.cartesian_prod(*[torch.arange(len(signs))] * probes)
        found = (signs[chosen] * (signs[chosen] @ true)[..., None]).mean(dim=1)  # every K-tuple of sign vectors
        squared = (found @ true).mean() ** 2 / (true @ true * found.square().sum(dim=1).mean())
        assert float(squared) == pytest.approx(probes / (probes + d - 1), rel=1e-12)
        assert effective_probes(float(squared), d) == pytest.approx(probes, rel=1e-9)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("probes", [1, 6, 40])
def test_forward_gradients_of_a_quadratic_have_the_cosine_of_theory(probes, kind):
    d, repeats = 60, 250
    curvature, at = normal(d, d, seed=1), normal(d, seed=2)

    def loss(w):
        return (curvature @ w).square().sum() / 2

    true = torch.func.grad(loss)(at)
    noise, count = Noise(4), repeats * probes * d
    drawn = noise.normal(count) if kind == "gaussian" else noise.signs(count)
    directions = drawn.double().view(repeats, probes, d)
    # d loss along v is exactly this: the loss is quadratic
    along = torch.func.vmap(torch.func.vmap(lambda v: torch.func.jvp(loss, (at,), (v,))[1]))(directions)
    estimates = (directions * along[..., None]).mean(dim=1)
    found = compared(true, *estimates)
    squares = [float(F.cosine_similarity(e, true, dim=0)) ** 2 for e in estimates]
    theory = probes / (probes + d - 1)
    error = torch.tensor(squares).std() / repeats**0.5
    assert abs(mean(squares) - theory) < 4 * error
    assert error < 0.1 * theory  # or the line above would say little
    assert found.effective_probes == pytest.approx(effective_probes(mean(squares), d))
    assert found.effective_probes == pytest.approx(probes, rel=0.3)


def test_signs_keep_two_over_pi_of_the_probes_and_sign_and_median_four_fifths():
    d, probes, repeats = 2000, 64, 60
    true = torch.zeros(d, dtype=torch.float64)
    true[0] = 1.0  # directions are isotropic, so any gradient will do
    looks = {"real": Comparison({"w": true}), "sign": Comparison({"w": true}), "median": Comparison({"w": true})}
    for repeat in range(repeats):
        directions = Noise(repeat).normal(probes * d).double().view(probes, d)
        coefs = directions @ true
        codes = {"real": coefs, "sign": coefs.sign(), "median": sign_and_median(coefs).double()}
        for name, code in codes.items():
            looks[name].add({"w": code @ directions})
    found = {name: look.result()["w"].effective_probes for name, look in looks.items()}
    assert found["real"] == pytest.approx(probes, rel=0.1)
    assert found["sign"] / found["real"] == pytest.approx(2 / math.pi, rel=0.05)
    assert found["median"] / found["real"] == pytest.approx(0.81, rel=0.05)


def test_numbers_that_do_not_exist_are_not_made_up():
    comparison = Comparison({"zero": torch.zeros(3), "one": torch.tensor([2.0]), "some": torch.ones(4)})
    comparison.add({"zero": torch.ones(3), "one": torch.tensor([1.0]), "some": torch.zeros(4)})
    found = comparison.result()
    assert math.isnan(found["zero"].cosine)
    assert math.isnan(found["zero"].norm_ratio)
    assert found["one"].cosine == 1
    assert math.isnan(found["one"].effective_probes)  # there is no other direction
    assert (found["some"].cosine, found["some"].norm_ratio) == (
        0,
        0,
    )  # one that says nothing, not one that is not there


def test_estimates_of_zeros_count_in_the_cosine_as_in_the_norm_ratio():
    true = normal(6)
    found = compared(true, true, 0 * true, true, 0 * true)
    assert (found.cosine, found.norm_ratio) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.spread == pytest.approx(1 / math.sqrt(3))


def test_all_estimates_have_the_names_of_the_first():
    comparison = Comparison({"a": torch.ones(2), "b": torch.ones(2)})
    comparison.add({"a": torch.ones(2), "other": torch.ones(1)})
    for later in ({"a": torch.ones(2), "b": torch.ones(2)}, {"b": torch.ones(2)}, {}):
        with pytest.raises(InputError, match="all estimates must have the tensors of the first one; estimate 2"):
            comparison.add(later)
    comparison.add({"a": torch.ones(2)})
    assert comparison.estimates == 2
    empty = Comparison({"a": torch.ones(2)})
    empty.add({})
    with pytest.raises(InputError, match="first one"):
        empty.add({"a": torch.ones(2)})
    with pytest.raises(InputError, match="no gradient can be called 'all'"):
        Comparison({WHOLE: torch.ones(2)})


def test_a_gradient_that_is_rounding_only_has_no_direction():
    true = {"weight": torch.ones(100), "bias": torch.full((4,), 1e-9)}
    comparison = Comparison(true)
    comparison.add(true)
    assert math.isnan(comparison.result()["bias"].cosine)
    comparison = Comparison({name: g.double() for name, g in true.items()})  # in float64 it is a gradient
    comparison.add(true)
    assert comparison.result()["bias"].cosine == pytest.approx(1)


# True gradients -------------------------------------------------------------------------------------------------------

PREDICTING = {
    "backprop chain": Backprop(blocks=2),
    "backprop mlp": Backprop(net="mlp", hidden=(12,)),
    "feedback-alignment": FeedbackAlignment(hidden=(12, 8), norm="layer"),
    "direct-feedback-alignment": DirectFeedbackAlignment(hidden=(12, 8), norm="none"),
    "local-loss": LocalLoss(hidden=(12, 8), norm="layer"),
    "evolution": Evolution(hidden=(12,)),
    "forward-gradient": ForwardGradient(hidden=(16,), groups=4),
    "noprop-dt": NoPropDT(blocks=2, embedding="learned", dimension=5, readout="radial"),
    "noprop-ct": NoPropCT(steps=3, embedding="learned", dimension=5),
    "noprop-fm": NoPropFM(steps=3),
    "noprop-fm velocity": NoPropFM(steps=3, prediction="velocity", loss="paper"),
    "neural-ode": NeuralODE(steps=3),
    "blockwise": Blockwise(groups=2, depth=2, width=16),
    "blockwise exact": Blockwise(groups=2, depth=2, width=16, exact_share=0.5),
}


@pytest.mark.parametrize("rule", PREDICTING.values(), ids=PREDICTING)
def test_true_gradients_are_the_slope_of_what_is_predicted(rule):
    """By finite differences of the default reading's cross-entropy along the gradient and across it, in float64."""
    net = rule.build(TASK, Noise(0), None, None).double()
    given = Batch(batch(6).inputs.double(), batch(6).targets)
    true = rule.true_gradients(net, given)
    parameters = dict(net.named_parameters())
    assert true.keys() <= parameters.keys()

    def loss(moved):
        with torch.no_grad():
            for name, change in moved.items():
                parameters[name].add_(change)
            chances = rule.predict(net, given.inputs, Noise(0), names=rule.readings[:1])[rule.readings[0]]
            for name, change in moved.items():
                parameters[name].sub_(change)
        return float(F.nll_loss(chances.log(), given.targets))

    for name in (max(true, key=lambda n: float(true[n].norm())), next(iter(true))):
        direction = (
            true[name] / true[name].norm().clamp_min(1e-30) + 0.1 * normal(*true[name].shape) / true[name].numel()
        )
        slope = (loss({name: 1e-5 * direction}) - loss({name: -1e-5 * direction})) / 2e-5
        assert slope == pytest.approx(float((true[name] * direction).sum()), rel=2e-3, abs=1e-8), name


def test_feedback_that_equals_the_weights_aligns_exactly_and_other_feedback_does_not():
    rule = FeedbackAlignment(hidden=(12, 8), norm="layer")
    net = rule.build(TASK, Noise(0), None, None)
    found = alignment.compare(rule, net, batch(), Noise(1), 1, alignment.Compute.find("cpu", "float32")).result()
    assert found["stages.0.1.layer.weight"].cosine < 0.9
    for layer in net.modules():
        if isinstance(layer, FeedbackLayer):
            assert not layer.exact
            layer.feedback.copy_(layer.layer.weight.detach())
    found = alignment.compare(rule, net, batch(), Noise(1), 1, alignment.Compute.find("cpu", "float32")).result()
    assert found[WHOLE].cosine == pytest.approx(1, abs=1e-6)
    assert found[WHOLE].norm_ratio == pytest.approx(1, abs=1e-5)


def test_direct_feedback_through_the_head_s_own_weights_aligns_exactly():
    rule = DirectFeedbackAlignment(hidden=(12,), norm="none")
    net = rule.build(TASK, Noise(0), None, None)
    net.feedback_0.copy_(net.heads[0][-1].weight.detach())
    found = alignment.compare(rule, net, batch(), Noise(1), 1, alignment.Compute.find("cpu", "float32")).result()
    assert found[WHOLE].cosine == pytest.approx(1, abs=1e-6)
    assert found[WHOLE].norm_ratio == pytest.approx(1, abs=1e-5)


def test_the_last_of_local_losses_is_the_true_one_and_other_heads_are_left_out():
    rule = LocalLoss(hidden=(12, 8), norm="layer", label_smoothing=0.0)
    found = align(rule, "digits", PLAIN, estimates=2)
    assert {name.split(".")[1] for name in found.left_out} == {"0"}
    assert all(name.startswith("heads.0.") for name in found.left_out)
    for name, one in found.tensors.items():
        last = name.startswith(("stages.1.", "heads.1."))
        assert (one.cosine == pytest.approx(1, abs=1e-6)) == last, name
    assert found.whole.signal_to_noise == math.inf


def test_trits_have_the_gradient_of_the_real_numbers_that_they_are():
    rule = NoiseStep(hidden=(12, 8), label_smoothing=0.0)
    found = align(rule, "digits", PLAIN, estimates=1)
    assert found.left_out == ("heads.0.weight",)
    assert found.tensors["stages.1.0.weight"].cosine == pytest.approx(1, abs=1e-5)
    assert abs(found.tensors["stages.0.1.weight"].cosine) < 0.9


def test_seeded_estimates_are_measured_as_the_direction_that_they_stand_for():
    rule = NoiseStep(estimator="weight-probes", hidden=(12,), probes=64, density=1.0, schedule="constant")
    found = align(rule, "digits", PLAIN, estimates=24)
    assert found.whole.effective_probes == pytest.approx(64, rel=0.35)
    rank_one = align(NoiseStep(estimator="rank-one", hidden=(12,)), "digits", PLAIN, estimates=24)
    assert rank_one.whole.cosine > 3 * rank_one.whole.spread / 24**0.5


def test_weight_probes_of_a_net_are_as_many_as_they_are():
    found = align(ForwardGradient(kind="weights", hidden=(8,), tangents=8), "digits", PLAIN, estimates=20)
    assert found.whole.effective_probes == pytest.approx(8, rel=0.4)
    assert found.left_out == ()


def test_packing_trits_can_be_undone():
    net = NoiseStep(hidden=(12, 8), bias=True).build(TASK, Noise(0), None, None)
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    unpack_layers(pack_layers(net))
    after = dict(net.named_parameters())
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) and not after[name].requires_grad for name in before)


# While training -------------------------------------------------------------------------------------------------------

TRAINED = {
    "backprop": Backprop(net="mlp", hidden=(16,)),
    "feedback-alignment": FeedbackAlignment(hidden=(16, 8)),
    "noprop-dt": NoPropDT(blocks=1),
    "noise-step": NoiseStep(hidden=(16, 8)),
    "noise-step probes": NoiseStep(estimator="weight-probes", hidden=(8,), schedule="loss-triggered", probes=16),
}


@pytest.mark.parametrize("rule", TRAINED.values(), ids=TRAINED)
def test_measuring_changes_no_bit_of_training(rule, tmp_path, monkeypatch):
    plain = Options(epochs=1, batch=256, out=tmp_path / "plain", average=0.9 if "backprop" in rule.name else 0.0)
    train(rule, "digits", plain)
    monkeypatch.setattr(TimeBudget, "allows", lambda self: True)
    train(rule, "digits", replace(plain, out=tmp_path / "measured", align=0.05))
    for file in ("model.safetensors", "steps.steplog"):
        if (tmp_path / "plain" / file).exists():
            assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "measured" / file).read_bytes()
    curves = alignment_curves(tmp_path / "measured")
    assert [step for step, _ in curves["all"]] == [1, 2, 3, 4, 5]
    assert all(-1 <= value <= 1 for curve in curves.values() for _, value in curve)
    assert alignment_curves(tmp_path / "plain") == {}
    lines = [json.loads(line) for line in (tmp_path / "measured/metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["value"] < 1 for line in lines if line["name"] == "share of the time")


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("share", [0.05, 0.01])
@pytest.mark.parametrize("price", [0.1, 4.0, 50.0])  # in steps; the first is guessed at eight
def test_the_share_of_the_time_is_kept_and_used(share, price):
    clock = Clock()
    allowance, looks, since = TimeBudget(share, 8, clock), 0, 0
    for step in range(60_000):
        clock.now += 1
        if allowance.allows():
            assert looks == 0 or step - since >= price / share - 1  # they are spread over the run
            clock.now += price
            allowance.pay(price)
            looks, since = looks + 1, step
            # a first look that cost more than was guessed is made up for before the second
            assert looks == 1 or allowance.spent <= share * clock.now
    assert allowance.spent <= share * clock.now
    assert allowance.spent >= 0.9 * share * clock.now


def test_the_share_is_kept_when_prices_vary():
    clock = Clock()
    allowance, prices = TimeBudget(0.05, 8, clock), Noise(0).uniform(60_000).mul(6).add(1).tolist()
    for price in prices:
        clock.now += 1
        if allowance.allows():
            clock.now += price
            allowance.pay(price)
    assert 0.5 * 0.05 * clock.now <= allowance.spent <= 0.05 * clock.now


def test_options_of_a_run_may_be_resumed_with_and_without(tmp_path):
    rule, options = Backprop(net="mlp", hidden=(16,)), Options(epochs=1, batch=256, out=tmp_path / "run")
    train(rule, "digits", options)
    train(rule, "digits", replace(options, epochs=2, resume=True, align=0.05))
    run = train(rule, "digits", replace(options, epochs=3, resume=True))
    assert run.step == 15


DIVIDING = {
    "parts": Backprop(net="mlp", hidden=(8,), accumulate=32),
    "groups": Evolution(hidden=(8,), per="group", group=32, population=2),
}


@pytest.mark.parametrize("rule", DIVIDING.values(), ids=DIVIDING)
def test_the_held_batch_divides_as_the_batch_of_training_does(rule, tmp_path, monkeypatch):
    """The digits have 144 validation images, which do not divide by 32."""
    assert align(rule, "digits", Options(batch=256), estimates=1).images == 128
    assert align(replace(rule, **{rule.batch_multiple[0]: 1}), "digits", Options(batch=256), estimates=1).images == 144
    monkeypatch.setattr(TimeBudget, "allows", lambda self: True)
    train(rule, "digits", Options(epochs=1, batch=256, align=0.05, out=tmp_path / "run"))
    assert len(alignment_curves(tmp_path / "run")["all"]) == 5


@pytest.mark.parametrize("share", [-0.01, 0.06, float("nan")])
def test_shares_of_the_time_out_of_range_are_refused(share):
    with pytest.raises(InputError, match=r"align must lie in \[0, 0.05\]"):
        Options(align=share)


@dataclass(frozen=True)
class Own:
    """A rule of a user's without a true gradient."""

    name = "own"


def test_rules_without_a_true_gradient_say_why_and_name_those_that_have_one(tmp_path):
    with pytest.raises(InputError, match=r"hebbian cannot .* correlations .* can: .*direct-feedback-alignment"):
        align(Hebbian(hidden=(8,)), "digits")
    with pytest.raises(InputError, match="forward-forward cannot"):
        align(RULES["forward-forward"](hidden=(16,)), "digits")
    with pytest.raises(InputError, match=r"own cannot .*sidestep\.rules\.HasTrueGradient"):
        alignment.check_measurable(Own())
    with pytest.raises(InputError, match="hebbian cannot"):
        train(Hebbian(hidden=(8,)), "digits", Options(epochs=1, align=0.05, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert {name for name, kind in RULES.items() if not issubclass(kind, HasTrueGradient)} == {
        "hebbian",
        "forward-forward",
    }


def test_bad_input_is_refused(tmp_path):
    rule = Backprop(net="mlp", hidden=(8,))
    nothing_held = data.load("digits", validation=0.0)
    with pytest.raises(InputError, match=r"at least 2 images that are not trained on, got 0.*--validation"):
        align(rule, nothing_held)
    with pytest.raises(InputError, match="at least 2 images"):
        train(rule, nothing_held, Options(epochs=1, align=0.01, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        train(rule, "digits", Options(epochs=1, align=0.01))
    for units in ("in-turn", "one-resident"):
        with pytest.raises(InputError, match=f"all units at once, which units = {units} is to avoid"):
            train(LocalLoss(hidden=(8,)), "digits", Options(epochs=1, align=0.05, units=units, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="estimates must lie between 1 and 1,000,000, got 0"):
        align(rule, "digits", estimates=0)
    with pytest.raises(InputError, match="estimates must lie between 1 and 1,000,000, got 2000000"):
        align(rule, "digits", estimates=2_000_000)
    with pytest.raises(InputError, match="at least 200 images that are not trained on, for group = 200, got 144"):
        align(Evolution(hidden=(8,), per="group", group=200), "digits", Options(batch=400))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(CheckpointError, match="damaged"):
        alignment_curves(tmp_path)


def test_a_run_is_measured_on_the_data_that_it_was_trained_on(tmp_path):
    run = train(Backprop(net="mlp", hidden=(8,)), "digits", Options(epochs=0, out=tmp_path / "run"))
    digits = data.load("digits")
    small = data.Split(digits.train.images[:, :, :4, :4], digits.train.labels)
    for changed, words in (
        ({"train": small, "validation": small}, r"shape \(1, 4, 4\), but .* trained on \(1, 8, 8\)"),
        ({"class_names": tuple("abcdefghij")}, "has the classes a, b"),
        ({"class_names": digits.class_names[:9]}, "9 classes"),
        ({"train": data.Split(digits.train.images.float(), digits.train.labels)}, "trained on uint8 pixels"),
    ):
        with pytest.raises(InputError, match=words):
            align(run, replace(digits, **changed))
    with pytest.raises(InputError, match=r"cut otherwise \(1,006 train images, not 1,293\): bring the data back"):
        align(load_run(tmp_path / "run"), data.load("digits", validation=0.3))
    assert align(run, digits, estimates=1).images == 128


def test_curves_of_every_measure_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(TimeBudget, "allows", lambda self: True)
    rule = Evolution(hidden=(8,), population=2)
    train(rule, "digits", Options(epochs=1, batch=256, align=0.05, out=tmp_path / "run"))
    for measure in ("cosine", "norm_ratio", "norm ratio", "signal_to_noise"):
        assert len(alignment_curves(tmp_path / "run", measure)["all"]) == 5, measure
    with pytest.raises(InputError, match=r"measure must be one of cosine, spread.*got 'beauty'"):
        alignment_curves(tmp_path / "run", "beauty")


# The command ----------------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    status = 0
    try:
        main(arguments)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, " ".join(captured.err.split())


def test_the_command_measures_a_rule_and_a_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "align", "local-loss", "--hidden", "16", "8", "--estimates", "2", "--out", "a.png")
    assert status == 0
    assert "stages.0.1.weight" in out
    assert "left out" in out
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(TimeBudget, "allows", lambda self: True)
    given = ["noise-step", "--hidden", "16", "--epochs", "1", "--align", "0.05", "--out", "run"]
    assert run(capsys, "train", *given)[0] == 0
    status, out, _ = run(capsys, "align", "run", "--json", "--out", "b.png")
    assert status == 0
    record = json.loads(out.strip().splitlines()[-1])
    assert record["step"] == 10
    assert record["whole"]["elements"] == 64 * 16 + 16 * 10
    assert len(record["training"]["all"]) == 10
    assert (tmp_path / "b.png").exists()
    again = align(load_run(tmp_path / "run"), "digits").record()
    assert again["whole"] == record["whole"]


def test_the_command_says_what_is_wrong(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "usage: sidestep align RULE" in run(capsys, "align")[1]
    for arguments, words in (
        (["hebian"], "did you mean hebbian"),
        (["hebbian"], "hebbian cannot be compared"),
        (["spsa", "--out", "a.jpg"], "must end in .png"),
        (["spsa", "--validation", "0"], "at least 2 images"),
        (["spsa", "--batch", "1"], "at least 2 images"),
        (["."], "not the folder of a run"),
    ):
        status, _, error = run(capsys, "align", *arguments)
        assert status == 2, arguments
        assert words in error
