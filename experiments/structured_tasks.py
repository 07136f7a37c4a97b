"""Three tasks whose answer is a structure or a distribution, made of the digits of MNIST, halved to 14 x 14 pixels.

    strings     three digits side by side, of which one is hidden; the third is the sum of the others modulo 10, so the
                hidden one follows from the other two. Answer: the string.
    in-painting the upper half of a digit is given. Answer: the lower half, of which there are many.
    overlay     two different digits, one over the other. Answer: the two in an order that is drawn at random, so that
                two answers are right, half of the time each, and no answer for each place by itself can say so.

Training and validation examples are made of training images, test examples of test images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep import data
from sidestep.data import Split
from sidestep.data.objective import VALUES, Objective
from sidestep.nets.noprop.target_space import TargetSpace
from sidestep.noise import Noise

__all__ = ["CLASSES", "Part", "StructuredTask", "halved", "make_task", "painted", "place_space", "recogniser"]

CLASSES, SIDE, TRAINED, HELD_OUT, TESTED = 10, 14, 20_000, 2_000, 5_000


@dataclass(frozen=True)
class Part:
    """Examples of a task: inputs (n, values), targets, and what scores go by besides."""

    inputs: Tensor
    targets: Tensor  # (n, places), int64, or (n, pixels), float32
    extra: Tensor  # strings: the hidden place; in-painting: the digit; overlay: nothing of use


@dataclass(frozen=True)
class StructuredTask:
    """Parts of a task, and what its targets are to a net."""

    name: str
    train: Part
    validation: Part
    test: Part
    space: TargetSpace
    outputs: int


def place_space(places: int) -> TargetSpace:
    """Return the space of strings: a one-hot vector for each place, side by side, and a softmax for each place."""

    def split(outputs: Tensor) -> Tensor:
        return outputs.unflatten(-1, (places, CLASSES))

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(split(outputs).flatten(0, -2), targets.flatten(), reduction="none").view(
            -1, places
        ).mean(dim=1)  # fmt: skip

    def softmax(outputs: Tensor) -> Tensor:
        return split(outputs).softmax(dim=-1).flatten(-2)

    def embed(targets: Tensor, rows: Tensor) -> Tensor:
        return F.one_hot(targets, CLASSES).flatten(1).to(rows.dtype)

    return TargetSpace(
        Objective("cross-entropy of places", losses, softmax), embed, lambda outputs, rows: softmax(outputs)
    )


def halved(split: Split, most: int) -> tuple[Tensor, Tensor]:
    """Return digits as (n, 14, 14) floats from 0 to 1, and their classes."""
    images = F.avg_pool2d(split.images[:most].float() / 255, 2)[:, 0]
    return images, split.targets[:most]


def _strings(images: Tensor, labels: Tensor, count: int, noise: Noise) -> Part:
    by_class = [(labels == digit).nonzero()[:, 0] for digit in range(CLASSES)]
    digits = noise.stream("digits").integers(2 * count, CLASSES).view(count, 2)
    digits = torch.cat([digits, digits.sum(dim=1, keepdim=True) % CLASSES], dim=1)
    which = noise.stream("which").integers(3 * count, 1 << 20).view(count, 3)
    hidden = noise.stream("hidden").integers(count, 3)
    rows = torch.empty(count, 3, dtype=torch.int64)
    for digit, members in enumerate(by_class):
        here = digits == digit
        rows[here] = members[which[here] % len(members)]
    shown = images[rows] * (torch.arange(3) != hidden[:, None])[:, :, None, None]  # (count, 3, 14, 14)
    return Part(shown.transpose(1, 2).flatten(1), digits, hidden)


def _painting(images: Tensor, labels: Tensor, count: int, noise: Noise) -> Part:
    rows = noise.stream("which").permutation(len(labels))[:count]
    upper, lower = images[rows, : SIDE // 2], images[rows, SIDE // 2 :]
    return Part(upper.flatten(1), lower.flatten(1), labels[rows])


def _overlay(images: Tensor, labels: Tensor, count: int, noise: Noise) -> Part:
    pairs = noise.stream("pairs").integers(4 * count, len(labels)).view(-1, 2)
    pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]][:count]  # in an order that means nothing
    both = torch.maximum(images[pairs[:, 0]], images[pairs[:, 1]])
    return Part(both.flatten(1), labels[pairs], labels[pairs])


_KINDS: dict[str, Callable[[Tensor, Tensor, int, Noise], Part]] = {
    "strings": _strings, "in-painting": _painting, "overlay": _overlay
}  # fmt: skip


def make_task(name: str) -> StructuredTask:
    """Return a task by name, the same at every call: seeds are of nets, not of data."""
    loaded, make, noise = data.load("mnist", validation=0.0), _KINDS[name], Noise(0).stream(name)
    images, labels = halved(loaded.train, 60_000)
    cut = 50_000
    train = make(images[:cut], labels[:cut], TRAINED, noise.stream("train"))
    validation = make(images[cut:], labels[cut:], HELD_OUT, noise.stream("validation"))
    test = make(*halved(loaded.test, 10_000), TESTED, noise.stream("test"))
    shift, unit = train.inputs.mean(), train.inputs.std()
    train, validation, test = (
        Part((part.inputs - shift) / unit, part.targets, part.extra) for part in (train, validation, test)
    )
    if name != "in-painting":
        places = train.targets.shape[1]
        return StructuredTask(name, train, validation, test, place_space(places), places * CLASSES)
    centre, spread = train.targets.mean(), train.targets.std()
    train, validation, test = (
        Part(part.inputs, (part.targets - centre) / spread, part.extra) for part in (train, validation, test)
    )
    space = TargetSpace(VALUES, lambda targets, rows: targets, lambda outputs, rows: outputs)
    return StructuredTask(name, train, validation, test, space, train.targets.shape[1])


def painted(part: Part, lower: Tensor) -> Tensor:
    """Return whole digits of given upper and of painted lower halves, (n, 196)."""
    return torch.cat([part.inputs, lower], dim=1)


def recogniser(whole: Tensor, labels: Tensor) -> nn.Sequential:
    """Return a net that reads whole digits, (n, 196), trained on these: it judges those that nets have made."""
    with Noise(0).stream("recogniser").torch_seeded():
        hidden = [nn.Linear(SIDE * SIDE, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()]
        net = nn.Sequential(*hidden, nn.Linear(128, CLASSES))
    optimizer, order = torch.optim.AdamW(net.parameters(), lr=2e-3), Noise(0).stream("order")
    for step in range(1200):
        rows = order.at(step).integers(100, len(labels))
        loss = F.cross_entropy(net(whole[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()
