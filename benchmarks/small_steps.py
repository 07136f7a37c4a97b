"""Time a step on a small net, in `attach` and in the loop of `train`, against a hand-written torch loop.

    python -m benchmarks.small_steps [--rounds 15] [--steps 40]

An MLP of 64-64 on the digits' 64 pixels, batch 128, float32, one thread; AdamW with the same settings, the same losses.
The hand-written loops take their batch ready made, and read the loss as a number each step, as users' loops do; the
loop of `train` also shuffles, scales, records losses and looks for numbers that are not finite. Medians of rounds in
turn, in one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep import attach, data
from sidestep.noise import Noise
from sidestep.rules import Backprop, LocalLoss
from sidestep.training import Options
from sidestep.training.begin import begin

BATCH = 128


def batch() -> tuple[Tensor, Tensor]:
    """Return one standardised batch of digits."""
    train = data.load("digits").train
    inputs = train.images[:BATCH].float().flatten(1)
    return (inputs - inputs.mean()) / inputs.std(), train.labels[:BATCH]


def mlp() -> nn.Sequential:
    """Return the net."""
    with Noise(0).torch_seeded():
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def backprop_by_hand(inputs: Tensor, targets: Tensor) -> Callable[[], float]:
    """Return a step of back-propagation as one would write it."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-3, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def local_losses_by_hand(inputs: Tensor, targets: Tensor) -> Callable[[], float]:
    """Return a step of local losses, a head on each stage, as one would write it."""
    model = mlp()
    with Noise(1).torch_seeded():
        stages, heads = [model[0:2], model[2:4]], [nn.Linear(64, 10), model[4]]
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


def in_train(rule: Backprop | LocalLoss) -> Callable[[], object]:
    """Return a step of the loop of `train`."""
    options = Options(epochs=100_000, batch=BATCH, device="cpu", precision="float32")
    state, loop = begin(rule, data.load("digits"), options)
    return lambda: loop.take_step(state)


def medians(ways: dict[str, Callable[[], object]], rounds: int, steps: int) -> dict[str, float]:
    """Return name -> seconds of a step."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(steps):
                way()
            if turn:  # the first warms up
                taken[name].append((time.perf_counter() - started) / steps)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Print microseconds of a step and ratios to the hand-written loop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    inputs, targets = batch()
    backprop, local = attach(mlp(), Backprop()), attach(mlp(), LocalLoss())
    tables = {
        "backprop": {
            "by hand": backprop_by_hand(inputs, targets),
            "attach": lambda: float(backprop(inputs, targets)),
            "train": in_train(Backprop(net="mlp", hidden=(64, 64), norm="none")),
        },
        "local-loss": {
            "by hand": local_losses_by_hand(inputs, targets),
            "attach": lambda: float(local(inputs, targets)),
            "train": in_train(LocalLoss(hidden=(64, 64), norm="none")),
        },
    }
    for rule, ways in tables.items():
        found = medians(ways, given.rounds, given.steps)
        for name, seconds in found.items():
            print(f"{rule:10}  {name:8}  {1e6 * seconds:6.0f} us  {seconds / found['by hand']:.2f}")


if __name__ == "__main__":
    main()
