"""NoProp-DT: locality, the loss by hand, and the mistakes that public implementations made."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from sidestep.errors import InputError
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.dropout import Dropout, masks_from
from sidestep.nets.noprop.schedules import readable_alpha_bar
from sidestep.noise import Noise
from sidestep.rules import Batch, NoPropDT, Task
from tests.reference.noprop_plain import PlainBlock, plain_block_loss
from tests.reference.noprop_walks_plain import plain_ancestral, plain_ddim

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))


def batch(size=24):
    noise = Noise(11)
    return Batch(noise.normal(size * 64).view(size, 1, 8, 8), noise.stream("labels").integers(size, 4))


def built(**options):
    rule = NoPropDT(blocks=options.pop("blocks", 3), **options)
    return rule, rule.build(TASK, Noise(0), None, None)


def estimate_noise():
    return Noise(0).stream("estimate").at(5)


def test_each_term_reaches_its_own_unit_only():
    rule, net = built()
    whole = rule.estimate(net, batch(), estimate_noise()).gradients
    assert whole.keys() == {name for name, _ in net.named_parameters()}
    with torch.no_grad():
        for parameter in net.block(1).parameters():
            parameter.mul_(1.5)
    moved = rule.estimate(net, batch(), estimate_noise()).gradients
    for name, gradient in whole.items():
        assert torch.equal(gradient, moved[name]) != name.startswith("blocks.1.") or gradient.abs().max() == 0, name


def test_a_block_s_gradient_is_that_of_its_own_loss_computed_by_hand():
    rule, net = built()
    given = batch()
    update = rule.estimate(net, given, estimate_noise())
    for index in range(3):
        generator = estimate_noise().sub(index).generator()
        normal = torch.empty(24, 4).normal_(generator=generator)
        with masks_from(generator):
            z = net.alpha_bar[index].sqrt() * net.embedding[given.targets] + (1 - net.alpha_bar[index]).sqrt() * normal
            uhat = net.block(index)(given.inputs, z).softmax(1) @ net.embedding
        snr = net.alpha_bar / (1 - net.alpha_bar)
        weight = 3 / 2 * 0.1 * (snr[index + 1] - snr[index])
        loss = weight * (uhat - net.embedding[given.targets]).square().sum(1).mean()
        assert float(update.losses[f"block {index + 1}: denoising"]) == pytest.approx(loss.item(), rel=1e-4)
        expected = torch.autograd.grad(loss, list(net.block(index).parameters()))
        for (name, _), gradient in zip(net.block(index).named_parameters(), expected, strict=True):
            torch.testing.assert_close(update.gradients[f"blocks.{index}.{name}"], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", ["clipped", "unweighted", "cross-entropy"])
def test_other_losses_stand_in_the_place_of_the_paper_s(loss):
    """From the loss that the reference gives by the paper's weight, or by hand."""
    options = {
        "loss": loss,
        "levels": "readable",
        **{"cross-entropy": {"label_smoothing": 0.1}, "clipped": {"largest_weight": 0.5, "eta": 0.4}}.get(loss, {}),
    }
    rule, net = built(embedding="orthogonal", **options)
    assert torch.equal(net.alpha_bar, readable_alpha_bar(3, 4).float())
    given = batch()
    update = rule.estimate(net, given, estimate_noise())
    for index in range(3):
        generator = estimate_noise().sub(index).generator()
        normal = torch.empty(24, 4).normal_(generator=generator)
        with masks_from(generator):
            logits = net.block(index)(given.inputs, net.noised_label(given.targets, index, normal))
        if loss == "cross-entropy":
            wanted = cross_entropy(logits, given.targets, label_smoothing=0.1)
        else:
            snr = net.alpha_bar / (1 - net.alpha_bar)
            weight = min(0.5, 3 / 2 * 0.4 * float(snr[index + 1] - snr[index])) if loss == "clipped" else 1.0
            squared = (logits.softmax(1) @ net.embedding - net.embedding[given.targets]).square().sum(1)
            wanted = weight * squared.mean()
        assert float(update.losses[f"block {index + 1}: denoising"]) == pytest.approx(wanted.item(), rel=1e-4)
        expected = torch.autograd.grad(wanted, list(net.block(index).parameters()))
        for (name, _), gradient in zip(net.block(index).named_parameters(), expected, strict=True):
            torch.testing.assert_close(update.gradients[f"blocks.{index}.{name}"], gradient, rtol=1e-3, atol=1e-5)


