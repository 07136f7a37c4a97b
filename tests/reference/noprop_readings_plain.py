"""How a continuous rule's readings are held to plain walks: a block that can be written in one line, and the check."""

import itertools
import math

import torch

from sidestep.noise import Noise


def with_a_plain_block(net):
    """Put `3 sin(2 z + t + x)`, of an image's first four pixels, in the block's place; it reacts to all it is given."""
    net.double()
    net.block.prepare = lambda images: images.flatten(1)[:, :4]
    net.block.outputs = lambda prepared, latent, time: 3 * (2 * latent + time + prepared).sin()


def plain_output(z, t, pixels):
    return 3 * (2 * z + t + pixels).sin()


def normals_of(noise, place, draw, count):
    """Noise 0 to count - 1 of one draw, for the image at that place of the set."""
    stream = noise.stream(f"draw {draw}")
    return [stream.sub(index).normal(4 * place + 4)[4 * place :].double() for index in range(count)]


def times_of(rule):
    shares = [index / rule.steps for index in range(rule.steps + 1)]
    return shares if rule.grid == "uniform" else [math.sin(math.pi / 2 * share) ** 2 for share in shares]


def assert_readings_are_plain(rule, net, images, noise, plain_readings, from_noise):
    """Hold every reading but the adaptive one to `plain_readings`, and check that no two could be taken for each other.

    `plain_readings(rule, image, place, noise)` gives one image's readings by name, and its single draws. `from_noise`
    is the reading that equals the one without " from noise" where walks start from noise.
    """
    found = rule.predict(net, images, noise, start=10, names=[n for n in rule.readings if n != "adaptive"])
    rows = [plain_readings(rule, image, 10 + place, noise) for place, image in enumerate(images)]
    wanted = {name: torch.stack([readings[name] for readings, _ in rows]) for name in found}
    for name, probabilities in found.items():
        assert (probabilities - wanted[name]).abs().max() < 1e-5, name
    others = [torch.stack([singles[draw] for _, singles in rows]) for draw in range(1, rule.draws)]
    if rule.start == "noise":
        assert torch.equal(found[from_noise.removesuffix(" from noise")], found[from_noise])
        del wanted[from_noise]
    for one, other in itertools.combinations([*wanted.values(), *others], 2):
        assert (one - other).abs().max() > 1e-2


def assert_a_draw_is_walked_once(monkeypatch, rule, net, inputs, names, calls):
    """Two readings that are made of the same draws ask the block as often as one, and say what each says alone."""
    asked = []
    outputs = net.block.outputs
    monkeypatch.setattr(net.block, "outputs", lambda *given: asked.append(1) or outputs(*given))
    both = rule.predict(net, inputs, Noise(1), names=names)
    assert len(asked) == calls
    for name, found in both.items():
        assert torch.equal(found, rule.predict(net, inputs, Noise(1), names=[name])[name])
