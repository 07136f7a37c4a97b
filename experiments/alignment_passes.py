"""Cosine with the true gradient against forward passes: noise on weights, on outputs of examples, on those of tokens.

    python -m experiments.alignment_passes [--data digits] [--seeds 0,1,2]

One held batch of 128 images and an untrained net, so that nothing but the estimate differs; a pass is the whole batch
through the net. The first table is `sidestep.align` on rules and the same for `LearnedFeedback`, all on an MLP
128-64 with layer norms. The second cuts each image into its rows, which one net of two layers reads as tokens and
averages; the noise is on weights, or on the outputs of layers: one for each example, or one for each token. Nothing was
chosen. Prints both tables, mean and standard deviation over seeds.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from statistics import mean, stdev

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sidestep import align, data
from sidestep.data import DataSet
from sidestep.noise import Noise
from sidestep.rules import SPSA, Evolution, Rule
from sidestep.training.learned_feedback import LearnedFeedback
from sidestep.training.options import Options

PASSES, BATCH, WIDTHS, SIZE = (2, 16, 64, 192), 128, (128, 64), 0.01


def rules(passes: int) -> dict[str, Rule]:
    """Return the rules with so many passes a step, on nets of the same shape."""
    return {
        "weights, one direction for the batch": SPSA(
            hidden=WIDTHS, norm=True, pairs=passes // 2, sides="both", eps=SIZE, learning_rate=1e-3
        ),
        "weights, rank one, one direction an example": Evolution(hidden=WIDTHS, population=passes, eps=SIZE),
        "outputs of layers, one direction an example": Evolution(
            hidden=WIDTHS, population=passes, columns="input", eps=SIZE
        ),
    }


def batch_of(images: DataSet) -> tuple[Tensor, Tensor]:
    """Return standardised pixels, (batch, rows, columns), and labels."""
    split = images.train
    pixels = split.images[:BATCH].float().flatten(1)
    return ((pixels - pixels.mean()) / pixels.std()).view(BATCH, split.images.shape[-2], -1), split.labels[
        :BATCH
    ].long()


def gradient(net: nn.Module) -> Tensor:
    """Return what stands in `.grad` of the weights as one vector."""
    return torch.cat([weight.grad.flatten() for weight in net.parameters() if weight.grad is not None])


def true_gradient(net: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the back-propagated gradient as one vector."""
    net.zero_grad()
    cross_entropy(net(inputs), targets).backward()
    found = gradient(net).clone()
    net.zero_grad()
    return found


def by_fit(images: DataSet, seed: int, most: int, residual: float) -> dict[int, float]:
    """Return the cosine of learned feedback after so many passes, all over the held batch."""
    inputs, targets = batch_of(images)
    inputs = inputs.flatten(1)
    widths = (inputs.shape[1], *WIDTHS)
    with Noise(seed).torch_seeded():
        hidden = [
            (nn.Linear(before, after), nn.LayerNorm(after, elementwise_affine=False), nn.ReLU())
            for before, after in itertools.pairwise(widths)
        ]
        net = nn.Sequential(*(part for parts in hidden for part in parts), nn.Linear(WIDTHS[-1], 10))
    wanted, found = true_gradient(net, inputs, targets), {}
    estimate = LearnedFeedback(net, eps=SIZE, memory=1.0, residual=residual, seed=seed)
    for passes in range(2, most + 1, 2):
        net.zero_grad()
        estimate(inputs, targets)
        found[passes] = float(torch.cosine_similarity(gradient(net), wanted, dim=0))
    return found


class Reader(nn.Module):
    """Two layers for each token, the mean over tokens, and a layer for classes."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(columns, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, (batch, 10), of (batch, tokens, columns)."""
        places = torch.linspace(-1, 1, tokens.shape[1])[:, None]
        return self.last(self.second((self.first(tokens) + places).relu()).relu().mean(dim=1))