def test_a_learned_embedding_with_unit_norm_keeps_it():
    for unit_norm in (True, False):
        rule, net = built(blocks=1, embedding="learned", dimension=6, unit_norm=unit_norm, learning_rate=0.02)
        rule.apply(net, rule.estimate(net, batch(), estimate_noise()), rule.optimizer(net))
        norms = net.embedding.detach().norm(dim=1)
        assert torch.allclose(norms, torch.ones(4), atol=1e-5) == unit_norm


def test_the_block_equals_the_plain_reference():
    rule, net = built()
    given = batch()
    for module in net.modules():
        if isinstance(module, Dropout):
            module.rate = 0.0
    update = rule.estimate(net, given, estimate_noise())
    for index in range(3):
        plain = PlainBlock(1, 8, 4, 4, rate=0.0)
        copy_block(net.block(index), plain)
        normal = torch.empty(24, 4).normal_(generator=estimate_noise().sub(index).generator())
        loss = plain_block_loss(
            plain, index + 1, given.inputs, given.targets, torch.eye(4), net.alpha_bar.tolist(), 0.1, normal
        )
        loss.backward()
        assert float(update.losses[f"block {index + 1}: denoising"]) == pytest.approx(loss.item(), rel=1e-4)
        found = update.gradients[f"blocks.{index}.image.convolutions.0.weight"]
        torch.testing.assert_close(found, plain.convolutions[0].weight.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(
            update.gradients[f"blocks.{index}.fuse.6.bias"], plain.fuse[6].bias.grad, rtol=1e-3, atol=1e-5
        )


def copy_block(block, plain):
    pairs = zip(block.parameters(), plain_parameters(plain), strict=True)
    with torch.no_grad():
        for source, target in pairs:
            assert source.shape == target.shape
            target.copy_(source)


def plain_parameters(plain):
    for part in (plain.convolutions, plain.dense, plain.norm, plain.first, plain.residual, plain.fuse):
        yield from part.parameters()


@pytest.mark.parametrize("readout", ["softmax", "radial"])
def test_the_shared_terms_are_cross_entropy_of_a_clean_latent_and_the_kl(readout):
    rule, net = built(embedding="learned", dimension=6, readout=readout)
    given = batch()
    update = rule.estimate(net, given, estimate_noise())
    normal = torch.empty(24, 6).normal_(generator=estimate_noise().sub(3).generator())
    u = net.embedding[given.targets]
    z_last = net.alpha_bar[-1].sqrt() * u + (1 - net.alpha_bar[-1]).sqrt() * normal
    entropy = cross_entropy(net.readout(z_last, net.embedding), given.targets)
    a = float(net.alpha_bar[0])
    divergence = (0.5 * (a * u.square().sum(1) - 6 * a - 6 * math.log(1 - a))).mean()
    assert float(update.losses["read-out: cross-entropy"]) == pytest.approx(entropy.item(), rel=1e-4)
    assert float(update.losses["read-out: KL"]) == pytest.approx(divergence.item(), rel=1e-3)
    assert divergence.item() < 0.01  # far from |u|^2 with weight 1, which would collapse the embedding


def test_a_learned_embedding_sees_every_term():
    rule, net = built(embedding="learned", dimension=6)
    update = rule.estimate(net, batch(), estimate_noise())
    eta_zero = NoPropDT(blocks=3, embedding="learned", dimension=6, eta=1e-9)
    shared_only = eta_zero.estimate(net, batch(), estimate_noise()).gradients["embedding"]
    assert shared_only.abs().max() > 0
    assert (update.gradients["embedding"] - shared_only).abs().max() > 1e-3


def test_a_fixed_embedding_has_no_gradient_and_stays():
    rule, net = built()
    optimizer = rule.optimizer(net)
    update = rule.estimate(net, batch(), estimate_noise())
    assert "embedding" not in update.gradients
    rule.apply(net, update, optimizer)
    assert torch.equal(net.embedding, torch.eye(4))


def test_every_parameter_is_in_the_optimiser_once_grouped_by_unit():
    rule, net = built()
    groups = rule.optimizer(net).param_groups
    assert len(groups) == 4  # three blocks, and what they share
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in net.parameters())


