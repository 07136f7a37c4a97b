"""Time a step on a small net, in `attach` and in the loop of `train`, against a hand-written torch loop.

    python -m benchmarks.small_steps [--rounds 15] [--steps 40] [--only NAME ...] [--out steps.json]

The digits' 64 pixels, batch 128, float32, one thread; AdamW with the same settings, the same losses. backprop on a
linear classifier and on MLPs of 64-64 and 256-256, local losses on these two MLPs. The hand-written loops take their
batch ready made, and read the loss as a number each step, as users' loops do; the loop of `train` also shuffles,
scales, records losses and looks for numbers that are not finite. Processor seconds, one process: medians of rounds in
turn, and the ratio's median and spread over the rounds.

spsa: an MLP of 64 with layer norm, 32 directions, a learning rate that is given. evolution: its defaults, an MLP of
128-64 with layer norm, eight antithetic pairs of rank-1 noise for each example; drawn by torch's generator by hand.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import Ratio
from sidestep import attach, data
from sidestep.measure import keep_freed_memory
from sidestep.noise import Noise
from sidestep.rules import SPSA, Backprop, Evolution, LocalLoss
from sidestep.training import Options
from sidestep.training.begin import begin

BATCH = 128


def batch() -> tuple[Tensor, Tensor]:
    """Return one standardised batch of digits."""
    train = data.load("digits").train
    inputs = train.images[:BATCH].float().flatten(1)
    return (inputs - inputs.mean()) / inputs.std(), train.labels[:BATCH]


def mlp(hidden: tuple[int, ...] = (64, 64)) -> nn.Sequential:
    """Return the net."""
    with Noise(0).torch_seeded():
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise((64, *hidden, 10))]
    return nn.Sequential(*[layer for pair in layers for layer in pair][:-1])


def backprop_by_hand(inputs: Tensor, targets: Tensor, hidden: tuple[int, ...]) -> Callable[[], float]:
    """Return a step of back-propagation as one would write it."""
    model = mlp(hidden)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def local_losses_by_hand(inputs: Tensor, targets: Tensor, hidden: tuple[int, int]) -> Callable[[], float]:
    """Return a step of local losses, a head on each stage, as one would write it."""
    model = mlp(hidden)
    with Noise(1).torch_seeded():
        stages, heads = [model[0:2], model[2:4]], [nn.Linear(hidden[0], 10), model[4]]
    groups = [{"params": [*stage.parameters(), *head.parameters()]} for stage, head in zip(stages, heads, strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        features, last = inputs, 0.0
        for stage, head in zip(stages, heads, strict=True):
            outputs = stage(features)
            loss = F.cross_entropy(head(outputs), targets, label_smoothing=0.1)
            loss.backward()
            features, last = outputs.detach(), loss.item()
        optimizer.step()
        return last

    return step


def spsa_by_hand(inputs: Tensor, targets: Tensor, pairs: int = 32, eps: float = 1e-3) -> Callable[[], float]:
    """Return a step along `pairs` directions as one would write it: torch's generator, weights shifted and back.

    An MLP of 64 with layer norm, and the loss as it stands to compare with, as in `SPSA(learning_rate=0.01)`.
    """
    generator = Noise(2).generator()
    with Noise(0).torch_seeded():
        model = nn.Sequential(
            nn.Linear(64, 64), nn.LayerNorm(64, elementwise_affine=False), nn.ReLU(), nn.Linear(64, 10)
        )
    weights = list(model.parameters())

    @torch.no_grad()
    def step() -> float:
        here = F.cross_entropy(model(inputs), targets)
        sums = [torch.zeros_like(weight) for weight in weights]
        for _ in range(pairs):
            signs = [torch.empty_like(w).bernoulli_(generator=generator).mul_(2).sub_(1) for w in weights]
            for weight, sign in zip(weights, signs, strict=True):
                weight.add_(sign, alpha=eps)
            coef = ((F.cross_entropy(model(inputs), targets) - here) / (eps * pairs)).item()
            for weight, sign, total in zip(weights, signs, sums, strict=True):
                weight.sub_(sign, alpha=eps)
                total.add_(sign, alpha=coef)
        for weight, total in zip(weights, sums, strict=True):
            weight.sub_(total, alpha=0.01)
        return here.item()

    return step


def evolution_by_hand(inputs: Tensor, targets: Tensor, pairs: int = 8, eps: float = 0.01) -> Callable[[], float]:
    """Return a step of rank-1 noise as one would write it: signs a, b and c for every layer, pair and example.

    (W +- eps a b^T) x + w +- eps c = W x + w +- eps (a (b . x) + c)
    """
    generator = Noise(2).generator()
    with Noise(0).torch_seeded():
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise((inputs.shape[1], 128, 64, 10))]
    optimizer = torch.optim.AdamW([p for layer in layers for p in layer.parameters()], lr=3e-3, fused=True)
    count = pairs * len(inputs)
    side = torch.tensor([eps, -eps]).view(2, 1, 1)

    def signs(width: int) -> Tensor:
        return torch.empty(count, width).bernoulli_(generator=generator).mul_(2).sub_(1)

    @torch.no_grad()
    def step() -> float:
        hidden = inputs.repeat(pairs, 1).expand(2, count, -1)
        drawn = [(signs(layer.out_features), signs(layer.in_features), signs(layer.out_features)) for layer in layers]
        for layer, (a, b, c) in zip(layers, drawn, strict=True):
            if layer is not layers[0]:
                hidden = F.layer_norm(hidden, hidden.shape[-1:]).relu_()
            hidden = layer(hidden) + side * (a * (hidden * b).sum(dim=2, keepdim=True) + c)
        losses = F.cross_entropy(hidden.flatten(0, 1), targets.repeat(2 * pairs), reduction="none").view(2, count)
        coefs = ((losses[0] - losses[1]) / (2 * eps * count))[:, None]
        for layer, (a, b, c) in zip(layers, drawn, strict=True):
            layer.weight.grad, layer.bias.grad = (coefs * a).T @ b, (coefs * c).sum(dim=0)
        optimizer.step()
        return losses.mean().item()

    return step


def in_train(rule: Backprop | LocalLoss | SPSA | Evolution) -> Callable[[], object]:
    """Return a step of the loop of `train`."""
    options = Options(epochs=100_000, batch=BATCH, device="cpu", precision="float32")
    state, loop = begin(rule, data.load("digits"), options)
    return lambda: loop.take_step(state)


def measured(
    ways: dict[str, Callable[[], object]], rounds: int, steps: int, clock: str = "processor"
) -> dict[str, list[float]]:
    """Return name -> processor (or wall) seconds of a step, of every round: all take turns, so that drift hits all."""
    now = time.process_time if clock == "processor" else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = now()
            for _ in range(steps):
                way()
            if turn:  # the first warms up
                taken[name].append((now() - started) / steps)
    return taken


def tables() -> dict[str, Callable[[], dict[str, Callable[[], object]]]]:
    """Return name -> what makes the ways to take a step, the hand-written one first."""
    inputs, targets = batch()

    def backprop(*hidden: int) -> dict[str, Callable[[], object]]:
        step = attach(mlp(hidden), Backprop())
        rule = Backprop(net="mlp", hidden=hidden) if hidden else Backprop(net="linear")
        ours = {"attach": lambda: float(step(inputs, targets)), "train": in_train(rule)}
        return {"by hand": backprop_by_hand(inputs, targets, hidden), **ours}

    def local(*hidden: int) -> dict[str, Callable[[], object]]:
        step = attach(mlp(hidden), LocalLoss())
        rule = LocalLoss(hidden=hidden, norm="none")
        ours = {"attach": lambda: float(step(inputs, targets)), "train": in_train(rule)}
        return {"by hand": local_losses_by_hand(inputs, targets, (hidden[0], hidden[1])), **ours}

    return {
        "backprop linear": lambda: backprop(),
        "backprop 64-64": lambda: backprop(64, 64),
        "backprop 256-256": lambda: backprop(256, 256),
        "local-loss 64-64": lambda: local(64, 64),
        "local-loss 256-256": lambda: local(256, 256),
        "spsa": lambda: {"by hand": spsa_by_hand(inputs, targets), "train": in_train(SPSA(learning_rate=0.01))},
        "evolution": lambda: {"by hand": evolution_by_hand(inputs, targets), "train": in_train(Evolution())},
    }


def main(arguments: list[str] | None = None) -> None:
    """Print microseconds of a step and ratios to the hand-written loop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="+", choices=list(tables()), metavar="NAME")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()  # as train does
    rows = []
    for name, make in tables().items():
        if given.only and name not in given.only:
            continue
        found = measured(make(), given.rounds, given.steps)
        for way, seconds in found.items():
            ratio = Ratio.of(seconds, found["by hand"])
            rows.append({"step": name, "way": way, "seconds": statistics.median(seconds), "by hand": asdict(ratio)})
            print(f"{name:18}  {way:8}  {1e6 * statistics.median(seconds):6.0f} us  {ratio}", flush=True)
    if given.out:
        given.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