@torch.no_grad()
def by_outputs(net: Reader, inputs: Tensor, targets: Tensor, noise: Noise, every_token: bool) -> Tensor:
    """Return an estimate from one pair of passes with noise on the outputs of all layers."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str, sign: int) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        def shifted(_: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
            shared = output.ndim == 3 and not every_token
            shape = torch.Size((len(output), 1, output.shape[2])) if shared else output.shape
            signs = noise.stream(name).signs(shape.numel()).view(shape)
            if sign > 0:
                seen[name] = given[0], signs.float().expand_as(output)
            return output + sign * SIZE * signs

        return shifted

    losses = []
    for sign in (1, -1):
        hooks = [layer.register_forward_hook(hook(name, sign)) for name, layer in net.named_children()]
        losses.append(cross_entropy(net(inputs), targets, reduction="none"))
        for each in hooks:
            each.remove()
    alpha = (losses[0] - losses[1]) / (2 * SIZE * len(targets))
    parts = []
    for rows, signs in seen.values():
        scaled = alpha.view(-1, *[1] * (signs.ndim - 1)) * signs
        parts += [(scaled.flatten(0, -2).T @ rows.flatten(0, -2)).flatten(), scaled.flatten(0, -2).sum(dim=0)]
    return torch.cat(parts)


@torch.no_grad()
def by_weights(net: Reader, inputs: Tensor, targets: Tensor, noise: Noise) -> Tensor:
    """Return an estimate from one pair of passes with noise on the weights."""
    weights = dict(net.named_parameters())
    signs = {name: noise.stream(name).signs(weight.numel()).view_as(weight) for name, weight in weights.items()}
    losses = [
        cross_entropy(
            torch.func.functional_call(
                net, {name: weight + sign * SIZE * signs[name] for name, weight in weights.items()}, (inputs,)
            ),
            targets,
        )
        for sign in (1, -1)
    ]
    return (losses[0] - losses[1]) / (2 * SIZE) * torch.cat([each.flatten() for each in signs.values()])


def token_cosines(images: DataSet, seed: int) -> dict[str, dict[int, float]]:
    """Return cosines by way and passes on the net that reads tokens."""
    inputs, targets = batch_of(images)
    with Noise(seed).torch_seeded():
        net = Reader(inputs.shape[2])
    wanted, noise = true_gradient(net, inputs, targets), Noise(seed).stream("directions")
    ways: dict[str, Callable[[Noise], Tensor]] = {
        "weights": lambda drawn: by_weights(net, inputs, targets, drawn),
        "outputs, one direction an example": lambda drawn: by_outputs(net, inputs, targets, drawn, False),
        "outputs, one direction a token": lambda drawn: by_outputs(net, inputs, targets, drawn, True),
    }
    found: dict[str, dict[int, float]] = {}
    for name, way in ways.items():
        total, found[name] = torch.zeros_like(wanted), {}
        for pair in range(PASSES[-1] // 2):
            total += way(noise.at(pair))
            found[name][2 * pair + 2] = float(torch.cosine_similarity(total, wanted, dim=0))
    return found


def table(rows: dict[str, dict[int, list[float]]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield "| noise on | " + " | ".join(f"{passes} passes" for passes in PASSES) + " |"
    yield "|---" * (1 + len(PASSES)) + "|"
    for name, cells in rows.items():
        yield f"| {name} | " + " | ".join(f"{mean(cells[p]):.3f} ({stdev(cells[p]):.3f})" for p in PASSES) + " |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    images, seeds = data.load(given.data), [int(seed) for seed in given.seeds.split(",")]
    rows: dict[str, dict[int, list[float]]] = {}
    for passes in PASSES:
        for name, rule in rules(passes).items():
            cells = rows.setdefault(name, {})
            cells[passes] = [
                align(rule, images, Options(seed=seed, batch=BATCH), estimates=4).whole.cosine for seed in seeds
            ]
    for name, residual in (("outputs, learned feedback, what is fitted", 0.0), ("the same and all that is left", 1.0)):
        runs = [by_fit(images, seed, PASSES[-1], residual) for seed in seeds]
        rows[name] = {passes: [run[passes] for run in runs] for passes in PASSES}
    print("\n".join(table(rows)), end="\n\n")
    by_seed = [token_cosines(images, seed) for seed in seeds]
    tokens = {name: {p: [found[name][p] for found in by_seed] for p in PASSES} for name in by_seed[0]}
    print("\n".join(table(tokens)))


if __name__ == "__main__":
    main()
