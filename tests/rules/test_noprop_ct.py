"""NoProp-CT: every loss and its gradients against the plain reference, and the mistakes that implementations made."""

import inspect
import math
import re

import pytest
import torch

from sidestep import Options, train
from sidestep.errors import InputError, NonFiniteError
from sidestep.nets import Dropout
from sidestep.nets.noprop.denoiser import draw_times
from sidestep.noise import Noise
from sidestep.rules import Batch, NeuralODE, NoPropCT, NoPropFM, Task
from tests.reference.noprop_continuous_plain import (
    PlainCosineGamma,
    PlainLearnedGamma,
    PlainLinearGamma,
    PlainTimedBlock,
    plain_ct_terms,
)
from tests.reference.noprop_readings_plain import (
    assert_a_draw_is_walked_once,
    assert_readings_are_plain,
    normals_of,
    plain_output,
    times_of,
    with_a_plain_block,
)
from tests.reference.noprop_walks_plain import plain_ancestral, plain_ddim, plain_euler, plain_heun

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
LOW, HIGH = 0.02, 0.97


def batch(size=24):
    noise = Noise(11)
    return Batch(noise.normal(size * 64).view(size, 1, 8, 8), noise.stream("labels").integers(size, 4))


def built(**options):
    rule = NoPropCT(**{"steps": 5, "draws": 2, **options})
    return rule, rule.build(TASK, Noise(0), None, None)


def estimate_noise():
    return Noise(0).stream("estimate").at(5)


def in_double(net):
    """The net in float64 and without dropout, and a plain block with the same weights."""
    net.double()
    for module in net.modules():
        if isinstance(module, Dropout):
            module.rate = 0.0
    plain = PlainTimedBlock(1, 8, 4, net.dimension)
    with torch.no_grad():
        for source, target in zip(net.block.parameters(), plain.parameters(), strict=True):
            assert source.shape == target.shape
            target.copy_(source)
    return plain


def plain_gamma(rule, net):
    if rule.schedule == "learned":
        made = net.schedule
        return PlainLearnedGamma(made.g0, made.log_span, made.inner, made.bias, made.outer)
    kind = PlainLinearGamma if rule.schedule == "linear" else PlainCosineGamma
    return kind(rule.smallest_alpha_bar, rule.largest_alpha_bar)


def readout_parameters(net):
    known = dict(net.readout.named_parameters())
    names = [name for name in ("linear.weight", "linear.bias", "log_sigma") if name in known]
    return {f"readout.{name}": known[name].detach().clone().requires_grad_() for name in names}


