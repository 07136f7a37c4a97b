"""What the rules with one timed block share: the image path that runs once, times and draws, walks from images."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, one_hot

from sidestep.data import Split
from sidestep.errors import InputError
from sidestep.nets import ConvPath, Dropout, PooledPath, ResidualPath, TimedBlock, masks_from
from sidestep.nets.noprop.denoiser import draw_times, positional_embedding
from sidestep.nets.noprop.image_paths import PATHS, path_maker, takes_channels_last
from sidestep.noise import Noise
from sidestep.rules import Batch, NoPropCT, NoPropFM, Task
from sidestep.rules.shared import timed
from tests.reference.noprop_continuous_plain import plain_positional_embedding

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
QUICK = {"steps": 5, "draws": 2}
RULES = {
    "ct": NoPropCT(**QUICK),
    "ct learned paper": NoPropCT(loss="paper", schedule="learned", embedding="learned", dimension=6, **QUICK),
    "fm": NoPropFM(**QUICK),
    "fm velocity": NoPropFM(prediction="velocity", loss="paper", embedding="learned", dimension=6, **QUICK),
}


@pytest.fixture(params=RULES.values(), ids=RULES.keys())
def rule(request):
    return request.param


def batch(size=24):
    noise = Noise(11)
    return Batch(noise.normal(size * 64).view(size, 1, 8, 8), noise.stream("labels").integers(size, 4))


def build(rule, examples=None):
    return rule.build(TASK, Noise(0), examples, None)


def counted(net):
    """A list that grows by the size of each batch that goes through the net's image path."""
    calls = []
    net.block.image.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    return calls


class TestImagePath:
    @pytest.mark.parametrize("steps", [1, 13])
    def test_it_runs_once_per_prediction_however_many_steps_and_readings(self, rule, steps):
        rule = type(rule)(**{**vars(rule), "steps": steps})
        net = build(rule)
        calls = counted(net)
        rule.predict(net, batch().inputs, Noise(0))
        assert calls == [24]

    @pytest.mark.parametrize("draws", [1, 3])
    def test_it_runs_once_per_estimate_however_many_draws(self, rule, draws):
        rule = type(rule)(**{**vars(rule), "draws_per_image": draws})
        net = build(rule)
        calls = counted(net)
        rule.estimate(net, batch(), Noise(0))
        assert calls == [24]

    @pytest.mark.parametrize("image_latent", [False, True])
    def test_its_share_of_the_first_layer_is_that_of_joined_features(self, image_latent):
        shape, dimension = (1, 8, 8), 64 if image_latent else 6
        block = TimedBlock(ConvPath(shape, norm=False), shape, dimension, 4, image_latent).double().eval()
        images, latent = batch().inputs.double(), Noise(1).normal(24 * dimension).view(24, dimension).double()
        time = Noise(2).uniform(24)
        features = [block.image(images), block.latent(latent), block.time(positional_embedding(time).double())]
        wanted = block.fuse(linear(torch.cat(features, dim=1), block.join.weight, block.join.bias))
        torch.testing.assert_close(block.outputs(block.prepare(images), latent, time), wanted)
        alike = torch.full((24,), 0.25)  # one time for all may be given once
        torch.testing.assert_close(
            block.outputs(block.prepare(images), latent, alike[:1]), block.outputs(block.prepare(images), latent, alike)
        )

    def test_time_enters_by_sines_and_cosines_of_a_thousand_t(self):
        times = (0.0, 0.001, 0.25, 1.0)
        wanted = torch.stack([plain_positional_embedding(time) for time in times]).float()
        torch.testing.assert_close(positional_embedding(torch.tensor(times)), wanted, atol=2e-4, rtol=0)

    def test_a_module_of_the_user_s_may_take_its_place(self, rule):
        def path():
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5))

        net = rule.build(TASK, Noise(0), None, path)
        assert net.block.features == 16
        state = torch.get_rng_state()
        one, two = (rule.estimate(net, batch(), Noise(3)).gradients for _ in range(2))
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(one[name], two[name]) for name in one)
        rule.predict(net, batch().inputs, Noise(0))


def lively(rule):
    """An untrained net says nearly the same to everything; this one does not."""
    net = build(rule)
    with torch.no_grad():
        for parameter in net.block.fuse[-1].parameters():
            parameter.mul_(20)
    return net