def test_prediction_has_no_label_and_an_untrained_net_scores_near_chance():
    rule, net = built(blocks=10)
    images = Noise(2).normal(400 * 64).view(400, 1, 8, 8)
    labels = Noise(2).stream("labels").integers(400, 4)
    for name, probabilities in rule.predict(net, images, Noise(1)).items():
        accuracy = (probabilities.argmax(1) == labels).float().mean()
        assert accuracy < 0.35, name  # a quarter by chance; a net that is shown the label scores 1
        torch.testing.assert_close(probabilities.sum(1), torch.ones(400))
    # what a public implementation counts as accuracy: the last z, drawn from the true label, read by itself
    level = net.alpha_bar[-1]
    drawn = level.sqrt() * net.embedding[labels] + (1 - level).sqrt() * Noise(3).normal(1600).view(400, 4)
    nearest = torch.cdist(drawn.float(), net.embedding).argmin(1)
    assert (nearest == labels).float().mean() > 0.99


def test_readings_are_logits_once_softmaxed():
    rule, net = built()
    probabilities = rule.predict(net, batch().inputs, Noise(1))["block 1 alone"]
    net.eval()
    with torch.no_grad():
        logits = net.block(0)(batch().inputs, torch.zeros(24, 4))
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-4, atol=1e-5)


def plain_readings(net, images, noise, start, draws):
    """Every reading of the stack, (batch, classes) each, and the read-out of each draw, (draws, batch, classes)."""
    levels, found, singles = net.alpha_bar.tolist(), {}, []
    for place, image in enumerate(images):
        said = []  # every block's logits on the way, in the order in which blocks were asked

        def estimate(z, index, image=image, said=said):
            said.append(net.block(index)(image[None], z[None])[0])
            return said[-1].softmax(0) @ net.embedding

        def read(z):
            return net.readout(z[None], net.embedding)[0].softmax(0)

        times, place = range(len(levels)), start + place
        walked = plain_ddim(estimate, levels.__getitem__, times, torch.zeros(4).double())
        own = torch.stack(said).softmax(1)
        latents, last = [], []
        for draw in range(draws):
            normals = [
                noise.stream(f"draw {draw}").sub(level).normal(4 * place + 4)[4 * place :].double() for level in times
            ]
            latents.append(plain_ancestral(estimate, levels.__getitem__, times, normals))
            last.append(said[-1].softmax(0) @ net.embedding)
        row = {
            "ddim": read(walked), "ancestral": read(latents[0]), "mean": read(sum(last) / draws),
            "block 1 alone": own[0], "mean of blocks": own.mean(0),
        }  # fmt: skip
        for name, probabilities in row.items():
            found.setdefault(name, []).append(probabilities)
        singles.append(torch.stack([read(latent) for latent in latents]))
    return {name: torch.stack(rows) for name, rows in found.items()}, torch.stack(singles, dim=1)


@pytest.mark.parametrize("draws", [1, 3])
def test_every_reading_equals_a_plain_walk_and_the_mean_is_over_draws_that_differ(draws):
    rule, net = built(draws=draws)
    net.double().eval()
    with torch.no_grad():
        for index in range(3):
            for parameter in net.block(index).fuse[-1].parameters():
                parameter.mul_(20)  # an untrained block says nearly the same to every z
        images = batch(6).inputs.double()
        wanted, singles = plain_readings(net, images, Noise(4), 10, draws)
        found = rule.predict(net, images, Noise(4), start=10)
    assert list(found) == list(rule.readings)
    for name in rule.readings:
        assert (found[name] - wanted[name]).abs().max() < 1e-6, name
    for one, other in itertools.combinations([*wanted.values(), *singles[1:]], 2):
        assert (one - other).abs().max() > 1e-2  # or the readings could stand in for one another


def test_statistics_of_batch_norm_are_moved_by_apply_and_saved_with_the_net():
    rule, net = built()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    update = rule.estimate(net, batch(), estimate_noise())
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    rule.apply(net, update, rule.optimizer(net))
    moved = {name for name, buffer in net.named_buffers() if not torch.equal(buffer, before[name])}
    assert {name for name in before if "running_" in name} <= moved
    assert moved <= net.state_dict().keys()


def test_a_prototype_latent_is_image_shaped_and_takes_a_path_of_its_own():
    from sidestep.data import Split

    pixels = (Noise(3).uniform(40 * 64) * 255).to(torch.uint8).view(40, 1, 8, 8)
    examples = Split(pixels, torch.arange(40) % 4)
    rule = NoPropDT(blocks=2, embedding="prototype")
    net = rule.build(TASK, Noise(0), examples, None)
    assert net.dimension == 64
    standardised = pixels.float() / 255
    for row in range(4):
        assert any(torch.allclose(net.embedding[row], image.flatten(), atol=1e-6) for image in standardised[row::4])
    update = rule.estimate(net, batch(), estimate_noise())
    assert update.gradients["blocks.0.latent.path.convolutions.0.weight"].abs().max() > 0