CASES = {
    "cross-entropy": {},
    "cross-entropy smoothed, cosine": {"label_smoothing": 0.2, "schedule": "cosine"},
    "unweighted": {"loss": "unweighted", "embedding": "learned", "dimension": 6},
    "clipped": {"loss": "clipped", "largest_weight": 4.0, "embedding": "learned", "dimension": 3, "readout": "nearest"},
    "paper": {"loss": "paper", "eta": 0.3},
    "paper cosine": {"loss": "paper", "schedule": "cosine", "embedding": "learned", "readout": "radial"},
    "paper learned": {"loss": "paper", "schedule": "learned", "embedding": "learned", "dimension": 6},
    "paper learned radial": {"loss": "paper", "schedule": "learned", "readout": "radial", "times": "uniform"},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_losses_and_all_gradients_equal_the_plain_reference(options):
    rule, net = built(smallest_alpha_bar=LOW, largest_alpha_bar=HIGH, **options)
    plain, size = in_double(net), 8
    given = batch(size)
    update = rule.estimate(net, Batch(given.inputs.double(), given.targets), estimate_noise())

    draw = draw_times(rule.times, size, net.dimension, estimate_noise().generator())
    normal = torch.empty(size, net.dimension, dtype=torch.float64)
    normal.normal_(generator=estimate_noise().sub(1).generator())
    gamma, readout = plain_gamma(rule, net), readout_parameters(net)
    embedding = net.embedding.detach().clone().requires_grad_()
    settings = {"loss": rule.loss, "eta": rule.eta, "largest": rule.largest_weight, "smoothing": rule.label_smoothing}
    settings["readout"] = rule.readout
    terms = [
        plain_ct_terms(
            plain, gamma, embedding, list(readout.values()),
            (given.inputs[i].double(), int(given.targets[i]), float(draw.time[i]), draw.normal[i].double(), normal[i]),
            settings,
        )
        for i in range(size)
    ]  # fmt: skip
    means = [sum(part) / size for part in zip(*terms, strict=True)]
    names = ["block: denoising", "read-out: cross-entropy", "read-out: KL"]
    for name, mean in zip(names, means, strict=True):
        assert float(update.losses[name]) == pytest.approx(mean.item(), rel=1e-4), name

    wanted = {f"block.{name}": p for (name, _), p in zip(net.block.named_parameters(), plain.parameters(), strict=True)}
    wanted |= readout
    if isinstance(net.embedding, torch.nn.Parameter):
        wanted["embedding"] = embedding
    if rule.schedule == "learned":
        parts = ("g0", "log_span", "inner", "bias", "outer")
        wanted |= {f"schedule.{part}": p for part, p in zip(parts, gamma.parameters, strict=True)}
    assert wanted.keys() == update.gradients.keys()
    gradients = torch.autograd.grad(sum(means), list(wanted.values()))
    for name, gradient in zip(wanted, gradients, strict=True):
        found = update.gradients[name]
        assert found.dtype == torch.float64
        scale = float(gradient.abs().max())
        assert scale > 0, name
        assert torch.allclose(found, gradient, rtol=1e-3, atol=2e-4 * scale), name


@pytest.mark.parametrize("schedule", ["linear", "cosine", "learned"])
def test_the_block_sees_the_label_times_the_root_of_alpha_bar(schedule):
    rule, net = built(schedule=schedule, loss="paper")
    seen = []
    net.block.latent.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    given = batch()
    rule.estimate(net, given, estimate_noise())
    draw = draw_times(rule.times, 24, 4, estimate_noise().generator())
    alpha_bar = net.schedule.alpha_bar(draw.time).detach()[:, None]
    wanted = torch.sqrt(alpha_bar) * torch.eye(4)[given.targets] + torch.sqrt(1 - alpha_bar) * draw.normal
    torch.testing.assert_close(seen[0], wanted)
    late, early = draw.time.argmax(), draw.time.argmin()
    assert seen[0][late].argmax() == given.targets[late]  # the label is there at the end, and hardly at the start
    assert (seen[0][early] - draw.normal[early]).abs().max() < 0.1


def test_the_paper_s_weight_is_half_eta_snr_prime_which_is_positive():
    rule, net = built(loss="paper", eta=0.7)
    plain, plain_net = built(loss="unweighted")
    weights = 0.35 * net.schedule.snr_slope(draw_times("stratified", 24, 4, estimate_noise().generator()).time)
    assert (weights > 0).all()
    assert weights.max() > 100 * weights.min()  # a few times own nearly all of the gradient
    one, two = rule.estimate(net, batch(), estimate_noise()), plain.estimate(plain_net, batch(), estimate_noise())
    ratio = float(one.losses["block: denoising"] / two.losses["block: denoising"])
    assert float(weights.min()) < ratio < float(weights.max())


def test_a_learned_schedule_stays_a_schedule_while_it_learns():
    rule, net = built(loss="paper", schedule="learned", embedding="learned", dimension=6, learning_rate=0.02)
    before = net.schedule.alpha_bar(torch.linspace(0, 1, 9)).detach()
    optimizer = rule.optimizer(net)
    for step in range(12):
        rule.apply(net, rule.estimate(net, batch(), Noise(0).at(step)), optimizer)
    after = net.schedule.alpha_bar(torch.linspace(0, 1, 9)).detach()
    assert (after - before).abs().max() > 1e-3
    assert (after.diff() > 0).all()
    assert set(rule.diagnostics(net)) >= {"alpha_bar(0)", "alpha_bar(1)", "smallest embedding norm"}


def test_a_learned_schedule_that_has_become_flat_is_an_error():
    rule, net = built(loss="paper", schedule="learned", embedding="learned", dimension=6)
    with torch.no_grad():
        net.schedule.log_span.fill_(-10.0)
    assert re.search(r"flat: alpha_bar\(0\) = .*--schedule linear", rule.failure(net))
    assert built(loss="paper", schedule="learned")[0].failure(built(loss="paper", schedule="learned")[1]) is None
    narrow, net = built(smallest_alpha_bar=0.5, largest_alpha_bar=0.5008)  # a fixed one may be as narrow as it likes
    assert narrow.failure(net) is None


@pytest.mark.parametrize("gamma", [-13.0, -16.7, -40.0])
def test_a_label_that_is_all_but_clean_leaves_every_gradient_and_reading_finite(gamma):
    """In float32 `1 - sigmoid(16.7)` is 0: its root had an infinite slope."""
    rule, net = built(loss="paper", schedule="learned", embedding="learned", dimension=6, steps=5, draws=1)
    with torch.no_grad():
        net.schedule.g0.fill_(gamma)
    update = rule.estimate(net, batch(), estimate_noise())
    assert all(gradient.isfinite().all() for gradient in update.gradients.values())
    assert update.gradients["schedule.g0"].abs() > 0
    for name, probabilities in rule.predict(net, batch().inputs, Noise(1)).items():
        assert probabilities.isfinite().all(), name
    assert (rule.failure(net) is None) == (gamma > -13.8)
    rule.apply(net, update, rule.optimizer(net))
    assert rule.failure(net) is None
    assert net.schedule.g0.item() == pytest.approx(max(gamma, -13.8155), abs=0.01)


def test_what_is_not_finite_or_saturated_is_said():
    given = {"loss": "paper", "schedule": "learned"}
    for name, value, words in (
        ("schedule.g0", math.nan, "schedule.g0 is not finite"),
        ("block.join.bias", math.inf, "block.join.bias is not finite"),
        ("schedule.log_span", 200.0, "the noise schedule is not finite"),
        ("schedule.g0", -20.0, r"saturated: .* between -13.8 and 20.7"),
        ("schedule.g0", 20.0, "saturated"),
        ("schedule.inner", -60.0, "not finite"),
    ):
        rule, net = built(**given)
        with torch.no_grad():
            net.get_parameter(name).fill_(value)
        assert re.search(words, rule.failure(net)), name


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ends_of_a_fixed_schedule_may_be_as_near_as_its_options_allow(schedule):
    rule, net = built(schedule=schedule, smallest_alpha_bar=1e-9, largest_alpha_bar=1 - 1e-6)
    assert rule.failure(net) is None


def test_a_run_whose_schedule_becomes_flat_stops_and_keeps_its_last_checkpoint(tmp_path):
    class Flattening(NoPropCT):
        def failure(self, net):
            with torch.no_grad():
                net.schedule.log_span.fill_(-10.0)
            return super().failure(net)

    rule = Flattening(loss="paper", schedule="learned")
    with pytest.raises(
        NonFiniteError,
        match=r"after step 11, the learned schedule.*; there is no checkpoint, since the run has no folder",
    ):
        train(rule, "digits", Options(epochs=2, batch=112))


def test_prediction_has_no_label_and_an_untrained_net_scores_near_chance():
    rule, net = built()
    assert not {"label", "labels", "y", "target"} & inspect.signature(rule.predict).parameters.keys()
    images = Noise(2).normal(400 * 64).view(400, 1, 8, 8)
    labels = Noise(2).stream("labels").integers(400, 4)
    for name, probabilities in rule.predict(net, images, Noise(1)).items():
        accuracy = (probabilities.argmax(1) == labels).float().mean()
        assert accuracy < 0.35, name  # a quarter by chance; a net that is shown the label scores 1
        torch.testing.assert_close(probabilities.sum(1), torch.ones(400))


def test_the_first_step_is_the_block_s_own_answer_softmaxed_once():
    rule, net = built()
    probabilities = rule.predict(net, batch().inputs, Noise(1))["first step"]
    net.eval()
    with torch.no_grad():
        logits = net.block.outputs(net.block.prepare(batch().inputs), torch.zeros(24, 4), torch.zeros(1))
    torch.testing.assert_close(probabilities, logits.softmax(1))


def plain_readings(rule, image, place, noise):
    """Every fixed-step reading of one image as `softmax(z_1)`, and one for each draw of the chain."""
    steps, pixels, zero = rule.steps, image.flatten()[:4], torch.zeros(4).double()
    times = times_of(rule)
    start, end = (math.log(1 / level - 1) for level in (rule.smallest_alpha_bar, rule.largest_alpha_bar))

    def alpha_bar(t):
        return 1 / (1 + math.exp(start + (end - start) * t))

    def estimate(z, t):
        return plain_output(z, t, pixels).softmax(0)

    def rate(z, t):
        return (start - end) / 2 * (math.sqrt(alpha_bar(t)) * estimate(z, t) - alpha_bar(t) * z)

    draws = [normals_of(noise, place, draw, steps + 1) for draw in range(rule.draws)]
    first = zero if rule.start == "zero" else draws[0][0]
    singles = [plain_ancestral(estimate, alpha_bar, times, normals).softmax(0) for normals in draws]
    found = {
        "ddim": plain_ddim(estimate, alpha_bar, times, first).softmax(0),
        "ddim from noise": plain_ddim(estimate, alpha_bar, times, draws[0][0]).softmax(0),
        "ancestral": singles[0],
        "euler": plain_euler(rate, times, first).softmax(0),
        "heun": plain_heun(rate, times, first, to_the_end=True).softmax(0),
        "mean": sum(singles) / rule.draws,
        "first step": estimate(zero, 0.0),
    }
    return found, singles


@pytest.mark.parametrize("start", ["zero", "noise"])
@pytest.mark.parametrize("grid", ["uniform", "cosine"])
def test_every_reading_equals_a_plain_walk_and_the_mean_is_over_draws_that_differ(start, grid):
    rule, net = built(draws=3, start=start, grid=grid)
    with_a_plain_block(net)
    images = batch(6).inputs.double()
    assert_readings_are_plain(rule, net, images, Noise(4), plain_readings, "ddim from noise")


def test_a_draw_that_two_readings_are_made_of_is_walked_once(monkeypatch):
    rule, net = built(draws=3)
    assert_a_draw_is_walked_once(monkeypatch, rule, net, batch().inputs, ["ancestral", "mean"], 3 * 5)


def test_readings_differ_as_samplers_do_and_only_those_asked_for_are_computed():
    rule, net = built(steps=7)
    found = rule.predict(net, batch().inputs, Noise(1), names=["heun", "mean"])
    assert list(found) == ["heun", "mean"]
    every = rule.predict(net, batch().inputs, Noise(1))
    assert torch.equal(every["heun"], found["heun"])
    assert not torch.allclose(every["ancestral"], every["ddim from noise"])
    finer = NoPropCT(steps=200).predict(net, batch().inputs, Noise(1), names=["ddim", "euler", "heun", "adaptive"])
    for name in ("euler", "heun", "adaptive"):  # all solve the equation that ddim does
        assert (finer[name] - finer["ddim"]).abs().max() < 0.02, name


@pytest.mark.parametrize("loss", ["clipped", "unweighted", "cross-entropy"])
def test_a_learned_schedule_with_another_loss_is_refused(loss):
    with pytest.raises(InputError, match=f"schedule = learned needs loss = paper, got {loss}.*linear or cosine"):
        NoPropCT(schedule="learned", loss=loss)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eta": 0.0}, "eta must be above 0"),
        ({"largest_weight": math.nan}, "largest_weight must be above 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie between 0"),
        ({"learning_rate": math.inf}, "learning_rate must be"),
        ({"weight_decay": -0.1}, "weight_decay must lie between 0"),
        ({"dimension": 0}, "dimension must lie between 1"),
        ({"draws": 0}, "draws must lie between 1"),
        ({"draws_per_image": 0}, "draws_per_image must lie between 1"),
        ({"steps": 1001}, "steps must be between 1 and 1000"),
        ({"solver": "euler"}, "solver must be one of dopri5"),
        ({"start": "ones"}, "start must be one of zero, noise, got 'ones'"),
        ({"grid": "square"}, "grid must be one of uniform, cosine, got 'square'"),
        ({"schedule": "quadratic"}, "schedule must be one of learned, linear, cosine"),
        ({"loss": "huber"}, "loss must be one of paper, clipped"),
        ({"times": "sorted"}, "times must be one of stratified, uniform"),
        ({"optimizer_kind": "sgd"}, "optimizer_kind must be one of adam, adamw"),
        ({"smallest_alpha_bar": 0.9, "largest_alpha_bar": 0.1}, "rise"),
        ({"largest_alpha_bar": 1.0}, "largest_alpha_bar must lie between"),
        ({"eta": 100.0}, "eta = 100.0 needs loss = paper or clipped, got cross-entropy.*default, 1.0"),
        ({"loss": "unweighted", "eta": 2.0}, "eta = 2.0 needs loss = paper or clipped, got unweighted"),
        ({"loss": "paper", "largest_weight": 0.001}, "largest_weight = 0.001 needs loss = clipped, got paper"),
    ],
)
def test_bad_options_say_what_is_needed(options, words):
    with pytest.raises(InputError, match=words):
        NoPropCT(**options)


