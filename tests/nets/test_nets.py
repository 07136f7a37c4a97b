"""Schedules, samplers, embeddings, blocks: the mathematics of NoProp, checked without training."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sidestep.errors import InputError
from sidestep.nets import (
    DenoisingStack,
    Dropout,
    SoftmaxReadout,
    ancestral_chain,
    cosine_alpha_bar,
    ddim_chain,
    embedding_distances,
    image_paths,
    masks_from,
    one_hot_embedding,
    orthogonal_embedding,
    posterior_coefficients,
    prototype_embedding,
    readable_alpha_bar,
    run_units,
    signal_to_noise,
)
from sidestep.nets.noprop.image_paths import ConvPath, path_maker
from sidestep.nets.noprop.schedules import Levels, check_alpha_bar
from sidestep.nets.trained import set_training
from sidestep.noise import Noise
from tests.reference.noprop_plain import plain_alpha_bar


@given(st.integers(1, 49))
def test_cosine_schedule_rises_and_every_loss_weight_is_positive(blocks):
    alpha_bar = cosine_alpha_bar(blocks)
    assert (alpha_bar.diff() > 0).all()
    assert alpha_bar[0] == pytest.approx(1e-3)
    assert alpha_bar[-1] == pytest.approx(0.999)
    assert (signal_to_noise(alpha_bar).diff() > 0).all()
    assert alpha_bar.tolist() == pytest.approx(plain_alpha_bar(blocks), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.9, 0.5, 0.1], "rise"),
        ([0.1, 0.1], "rise"),
        ([0.0, 0.5], "between 0 and 1"),
        ([0.5, 1.0], "between 0 and 1"),
        ([0.5], "two values"),
    ],
)
def test_a_schedule_that_falls_or_leaves_the_unit_interval_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        check_alpha_bar(torch.tensor(values))


@pytest.mark.parametrize(
    ("make", "fits", "words"),
    [
        (cosine_alpha_bar, {}, r"clipped to \[0.001, 0.999\]: alpha_bar_0 = 0.001, alpha_bar_1 = 0.001, and"),
        (cosine_alpha_bar, {"low": 0.05, "high": 0.999}, r"\[0.05, 0.999\].*levels = readable$"),
        (cosine_alpha_bar, {"offset": 1.0}, "cosine schedule"),
        (readable_alpha_bar, {"classes": 100}, r"readable levels of 100 classes in \[0.001, 0.999\].*widen the clip$"),
    ],
)
def test_too_many_blocks_are_told_how_many_fit(make, fits, words):
    with pytest.raises(InputError, match=words) as refused:
        make(1000, **fits)
    assert len(str(refused.value)) < 400
    most = int(re.search(r"use at most (\d+) blocks", str(refused.value))[1])
    assert (make(most, **fits).diff() > 0).all()
    with pytest.raises(InputError):
        make(most + 1, **fits)


def test_the_weights_of_the_stack_are_the_paper_s():
    stack = small_stack(blocks=4)
    snr = [a / (1 - a) for a in plain_alpha_bar(4)]
    wanted = [4 / 2 * 0.1 * (after - before) for before, after in itertools.pairwise(snr)]
    assert stack.loss_weights(0.1).tolist() == pytest.approx(wanted, rel=1e-4)


def small_stack(blocks=3, classes=4, size=8, alpha_bar=None):
    shape = (1, size, size)
    paths = image_paths(path_maker("figure-6", shape, norm=True), blocks, Noise(3))
    alpha_bar = cosine_alpha_bar(blocks) if alpha_bar is None else alpha_bar
    with Noise(3).torch_seeded():
        embedding = one_hot_embedding(classes)
        return DenoisingStack(paths, shape, embedding, alpha_bar, SoftmaxReadout(embedding))


class PerfectBlock(nn.Module):
    """Knows the label, as no real block may: for checking the chain alone."""

    def __init__(self, labels, classes):
        super().__init__()
        self.certain = 200.0 * torch.eye(classes)[labels]

    def logits(self, features, latent):
        return self.certain


@pytest.mark.parametrize("blocks", [1, 2, 5, 10])
def test_with_perfect_blocks_the_ancestral_chain_has_the_marginals_of_q(blocks):
    classes, examples = 3, 60_000
    stack = small_stack(blocks, classes)
    labels = torch.full((examples,), 1)
    perfect = PerfectBlock(labels, classes)
    stack.block = lambda index: perfect
    features = [torch.zeros(examples, 1)] * blocks
    for upto in range(1, blocks + 1):
        latent = ancestral_chain(stack, features[:upto], Noise(5)).latent
        alpha_bar = stack.alpha_bar[upto]
        target = alpha_bar.sqrt() * torch.eye(classes)[1]
        spread = math.sqrt(float(1 - alpha_bar) / examples)
        # the start is N(0, I), not q(z_0 | y): the mean is off by at most sqrt(0.001) of what is left of z_0
        start = 0.0316 * math.sqrt(float((1 - alpha_bar) / (1 - stack.alpha_bar[0])))
        assert (latent.mean(dim=0) - target).abs().max() < 4 * spread + start
        assert latent.var(dim=0).mean().item() == pytest.approx(float(1 - alpha_bar), rel=0.03)


@pytest.mark.parametrize("rest", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("side", ["clean", "noisy"])
def test_steps_and_weights_near_the_ends_are_those_of_float64(rest, side):
    """Two levels of which nearly nothing is left to the noise, or to the label."""
    small = torch.tensor([5 * rest, rest], dtype=torch.float64)
    exact = Levels(1 - small, small) if side == "clean" else Levels(small.flip(0), 1 - small.flip(0))
    start, end = (float(exact.signal[i]) if side == "noisy" else 1 - float(small[i]) for i in (0, 1))
    left, after = (float(exact.noise[i]) for i in (0, 1))
    rise = (left - after if side == "clean" else end - start) / end
    wanted = (math.sqrt(end) * rise / left, math.sqrt(start / end) * after / left, after * rise / left)
    single = Levels(exact.signal.float(), exact.noise.float())
    found = posterior_coefficients(single[0], single[1])
    assert [value.item() for value in found] == pytest.approx(wanted, rel=1e-6, abs=0)


def test_a_stack_keeps_what_its_levels_leave_to_the_noise():
    rest = 1e-6
    levels = cosine_alpha_bar(4, high=1 - rest)
    stack = small_stack(4, alpha_bar=levels)
    assert stack.levels.noise.dtype == stack.alpha_bar.dtype == torch.float32
    assert stack.levels.noise[-1].item() == pytest.approx(rest, rel=1e-7 + 1e-9)
    wanted = 2 * ((1 - rest) / rest - float(levels[-2]) / (1 - float(levels[-2])))
    assert float(stack.loss_weights(1.0)[-1]) == pytest.approx(wanted, rel=1e-7)
    assert "noise_share" not in stack.state_dict()


def test_one_ancestral_step_from_q_lands_exactly_on_q():
    start, end = torch.tensor(0.23), torch.tensor(0.71)
    a, b, c = posterior_coefficients(start, end)
    assert a + b * start.sqrt() == pytest.approx(float(end.sqrt()), rel=1e-6)
    assert b**2 * (1 - start) + c == pytest.approx(float(1 - end), rel=1e-6)


def test_with_perfect_blocks_ddim_from_zero_ends_at_the_label():
    stack = small_stack(6, 3)
    perfect = PerfectBlock(torch.tensor([2, 0]), 3)
    stack.block = lambda index: perfect
    latent = ddim_chain(stack, [torch.zeros(2, 1)] * 6).latent
    noise_left = ((1 - stack.alpha_bar[-1]) / (1 - stack.alpha_bar[0])).sqrt() * stack.alpha_bar[0].sqrt()
    wanted = (stack.alpha_bar[-1].sqrt() - noise_left) * torch.eye(3)[[2, 0]]
    torch.testing.assert_close(latent, wanted, atol=1e-5, rtol=1e-5)


def test_noised_labels_have_mean_sqrt_alpha_bar_u_and_variance_one_minus_alpha_bar():
    stack = small_stack(4, 4)
    labels = torch.full((40_000,), 2)
    for level in range(5):
        alpha_bar = float(stack.alpha_bar[level])
        drawn = stack.noised_label(labels, level, Noise(1).normal(160_000).view(-1, 4))
        assert drawn.mean(dim=0)[2].item() == pytest.approx(math.sqrt(alpha_bar), abs=0.02)  # not alpha_bar itself
        assert drawn.mean(dim=0)[0].item() == pytest.approx(0, abs=0.02)
        assert drawn.var(dim=0).mean().item() == pytest.approx(1 - alpha_bar, rel=0.03)


def test_ancestral_draws_do_not_depend_on_the_batch():
    stack = small_stack().eval()
    images = Noise(2).normal(10 * 64).view(10, 1, 8, 8)
    with torch.no_grad():
        whole = ancestral_chain(stack, stack.image_features(images), Noise(9)).latent
        part = ancestral_chain(stack, stack.image_features(images[6:]), Noise(9), start=6).latent
    torch.testing.assert_close(whole[6:], part, atol=1e-5, rtol=1e-4)


@given(st.integers(2, 12), st.integers(1, 24), st.integers(0, 5))
def test_orthogonal_embeddings_are_orthogonal_as_far_as_there_is_room(classes, dimension, seed):
    rows = orthogonal_embedding(classes, dimension, Noise(seed)).double()
    if dimension >= classes:
        torch.testing.assert_close(rows @ rows.T, torch.eye(classes).double(), atol=1e-5, rtol=0)
    else:
        gram = rows.T @ rows * dimension / classes
        torch.testing.assert_close(gram, torch.eye(dimension).double(), atol=1e-5, rtol=0)
    assert rows.square().sum(dim=1).mean() == pytest.approx(1)


def test_the_prototype_is_the_image_with_the_smallest_median_distance_to_its_class():
    images = torch.tensor([0.0, 1.0, 2.0, 50.0, 9.0, 7.0, 8.0]).view(7, 1, 1, 1)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    assert prototype_embedding(images, labels, 2).flatten().tolist() == [1.0, 8.0]
    with pytest.raises(InputError, match="class 2 has no training image"):
        prototype_embedding(images, labels, 3)


def test_embedding_distances_see_a_collapse():
    rows = torch.eye(3)
    assert embedding_distances(rows)["smallest embedding distance"] == pytest.approx(math.sqrt(2))
    rows[1] = rows[0] + 1e-4
    assert embedding_distances(rows)["smallest embedding distance"] < 1e-3
    assert embedding_distances(torch.zeros(3, 2))["smallest embedding norm"] == 0


@pytest.mark.parametrize(
    ("shape", "classes", "millions"), [((1, 28, 28), 10, 2.00), ((3, 32, 32), 10, 2.49), ((3, 32, 32), 100, 2.53)]
)
def test_a_block_has_the_paper_s_number_of_parameters(shape, classes, millions):
    from sidestep.nets import Block

    block = Block(ConvPath(shape), shape, classes, classes, image_latent=False)
    assert round(sum(p.numel() for p in block.parameters()) / 1e6, 2) == millions


def test_images_too_small_for_the_path_are_refused_with_the_size_needed():
    with pytest.raises(InputError, match="at least 4 x 4"):
        ConvPath((1, 3, 9))


def test_a_dropout_mask_follows_its_generator_and_keeps_the_mean():
    layer = Dropout(0.2)
    values = torch.ones(64, 16, 10, 10).contiguous(memory_format=torch.channels_last)
    with masks_from(Noise(4).generator()):
        first, second = layer(values), layer(values)
    with masks_from(Noise(4).generator()):
        again = layer(values)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert first.mean().item() == pytest.approx(1, abs=0.01)
    assert (first == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.eval()(values), values)


def test_a_generator_for_masks_is_made_once_and_only_where_one_is_drawn():
    made = []

    def make():
        made.append(Noise(4).generator())
        return made[-1]

    layer, values = Dropout(0.5), torch.ones(3, 8)
    with masks_from(Noise(4).generator()):
        wanted = [layer(values), layer(values)]
        with masks_from(make):
            assert not made
            found = [layer(values), layer(values)]
            assert len(made) == 1
        wanted.append(layer(values))
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=False))
    with masks_from(Noise(4).generator()):  # what stood around it went on where it was
        assert torch.equal([layer(values) for _ in range(3)][2], wanted[2])


def test_dropout_without_a_named_generator_draws_from_torchs_own():
    layer, values = Dropout(0.2), torch.ones(64, 100)
    with Noise(4).torch_seeded():
        first, second = layer(values), layer(values)
    with Noise(4).torch_seeded():
        assert torch.equal(layer(values), first)
    assert not torch.equal(first, second)
    assert (first == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_units_run_at_once_give_the_same_numbers_in_the_same_order(monkeypatch):
    weights = [Noise(i).normal(4096).view(64, 64) for i in range(6)]

    def task(weight):
        return lambda: (weight @ weight.T).relu().sum(), torch.is_grad_enabled()

    alone = [f[0]() for f in map(task, weights)]
    with torch.no_grad():
        together = run_units([task(w)[0] for w in weights], torch.device("cpu"))
        modes = run_units([torch.is_grad_enabled] * 4, torch.device("cpu"))
    assert [float(v) for v in together] == pytest.approx([float(v) for v in alone], rel=1e-5)
    assert modes == [False] * 4


def test_each_unit_has_its_share_of_the_cores_and_the_caller_keeps_all():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        large = torch.ones(1 << 20)

        def threads():
            large.add(1)  # a first parallel operation is where torch would reset the count
            return torch.get_num_threads()

        for _ in range(3):
            assert run_units([threads] * 4, torch.device("cpu")) == [1] * 4
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_autocast_holds_inside_units():
    weight = torch.ones(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run_units([lambda: (weight @ weight).dtype] * 3, torch.device("cpu"))
    assert found == [torch.bfloat16] * 3


class TestOwnImagePath:
    def test_a_factory_gives_every_block_its_own_start(self):
        paths = image_paths(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 3, Noise(0))
        assert not torch.equal(paths[0][1].weight, paths[1][1].weight)

    def test_a_module_is_copied_and_started_anew(self):
        given_module = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
        before = given_module[1].weight.clone()
        paths = image_paths(given_module, 2, Noise(0))
        assert not torch.equal(paths[0][1].weight, paths[1][1].weight)
        assert torch.equal(given_module[1].weight, before)

    def test_parameters_that_cannot_be_started_anew_are_named(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(3))

        with pytest.raises(InputError, match="reset_parameters"):
            image_paths(nn.Sequential(nn.Flatten(), Odd()), 2, Noise(0))

    def test_one_and_the_same_module_for_all_blocks_is_refused(self):
        shared = nn.Linear(64, 5)
        with pytest.raises(InputError, match="same module"):
            image_paths(lambda: shared, 2, Noise(0))

    @pytest.mark.parametrize("path", [nn.Linear(7, 3), nn.Sequential(nn.Flatten(0), nn.Linear(128, 4))])
    def test_a_path_that_does_not_fit_the_images_is_explained(self, path):
        from sidestep.nets.noprop.blocks import feature_count

        with pytest.raises(InputError, match="image path"):
            feature_count(path, (1, 8, 8))


def test_training_mode_is_what_train_gives():
    class Kept(nn.Module):
        """One that follows another's mode, as a part in evaluation mode of the user's does."""

        def train(self, mode=True):
            self.training = following.training
            return self

    following = nn.Identity()
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout().eval(), Kept()))
    for mode in (False, True):
        following.training = mode
        set_training(net)
        assert net.training
        assert net[1][0].training
        assert net[1][1].training == mode
    following.training = False  # all are in training mode now, and one of them would not stay so
    set_training(net)
    assert not net[1][1].training
