"""Time a step of ours against other libraries' steps of the same maths, in one process.

    pip install -e '.[bench-peers]'
    python -m benchmarks.peer_steps [--rounds 7] [--steps 10] [--pairs 8]

spsa: torchzero's estimators along random directions, one-sided (the loss as it stands, and one more for each
direction), and `attach(model, SPSA(...))`, which is logged nowhere. backprop: skorch's training step, and `attach`.
MLPs of 784-64-10 and 784-512-512-10, 128 standardised rows of noise, float32, one thread, SGD. Processor seconds: all
take turns, and a ratio is the median of the rounds' pairs, with their spread. A library that is missing is skipped.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import Ratio
from benchmarks.small_steps import measured
from sidestep import attach
from sidestep.noise import Noise
from sidestep.rules import SPSA, Backprop

NETS = {"784-64-10": (784, 64, 10), "784-512-512-10": (784, 512, 512, 10)}
ESTIMATORS = ("SPSA", "RDSA", "MeZO")  # of torchzero, along Rademacher directions
RATE = 1e-3


def peer(name: str) -> Any:
    """Return a library, or None after a sentence where it is missing."""
    try:
        return import_module(name)
    except ImportError:
        print(f"{name} is not installed, so its rows are skipped: pip install -e '.[bench-peers]'")
        return None


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Return the net, with the same weights each time."""
    with Noise(0).torch_seeded():
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[layer for pair in layers for layer in pair][:-1])


def rows() -> tuple[Tensor, Tensor]:
    """Return a batch."""
    return Noise(1).normal(128 * 784).view(128, 784), Noise(2).integers(128, 10)


def torchzero_step(tz: Any, estimator: str, widths: tuple[int, ...], pairs: int) -> Callable[[], object]:
    """Return a step of torchzero's."""
    model, (inputs, targets) = mlp(widths), rows()
    along = {"h": 1e-3, "n_samples": pairs, "formula": "forward", "distribution": "rademacher"}
    optimizer = tz.Optimizer(model.parameters(), getattr(tz.m, estimator)(**along), tz.m.LR(RATE))

    @torch.no_grad()
    def step() -> object:
        return optimizer.step(lambda backward=False: F.cross_entropy(model(inputs), targets))

    return step


def skorch_step(skorch: Any, widths: tuple[int, ...]) -> Callable[[], object]:
    """Return a step of skorch's."""
    given = {"optimizer": torch.optim.SGD, "lr": RATE, "verbose": 0, "train_split": None}
    net = skorch.NeuralNet(mlp(widths), nn.CrossEntropyLoss, **given)
    net.initialize()
    batch = rows()
    return lambda: net.train_step(batch)["loss"].item()


def own_step(rule: SPSA | Backprop, widths: tuple[int, ...]) -> Callable[[], object]:
    """Return a step of ours, whose loss is read."""
    sgd = None if isinstance(rule, SPSA) else lambda groups: torch.optim.SGD(groups, lr=RATE)
    step, batch = attach(mlp(widths), rule, optimizer=sgd), rows()
    return lambda: float(step(*batch))


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each net and peer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="pairs in turn, of which five or more make a ratio")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=8, help="directions of spsa")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tz, skorch = peer("torchzero"), peer("skorch")
    for net, widths in NETS.items():
        tables: dict[str, dict[str, Callable[[], object]]] = {"spsa": {}, "backprop": {}}
        if tz:
            tables["spsa"] = {f"torchzero {e}": torchzero_step(tz, e, widths, given.pairs) for e in ESTIMATORS}
            tables["spsa"]["ours"] = own_step(SPSA(pairs=given.pairs, learning_rate=RATE), widths)
        if skorch:
            tables["backprop"] = {"skorch": skorch_step(skorch, widths), "ours": own_step(Backprop(), widths)}
        for rule, ways in tables.items():
            found = measured(ways, given.rounds, given.steps) if ways else {}
            for name, seconds in found.items():
                over = "" if name == "ours" else f"  over ours {Ratio.of(seconds, found['ours'])}"
                print(f"{rule:9} {net:15} {name:15} {1e3 * statistics.median(seconds):7.2f} ms{over}", flush=True)


if __name__ == "__main__":
    main()