def test_own_modules_with_torch_s_dropout_repeat_and_leave_the_global_generator_alone():
    from torch import nn

    rule = NoPropDT(blocks=2)

    def path():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5))

    net = rule.build(TASK, Noise(0), None, path)
    state = torch.get_rng_state()
    first = rule.estimate(net, batch(), estimate_noise())
    second = rule.estimate(net, batch(), estimate_noise())
    other = rule.estimate(net, batch(), estimate_noise().at(6))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first.gradients[name], second.gradients[name]) for name in first.gradients)
    assert any(not torch.equal(first.gradients[name], other.gradients[name]) for name in first.gradients)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": 0}, "blocks must lie between 1"),
        ({"eta": 0.0}, "eta must be above 0"),
        ({"eta": math.nan}, "eta must be above 0"),
        ({"eta": 1e9}, "at most 1e"),
        ({"learning_rate": 1e39}, "at most 100"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"learning_rate": math.inf}, "learning_rate must be"),
        ({"weight_decay": -0.1}, "weight_decay must lie between 0"),
        ({"dimension": 0}, "dimension must lie between 1"),
        ({"embedding": "two-hot"}, "one-hot, orthogonal, learned, prototype, got 'two-hot'"),
        ({"readout": "magic"}, "softmax, radial, nearest, got 'magic'"),
        ({"smallest_alpha_bar": 0.0}, "smallest_alpha_bar must lie between"),
        ({"smallest_alpha_bar": 0.9, "largest_alpha_bar": 0.1}, r"two values in \(0, 1\) that rise, got \[0.9, 0.1\]"),
        ({"draws": 0}, "draws must lie between 1"),
        ({"loss": "unweighted", "eta": 50.0}, "eta = 50.0 needs loss = paper or clipped, got unweighted"),
        ({"largest_weight": 4.0}, "largest_weight = 4.0 needs loss = clipped, got paper.*default, 5.0"),
        ({"levels": "readable", "cosine_offset": 0.5}, "cosine_offset = 0.5 needs levels = cosine, got readable"),
    ],
)
def test_bad_options_say_what_is_needed(options, words):
    with pytest.raises(InputError, match=words):
        NoPropDT(**options)


@pytest.mark.parametrize("certainty", [0.99, 0.999, 0.9999])
def test_what_is_left_to_learn_is_not_rounded_away_in_bfloat16(certainty):
    _, net = built(embedding="learned", dimension=6)
    rest = math.log(certainty / ((1 - certainty) / 3))
    logits = torch.tensor([[rest, 0.0, 0.0, 0.0]], requires_grad=True)

    def gradient():
        squared = (net.label_estimate(logits) - net.label_embedding(torch.tensor([0]))).square().sum()
        return gradients_of(squared, {"logits": logits})["logits"]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gradient()
    torch.testing.assert_close(rounded, gradient(), rtol=1e-4, atol=0)


def test_float64_stays_float64():
    rule, net = built(embedding="learned", dimension=6, readout="radial")
    single = rule.estimate(net, batch(), estimate_noise()).losses
    images = batch().inputs.double()
    net.double()
    double = rule.estimate(net, Batch(images, batch().targets), estimate_noise())
    assert all(gradient.dtype == torch.float64 for gradient in double.gradients.values())
    assert double.losses.keys() == single.keys()
    for probabilities in rule.predict(net, images, Noise(0)).values():
        assert probabilities.dtype == torch.float64
        torch.testing.assert_close(probabilities.sum(1), torch.ones(24, dtype=torch.float64))


def test_own_modules_may_view_their_images_and_conv_outputs():
    from torch import nn

    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, images):
            hidden = images.view(len(images), -1)
            return torch.cat([hidden, self.conv(images).view(len(images), -1)], dim=1)

    task = Task((3, 8, 8), tuple("abcd"), (0.0,) * 3, (1.0,) * 3)
    rule = NoPropDT(blocks=2)
    net = rule.build(task, Noise(0), None, Viewing)
    images = Noise(1).normal(24 * 192).view(24, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    rule.estimate(net, Batch(images, batch().targets), estimate_noise())
    rule.predict(net, images, Noise(0))