class TestPredictions:
    def test_they_do_not_depend_on_the_batching(self, rule):
        net, images = lively(rule), batch().inputs
        whole = rule.predict(net, images, Noise(9))
        parts = [rule.predict(net, images[a:b], Noise(9), start=a) for a, b in ((0, 5), (5, 6), (6, 24))]
        others = rule.predict(net, torch.cat([images[:5], -9 * images[5:]]), Noise(9))
        for name in rule.readings:
            joined = torch.cat([part[name] for part in parts])
            torch.testing.assert_close(joined, whole[name], atol=1e-5, rtol=0)
            torch.testing.assert_close(others[name][:5], whole[name][:5], atol=1e-5, rtol=0)
            assert (others[name][5:] - whole[name][5:]).abs().max() > 1e-3, name
        noisy = [name for name in rule.readings if name in ("ancestral", "mean") or "noise" in name]
        for name in noisy:  # without its place in the set an example would get another's noise
            unplaced = rule.predict(net, images[6:], Noise(9), names=[name])[name]
            assert (unplaced - whole[name][6:]).abs().max() > 1e-3, name

    def test_starting_from_noise_moves_the_walks_that_start_at_zero_and_no_others(self, rule):
        options = {**vars(rule), "steps": 20}
        zero, noise = type(rule)(**options), type(rule)(**{**options, "start": "noise"})
        net, images = build(rule).double(), batch().inputs.double()
        # a block that looks at z, as an untrained one hardly does
        net.block.outputs = lambda prepared, latent, time: (
            3 * (2 * latent[:, :4] + time[:, None] + 9 * prepared[:, :4]).sin()
        )
        before, after = zero.predict(net, images, Noise(9)), noise.predict(net, images, Noise(9))
        for name in rule.readings:
            moved = (before[name] - after[name]).abs().max()
            moves = name in ("ddim", "euler", "heun", "adaptive")
            assert moved > 2e-4 if moves else moved == 0, (
                name
            )  # a flow to labels ends nearly in one place from anywhere

    def test_float64_stays_float64(self, rule):
        net = build(rule).double()
        images = batch().inputs.double()
        update = rule.estimate(net, Batch(images, batch().targets), Noise(3))
        assert all(gradient.dtype == torch.float64 for gradient in update.gradients.values())
        for probabilities in rule.predict(net, images, Noise(0)).values():
            assert probabilities.dtype == torch.float64
            torch.testing.assert_close(probabilities.sum(1), torch.ones(24, dtype=torch.float64))


