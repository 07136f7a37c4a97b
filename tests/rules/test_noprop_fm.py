"""NoProp-FM: every loss and its gradients against the plain reference, by either prediction."""

import inspect
import math

import pytest
import torch

from sidestep.errors import InputError
from sidestep.nets import Dropout
from sidestep.nets.noprop.denoiser import draw_times
from sidestep.noise import Noise
from sidestep.rules import Batch, NoPropFM, Task
from tests.reference.noprop_continuous_plain import PlainTimedBlock, plain_fm_terms
from tests.reference.noprop_readings_plain import (
    assert_a_draw_is_walked_once,
    assert_readings_are_plain,
    normals_of,
    plain_output,
    times_of,
    with_a_plain_block,
)
from tests.reference.noprop_walks_plain import plain_euler, plain_heun

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
VELOCITY = {"prediction": "velocity", "loss": "paper"}


def batch(size=24):
    noise = Noise(11)
    return Batch(noise.normal(size * 64).view(size, 1, 8, 8), noise.stream("labels").integers(size, 4))


def built(**options):
    rule = NoPropFM(**{"steps": 5, "draws": 2, **options})
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


def readout_parameters(net):
    known = dict(net.readout.named_parameters())
    names = [name for name in ("linear.weight", "linear.bias", "log_sigma") if name in known]
    return {f"readout.{name}": known[name].detach().clone().requires_grad_() for name in names}