def test_a_length_that_the_embedding_cannot_have_is_refused_when_the_classes_are_known():
    with pytest.raises(InputError, match="here 4, so dimension cannot be 6"):
        NoPropCT(dimension=6).build(TASK, Noise(0), None, None)


@pytest.mark.parametrize(("kind", "optimizer"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_holds_every_parameter_once(kind, optimizer):
    rule, net = built(loss="paper", schedule="learned", embedding="learned", optimizer_kind=kind, weight_decay=0.01)
    made = rule.optimizer(net)
    assert isinstance(made, optimizer)
    assert type(made).__name__ == optimizer.__name__  # AdamW is an Adam, too
    assert [group["weight_decay"] for group in made.param_groups] == [0.01] * 2
    found = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in net.parameters())


def test_a_net_with_nothing_but_its_block_to_train_has_one_unit():
    rule, net = built(readout="nearest")
    assert list(rule.units(net)) == ["block"]
    update = rule.estimate(net, batch(), estimate_noise())
    assert update.gradients.keys() == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("kind", [NoPropCT, NoPropFM, NeuralODE])
def test_with_batch_norm_the_images_features_are_those_of_the_batch_and_in_use_of_the_running_means(kind):
    rule = kind(norm="batch", steps=2)
    net = rule.build(TASK, Noise(0), None, None)
    path, given = net.block.image, batch()
    for module in net.modules():
        if isinstance(module, Dropout):
            module.rate = 0.0
    plain = path.dense(path.convolutions(given.inputs).flatten(1))
    torch.testing.assert_close(path(given.inputs), (plain - plain.mean(0)) / (plain.var(0, False) + 1e-5).sqrt())
    before = path.norm.running_mean.clone()
    optimizer = rule.optimizer(net)
    for step in range(3):
        update = rule.estimate(net, given, Noise(0).stream("estimate").at(step))
        rule.apply(net, rule.decide(net, update, optimizer), optimizer)
    assert int(path.norm.num_batches_tracked) == 1 + 3  # the look at the features above is one
    assert not torch.equal(path.norm.running_mean, before)
    reading = rule.readings[0]
    whole = rule.predict(net.eval(), given.inputs, Noise(1), 0, [reading])[reading]
    first = rule.predict(net, given.inputs[:1], Noise(1), 0, [reading])[reading]
    torch.testing.assert_close(first, whole[:1])  # no image is scaled by the others when read
    assert kind().build(TASK, Noise(0), None, None).block.image.norm.__class__ is torch.nn.ReLU


@pytest.mark.parametrize(("options", "module"), [({"path": "resnet-9"}, None), ({}, torch.nn.Flatten)])
def test_batch_norm_is_for_the_paths_that_have_a_choice(options, module):
    with pytest.raises(InputError, match=r"norm = batch is how the other built-in paths can end, and .*leave norm out"):
        NoPropCT(norm="batch", **options).build(TASK, Noise(0), None, module)