class TestDraws:
    @pytest.mark.parametrize("count", [1, 7, 128, 1000])
    def test_stratified_times_are_one_in_each_interval(self, count):
        draw = draw_times("stratified", count, 3, Noise(4).generator())
        places = draw.time.double() * count - torch.arange(count)
        assert (places > -1e-3).all()
        assert (places < 1 + 1e-3).all()
        assert draw.time.max() < 1
        assert draw.normal.shape == (count, 3)

    def test_uniform_times_are_not(self):
        time = draw_times("uniform", 20_000, 1, Noise(4).generator()).time
        assert time.mean().item() == pytest.approx(0.5, abs=0.01)
        assert time.var().item() == pytest.approx(1 / 12, rel=0.03)
        assert len((time[:1000] * 1000).long().unique()) < 700

    @pytest.mark.parametrize("kind", ["uniform", "stratified"])
    def test_no_time_comes_so_near_to_one_that_a_weight_is_infinite(self, kind, monkeypatch):
        def last(self, *given, generator=None):
            return self.fill_(1 - 2**-24)

        monkeypatch.setattr(torch.Tensor, "uniform_", last)
        time = draw_times(kind, 100_000, 1, Noise(4).generator()).time
        assert time.max() < 1
        assert ((1 - time) ** -2).isfinite().all()

    def test_one_draw_is_what_several_are_the_mean_of(self, rule):
        """With the times and noise of three draws given one by one, the loss and the gradient are the means."""
        made = {**vars(rule), "draws_per_image": 3, "times": "uniform"}
        several, single = type(rule)(**made), type(rule)(**{**made, "draws_per_image": 1})
        net = build(several)
        for module in net.modules():
            if isinstance(module, Dropout):
                module.rate = 0.0
        whole = several.estimate(net, batch(), Noise(3))
        draw = draw_times("uniform", 72, net.dimension, Noise(3).generator())
        parts = []
        for index in range(3):
            rows = slice(24 * index, 24 * index + 24)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(timed, "draw_times", lambda *given, rows=rows: type(draw)(*(t[rows] for t in draw)))
                parts.append(single.estimate(net, batch(), Noise(3)))
        first = next(iter(whole.losses))
        assert float(whole.losses[first]) == pytest.approx(sum(float(p.losses[first]) for p in parts) / 3, rel=1e-4)
        for name, gradient in whole.gradients.items():
            if name.startswith("block."):
                mean = torch.stack([part.gradients[name] for part in parts]).mean(dim=0)
                torch.testing.assert_close(gradient, mean, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("kind", ["learned", "prototype"])
def test_unit_norm_holds_after_every_step_and_is_what_holds_it(rule, kind):
    pixels = (Noise(3).uniform(40 * 64) * 255).to(torch.uint8).view(40, 1, 8, 8)
    examples = Split(pixels, torch.arange(40) % 4)
    given = {**vars(rule), "embedding": kind, "dimension": None, "learning_rate": 0.02}
    for unit_norm in (True, False):
        made = type(rule)(**{**given, "unit_norm": unit_norm})
        net = build(made, examples)
        start, optimizer = net.embedding.detach().clone(), made.optimizer(net)
        for step in range(3):
            made.apply(net, made.estimate(net, batch(), Noise(0).at(step)), optimizer)
            norms = net.embedding.detach().norm(dim=1)
            assert torch.allclose(norms, torch.ones(4), atol=1e-5) == unit_norm
        assert (net.embedding.detach() - start).abs().max() > 1e-3


def test_a_prototype_latent_is_image_shaped_and_takes_a_path_of_its_own(rule):
    pixels = (Noise(3).uniform(40 * 64) * 255).to(torch.uint8).view(40, 1, 8, 8)
    examples = Split(pixels, torch.arange(40) % 4)
    made = type(rule)(**{**vars(rule), "embedding": "prototype", "dimension": None})
    net = build(made, examples)
    assert net.dimension == 64
    for row in range(4):
        same_class = pixels[row::4].float().flatten(1) / 255
        assert any(torch.allclose(net.embedding[row], image, atol=1e-6) for image in same_class)
    update = made.estimate(net, batch(), Noise(3))
    assert update.gradients["block.latent.1.convolutions.0.weight"].abs().max() > 0
    assert update.gradients["embedding"].abs().max() > 0
    for probabilities in made.predict(net, batch().inputs, Noise(0)).values():
        assert probabilities.isfinite().all()


class TestPaths:
    def test_the_pooled_one_stays_small_on_large_images(self):
        shape = (3, 128, 128)
        path = path_maker("auto", shape, norm=False)()
        assert isinstance(path, PooledPath)
        assert sum(p.numel() for p in path.dense.parameters()) < 1_000_000
        assert path.eval()(torch.zeros(2, *shape)).shape == (2, 256)
        flattened = path_maker("figure-6", (3, 64, 64), norm=False)()
        assert isinstance(flattened, ConvPath)
        assert sum(p.numel() for p in flattened.dense.parameters()) > 8_000_000

    def test_the_pooled_one_takes_sides_that_no_power_of_two_divides(self):
        shape = (1, 33, 90)
        assert path_maker("pooled", shape, norm=True)().eval()(torch.zeros(2, *shape)).shape == (2, 256)

    @pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 28, 28)])
    def test_resnet_9_gives_512_features(self, shape):
        path = path_maker("resnet-9", shape, norm=False)()
        assert isinstance(path, ResidualPath)
        assert path.eval()(torch.zeros(3, *shape)).shape == (3, 512)
        assert sum(p.numel() for p in path.parameters()) == pytest.approx(6.57e6, rel=0.01)

    @pytest.mark.parametrize("kind", PATHS)
    def test_every_kind_works_in_any_memory_layout_and_says_so(self, kind):
        shape = (3, 32, 32)
        path = path_maker(kind, shape, norm=True)().eval()
        assert takes_channels_last(path)
        assert not takes_channels_last(nn.Flatten())
        images = Noise(1).normal(2 * 3 * 32 * 32).view(2, *shape)
        plain, last = path(images), path(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-5)

    def test_without_norm_features_are_not_negative(self):
        with masks_from(Noise(0).generator()):
            assert (ConvPath((1, 8, 8), norm=False)(batch().inputs) >= 0).all()
            assert (ConvPath((1, 8, 8), norm=True)(batch().inputs) < 0).any()

    @pytest.mark.parametrize(
        ("kind", "shape", "words"),
        [
            ("figure-7", (1, 28, 28), "auto, figure-6, pooled, resnet-9, got 'figure-7'"),
            ("pooled", (1, 28, 28), "from 32 x 32 on, got 28 x 28; use path = figure-6"),
            ("resnet-9", (1, 7, 28), "needs 8 x 8, got 7 x 28"),
            ("auto", (1, 3, 3), "at least 4 x 4"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, kind, shape, words):
        with pytest.raises(InputError, match=words):
            path_maker(kind, shape, norm=False)()


def test_a_resnet_s_statistics_travel_in_the_update(rule):
    made = type(rule)(**{**vars(rule), "path": "resnet-9"})
    net = build(made)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    update = made.estimate(net, batch(4), Noise(3))
    assert any("running_mean" in name for name in update.statistics)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_a_label_estimate_is_a_mean_of_class_embeddings():
    net = build(RULES["ct learned paper"])
    logits = 200.0 * one_hot(torch.tensor([3, 1]), 4)
    torch.testing.assert_close(net.label_estimate(logits), net.embedding[[3, 1]])
    assert torch.equal(net.label_embedding(torch.tensor([3, 1])), net.embedding[[3, 1]])