CASES = {
    "cross-entropy": {},
    "cross-entropy smoothed, learned": {"label_smoothing": 0.2, "embedding": "learned", "dimension": 6},
    "unweighted, anchored by a read-out": {"loss": "unweighted", "readout": "softmax"},
    "clipped": {"loss": "clipped", "largest_weight": 2.0, "embedding": "learned", "dimension": 3, "readout": "radial"},
    "paper": {"loss": "paper"},
    "paper learned": {"loss": "paper", "embedding": "learned", "dimension": 6},
    "velocity": VELOCITY,
    "velocity learned": {**VELOCITY, "embedding": "learned", "dimension": 6},
    "velocity learned radial, spread": {**VELOCITY, "embedding": "learned", "readout": "radial", "sigma": 0.3},
    "cross-entropy, spread": {"sigma": 0.5, "times": "uniform"},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_losses_and_all_gradients_equal_the_plain_reference(options):
    rule, net = built(**options)
    plain, size = in_double(net), 8
    given = batch(size)
    update = rule.estimate(net, Batch(given.inputs.double(), given.targets), estimate_noise())

    generator = estimate_noise().generator()
    draw = draw_times(rule.times, size, net.dimension, generator)
    about = torch.zeros(size, net.dimension, dtype=torch.float64)
    if rule.sigma:
        about.normal_(generator=generator)
    readout, embedding = readout_parameters(net), net.embedding.detach().clone().requires_grad_()
    settings = {
        "prediction": rule.prediction, "loss": rule.loss, "largest": rule.largest_weight,
        "smoothing": rule.label_smoothing, "sigma": rule.sigma, "readout": rule.readout,
    }  # fmt: skip
    terms = [
        plain_fm_terms(
            plain, embedding, list(readout.values()),
            (given.inputs[i].double(), int(given.targets[i]), float(draw.time[i]), draw.normal[i].double(), about[i]),
            settings,
        )
        for i in range(size)
    ]  # fmt: skip
    anchored = rule.embedding == "learned" or rule.readout != "nearest"
    names = ["block: flow", "read-out: anchor"] if anchored else ["block: flow"]
    assert list(update.losses) == names
    means = [sum(part) / size for part in zip(*terms, strict=True)][: len(names)]
    for name, mean in zip(names, means, strict=True):
        assert float(update.losses[name]) == pytest.approx(mean.item(), rel=2e-4), name

    wanted = {f"block.{name}": p for (name, _), p in zip(net.block.named_parameters(), plain.parameters(), strict=True)}
    wanted |= readout
    if isinstance(net.embedding, torch.nn.Parameter):
        wanted["embedding"] = embedding
    assert wanted.keys() == update.gradients.keys()
    gradients = torch.autograd.grad(sum(means), list(wanted.values()))
    for name, gradient in zip(wanted, gradients, strict=True):
        scale = float(gradient.abs().max())
        assert scale > 0, name
        assert torch.allclose(update.gradients[name], gradient, rtol=1e-3, atol=5e-4 * scale), name


@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_the_block_sees_a_point_on_the_straight_line_or_around_it(sigma):
    rule, net = built(sigma=sigma)
    seen = []
    net.block.latent.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    given = batch()
    rule.estimate(net, given, estimate_noise())
    draw = draw_times(rule.times, 24, 4, estimate_noise().generator())
    time = draw.time[:, None]
    line = time * torch.eye(4)[given.targets] + (1 - time) * draw.normal
    if sigma:
        assert (seen[0] - line).std().item() == pytest.approx(sigma, rel=0.2)
    else:
        torch.testing.assert_close(seen[0], line)


def test_the_velocity_of_the_paper_has_no_softmax():
    rule, net = built(**VELOCITY)
    found = rule.predict(net, batch().inputs, Noise(1), names=["first step"])["first step"]
    with torch.no_grad():
        outputs = net.block.outputs(net.block.prepare(batch().inputs), torch.zeros(24, 4), torch.zeros(1))
        wanted = net.probabilities(outputs @ net.embedding)
    torch.testing.assert_close(found, wanted)
    assert (outputs < 0).any()  # a probability would not be


def plain_readings(rule, image, place, noise):
    """Every fixed-step reading of one image as `softmax(z_1)`, and one for each draw of the start."""
    pixels, zero = image.flatten()[:4], torch.zeros(4).double()
    times = times_of(rule)

    def rate(z, t):
        outputs = plain_output(z, t, pixels)
        return outputs if rule.prediction == "velocity" else (outputs.softmax(0) - z) / (1 - t)

    starts = [normals_of(noise, place, draw, 1)[0] for draw in range(rule.draws)]
    singles = [plain_euler(rate, times, start).softmax(0) for start in starts]
    first = zero if rule.start == "zero" else starts[0]
    found = {
        "euler": plain_euler(rate, times, first).softmax(0),
        "euler from noise": singles[0],
        "heun": plain_heun(rate, times, first, to_the_end=rule.prediction == "velocity").softmax(0),
        "mean": sum(singles) / rule.draws,
        "first step": rate(zero, 0.0).softmax(0),
    }
    return found, singles


@pytest.mark.parametrize("start", ["zero", "noise"])
@pytest.mark.parametrize("grid", ["uniform", "cosine"])
@pytest.mark.parametrize("options", [{}, VELOCITY], ids=["label", "velocity"])
def test_every_reading_equals_a_plain_walk_and_the_mean_is_over_starts_that_differ(options, grid, start):
    rule, net = built(draws=3, start=start, grid=grid, **options)
    with_a_plain_block(net)
    images = batch(6).inputs.double()
    assert_readings_are_plain(rule, net, images, Noise(4), plain_readings, "euler from noise")


def test_a_fixed_embedding_read_by_distance_needs_no_anchor_and_has_one_unit():
    rule, net = built(embedding="orthogonal", dimension=7)
    update = rule.estimate(net, batch(), estimate_noise())
    assert list(update.losses) == ["block: flow"]
    assert list(rule.units(net)) == ["block"]
    learning, other = built(embedding="learned", dimension=7)
    assert list(learning.estimate(other, batch(), estimate_noise()).losses) == ["block: flow", "read-out: anchor"]
    assert learning.units(other)["read-out"] == ["embedding"]


@pytest.mark.parametrize("options", [{}, VELOCITY], ids=["label", "velocity"])
def test_prediction_has_no_label_and_an_untrained_net_scores_near_chance(options):
    rule, net = built(**options)
    assert not {"label", "labels", "y", "target"} & inspect.signature(rule.predict).parameters.keys()
    images = Noise(2).normal(400 * 64).view(400, 1, 8, 8)
    labels = Noise(2).stream("labels").integers(400, 4)
    for name, probabilities in rule.predict(net, images, Noise(1)).items():
        accuracy = (probabilities.argmax(1) == labels).float().mean()
        assert accuracy < 0.35, name  # a quarter by chance; a net that is shown the label scores 1
        torch.testing.assert_close(probabilities.sum(1), torch.ones(400))


@pytest.mark.parametrize("loss", ["clipped", "unweighted", "cross-entropy"])
def test_velocities_with_a_loss_of_labels_are_refused(loss):
    with pytest.raises(InputError, match=f"velocity has loss = paper only, got {loss}.*prediction = label"):
        NoPropFM(prediction="velocity", loss=loss)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prediction": "score"}, "prediction must be one of label, velocity"),
        ({"sigma": -0.1}, "sigma must lie between 0"),
        ({"sigma": math.nan}, "sigma must lie between 0"),
        ({"largest_weight": 0.0}, "largest_weight must be above 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie between 0"),
        ({"learning_rate": math.inf}, "learning_rate must be"),
        ({"weight_decay": -0.1}, "weight_decay must lie between 0"),
        ({"dimension": 0}, "dimension must lie between 1"),
        ({"draws": 0}, "draws must lie between 1"),
        ({"draws_per_image": 0}, "draws_per_image must lie between 1"),
        ({"steps": 0}, "steps must be between 1 and 1000"),
        ({"solver": "rk4"}, "solver must be one of dopri5"),
        ({"start": "ones"}, "start must be one of zero, noise, got 'ones'"),
        ({"grid": "square"}, "grid must be one of uniform, cosine, got 'square'"),
        ({"loss": "huber"}, "loss must be one of paper, clipped"),
        ({"readout": "magic"}, "readout must be one of softmax, radial, nearest"),
        ({"largest_weight": 4.0}, "largest_weight = 4.0 needs loss = clipped, got cross-entropy"),
        ({"loss": "paper", "sigma": 0.1}, "needs sigma = 0, got 0.1.*take prediction = velocity"),
    ],
)
def test_bad_options_say_what_is_needed(options, words):
    with pytest.raises(InputError, match=words):
        NoPropFM(**options)


def test_a_draw_that_two_readings_are_made_of_is_walked_once(monkeypatch):
    rule, net = built(draws=3)
    assert_a_draw_is_walked_once(monkeypatch, rule, net, batch().inputs, ["euler from noise", "mean"], 3 * 5)
