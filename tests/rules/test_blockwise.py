"""Groups of residual blocks: each sees its own range of levels, learns alone, and follows the others on the walk."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.end_to_end import end_to_end_net
from sidestep.nets.groups.chains import residual_chain
from sidestep.nets.groups.levels import draw_levels, level_bounds
from sidestep.noise import Noise
from sidestep.rules import Batch, Blockwise, Task

TASK = Task((1, 4, 4), tuple("abc"), (0.0,), (1.0,))
TOKENS = Task((6,), tuple("abcde"), (), (), "int64", "tokens", "tokens", vocabulary=5)
SMALL = {"groups": 2, "depth": 3, "width": 8}


def batch_of(count=5):
    return Batch(Noise(1).normal(count * 16).view(count, 1, 4, 4).double(), torch.arange(count) % 3)


def built(rule, task=TASK):
    """Return a net in float64 whose groups make use of z and its level, as they do once they have learnt."""
    net = rule.build(task, Noise(0), None, None).double()
    with Noise(4).torch_seeded():
        for group in net.groups:
            group.latent.reset_parameters()
            group.level.reset_parameters()
    return net


class Residual(nn.Module):
    def __init__(self, width, norm_last=False):
        super().__init__()
        self.inner, self.norm_last = nn.Linear(width, width), norm_last

    def forward(self, hidden):
        found = hidden + self.inner(hidden).relu()
        return nn.functional.layer_norm(found, found.shape[1:]) if self.norm_last else found


def chain(*between, blocks=3, norm_last=False):
    parts = [Residual(12, norm_last) for _ in range(blocks - 1)]
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), *parts, *between, Residual(12, norm_last), nn.LayerNorm(12))


def test_the_bounds_cut_the_paper_s_noise_into_equal_mass():
    bounds = level_bounds("normal", 4, 10, 1e-3, 0.999)
    mass = torch.special.ndtr((bounds - 2.4) / 2.4).diff()
    torch.testing.assert_close(mass, mass.mean().expand(4))
    assert bounds[[0, -1]].sigmoid().tolist() == pytest.approx([1e-3, 0.999])


def test_levels_of_next_tokens_end_where_a_token_can_hardly_be_read():
    def ends(task, **given):
        found = Blockwise(**{**SMALL, "width": 32}, **given).build(task, Noise(0), None, None).bounds.sigmoid()
        return [round(float(found[place]), 6) for place in (0, -1)]

    assert ends(TASK) == [0.001, 0.999]
    assert ends(TOKENS) == [0.001, 0.5]
    assert ends(TOKENS, largest_alpha_bar=0.999) == [0.001, 0.999]


def test_levels_are_uniform_in_their_range_and_a_little_beyond_but_not_beyond_the_ends():
    bounds = torch.tensor([-4.0, 0.0, 2.0], dtype=torch.float64)
    first, last = (draw_levels(bounds, group, 0.25, 4000, Noise(0).generator()) for group in (0, 1))
    assert (first.min() >= -4) & (first.min() < -3.98) & (first.max() > 0.98) & (first.max() <= 1)
    assert (last.min() >= -0.5) & (last.min() < -0.49) & (last.max() > 1.99) & (last.max() <= 2)
    assert first.mean().item() == pytest.approx(-1.5, abs=0.1)


def test_the_estimate_is_the_equation():
    """By loops over examples: noise at sigma, EDM's c_in, and the cross-entropy of a group's own answer."""
    rule, batch, noise = Blockwise(**SMALL), batch_of(), Noise(3).at(7)
    net = built(rule)
    update = rule.estimate(net, batch, noise)
    for index in range(2):
        generator, group = noise.sub(index).generator(), net.group(index)
        levels = draw_levels(net.bounds, index, 0.1, 5, generator)
        draws = torch.empty(5, 3, dtype=torch.float64).normal_(generator=generator)
        loss = 0.0
        for image, label, level, eps in zip(batch.inputs, batch.targets, levels, draws, strict=True):
            sigma = math.exp(-float(level) / 2)
            seen = (torch.eye(3, dtype=torch.float64)[label] + sigma * eps) / math.sqrt(sigma**2 + 1 / 3)
            waves = torch.cat([fun(level * 2.0 ** torch.arange(-4, 4)) for fun in (torch.sin, torch.cos)]).double()
            hidden = group.stem(image[None]) + group.latent(seen) + group.level(waves)
            for block in group.blocks:
                hidden = block(hidden)
            loss = loss - group.head(group.tail(hidden)).log_softmax(dim=1)[0, label] / 5
        wanted = gradients_of(loss, {f"groups.{index}.{name}": p for name, p in group.named_parameters()})
        assert update.losses[f"group {index + 1}: cross-entropy"].item() == pytest.approx(loss.item(), rel=1e-5)
        for name, gradient in wanted.items():
            torch.testing.assert_close(update.gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_one_group_after_another_is_all_at_once():
    rule, batch, noise = Blockwise(**SMALL), batch_of(), Noise(3).at(7)
    net = built(rule)
    whole, parts = rule.estimate(net, batch, noise).gradients, dict(rule.estimates(net, batch, noise))
    assert list(parts) == list(rule.units(net)) == ["group 1", "group 2"]
    for unit, part in parts.items():
        assert set(part.gradients) == set(rule.units(net)[unit])
        assert all(torch.equal(gradient, whole[name]) for name, gradient in part.gradients.items())


def test_the_walk_from_zero_is_ddim_with_each_group_at_the_noisy_end_of_its_range():
    rule, batch = Blockwise(**SMALL), batch_of()
    net = built(rule).eval()
    latent, share = torch.zeros(5, 3, dtype=torch.float64), torch.sigmoid(net.bounds)
    for index in range(2):
        group, low, high = net.group(index), share[index], share[index + 1]
        outputs = group.outputs(group.features(batch.inputs), latent, net.bounds[index].expand(5))
        guess = outputs.softmax(dim=1)
        noise = (latent - low.sqrt() * guess) / (1 - low).sqrt()
        latent = high.sqrt() * guess + (1 - high).sqrt() * noise
        name = ("group 1 alone", "walk")[index]
        torch.testing.assert_close(rule.predict(net, batch.inputs, Noise(0))[name], guess)


def test_a_group_begins_as_a_net_of_its_input_alone():
    net, images = Blockwise(**SMALL).build(TASK, Noise(0), None, None), batch_of().inputs.float()
    group, zero = net.group(0), torch.zeros(5, 3)
    plain = group.head(group.run(group.features(images)))
    torch.testing.assert_close(group.outputs(group.features(images), zero + 7, torch.full((5,), 2.0)), plain)
    other = built(Blockwise(**SMALL)).group(0).float()
    assert not torch.allclose(
        other.outputs(other.features(images), zero + 7, torch.full((5,), 2.0)),
        other.outputs(other.features(images), zero, torch.full((5,), 2.0)),
    )


@pytest.mark.parametrize("targets", ["classes", "labels", "values"])
def test_the_outputs_of_the_mean_of_groups_predict_that_mean(targets):
    task = replace(TASK, targets=targets)
    rule, images = Blockwise(**SMALL), batch_of().inputs
    net = built(rule, task).eval()
    found = rule.predict(net, images, Noise(0))
    each = [net.space.objective.predictions(outputs) for outputs in net.walk(images)]
    torch.testing.assert_close(found["mean of groups"], (each[0] + each[1]) / 2)
    torch.testing.assert_close(net.space.objective.predictions(net.mean_outputs(images)), found["mean of groups"])
    assert rule.readings[0] == "mean of groups"
    assert replace(rule, exact_share=0.5).readings[0] == "walk"


def test_the_logit_of_the_mean_of_sure_groups_is_finite():
    net = built(Blockwise(**SMALL), replace(TASK, targets="labels")).eval().float()
    for index in range(2):
        net.group(index).head.bias.data.fill_(40.0)  # whose sigmoid rounds to 1
    assert net.mean_outputs(batch_of().inputs.float()).isfinite().all()


def test_exact_steps_are_the_share_that_was_asked_for_and_the_gradient_of_the_walk():
    rule = Blockwise(**SMALL, exact_share=0.25)
    net, batch = built(rule), batch_of()
    exact = rule.true_gradients(net, batch)
    same = [
        all(torch.equal(found[name], exact[name]) for name in exact) and found.keys() == exact.keys()
        for found in (rule.estimate(net, batch, Noise(0).at(step)).gradients for step in range(8))
    ]
    assert same == [False, False, False, True] * 2
    with pytest.raises(InputError, match=r"exact_share = 0\.25 has steps through all groups at once"):
        next(rule.estimates(net, batch, Noise(0)))
    assert rule.divides == {"batch": 0}


def test_no_place_of_a_row_sees_a_later_token_or_its_own_target():
    rule = Blockwise(groups=2, depth=2, width=32)
    net = rule.build(TOKENS, Noise(0), None, None).eval()
    ids = Noise(2).integers(12, 5).view(2, 6)
    changed = ids.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 5
    before, after = (rule.predict(net, given, Noise(0))["walk"] for given in (ids, changed))
    assert before.shape == (2, 6, 5)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


@pytest.mark.parametrize("kind", ["mlp", "resnet", "vit"])
def test_every_built_in_block_would_pass_as_a_block_of_the_user_s(kind):
    made = lambda: residual_chain(kind, TASK.shape, 4, 32, 2, 0)  # noqa: E731
    net = Blockwise(groups=3).build(TASK, Noise(0), None, made)
    assert [len(group.blocks) for group in net.groups] == [2, 1, 1]


def test_a_chain_of_the_user_s_trains_and_its_groups_start_apart():
    images = Noise(0).normal(64 * 16).view(64, 1, 4, 4)
    loaded = data.from_arrays(images.numpy(), torch.arange(64) % 3, images.numpy(), torch.arange(64) % 3)
    run = train(Blockwise(groups=2), loaded, Options(steps=3, batch=16), module=lambda: chain(nn.Identity()))
    first, second = run.net.groups
    assert (len(first.blocks), len(second.blocks)) == (2, 2)  # nn.Identity counts as one that changes nothing
    assert not torch.equal(first.stem[1].weight, second.stem[1].weight)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: chain(nn.ReLU()), r"part 5 of the nn.Sequential \(ReLU\) stands between residual blocks and is not"),
        (lambda: chain(norm_last=True), "none of the 6 parts of .* is one"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU()), "a chain of residual blocks, an nn.Seq"),
        (lambda: nn.Linear(4, 4), "got one"),
        (lambda: chain(blocks=1), "groups = 2 needs as many residual blocks or more, and there are 1; take groups = 1"),
    ],
)
def test_a_chain_that_cannot_be_cut_is_refused_in_a_sentence(make, said):
    with pytest.raises(InputError, match=said):
        Blockwise(groups=2).build(TASK, Noise(0), None, make)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": 7}, "groups = 7 needs as many residual blocks or more, and there are 6; take groups = 6 or fewer"),
        ({"exact_share": 1.5}, "exact_share must lie between 0 and 1, got 1.5"),
        ({"exact_share": -0.1}, "exact_share must lie between 0 and 1"),
        ({"smallest_alpha_bar": 0.9, "largest_alpha_bar": 0.5}, "two values in .* that rise"),
    ],
)
def test_options_that_cannot_work_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        Blockwise(**options)


@pytest.mark.parametrize(
    ("rule", "task", "said"),
    [
        (Blockwise(net="gpt"), TASK, "net = gpt does not take inputs that are image"),
        (Blockwise(net="vit"), TOKENS, "net = vit does not take inputs that are tokens"),
        (Blockwise(net="vit", patch=3), TASK, "images of 4 x 4 do not divide into patches of 3 x 3"),
        (Blockwise(label_smoothing=0.1), TOKENS, "label_smoothing = 0.1 does not go with targets that are tokens"),
    ],
)
def test_options_that_do_not_go_with_the_data_are_refused(rule, task, said):
    with pytest.raises(InputError, match=said):
        rule.build(task, Noise(0), None, None)


def test_the_same_blocks_end_to_end_are_one_residual_net():
    net = Blockwise(**SMALL).build(TASK, Noise(0), None, None)
    first, last = net.group(0), net.group(1)
    images = batch_of().inputs.float()
    hidden = first.stem(images)
    for block in (*first.blocks, *last.blocks):
        hidden = block(hidden)
    wanted = last.head(last.tail(hidden))
    torch.testing.assert_close(end_to_end_net(net, TASK.shape, Noise(0))(images), wanted)


@pytest.mark.parametrize("seed", [0])
def test_digits_are_learned(seed):
    run = train(Blockwise(groups=3, width=64), "digits", Options(epochs=8, seed=seed))
    assert run.result["test_accuracy"] > 0.9
