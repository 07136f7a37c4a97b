"""Time a step of ours against other libraries' steps of the same maths, in one process.

    pip install -e '.[bench-peers]'
    python -m benchmarks.peer_steps [--rounds 7] [--steps 10] [--pairs 8] [--threads 1 16] [--out peers.json]

MLPs of 784-64-10 and 784-512-512-10, and one batch of 128 standardised rows of noise, float32, the same on both sides:

- spsa: torchzero's estimators along random directions, one-sided (the loss as it stands, and one more for each
  direction), and `attach(model, SPSA(...))`, which is logged nowhere; SGD.
- evolution: 2 `pairs` members, each of which sees the whole batch. cma's separable CMA-ES draws and adapts in float64
  and ranks the members; ours draws antithetic pairs of full-rank noise, fair signs, and takes a step of SGD. evosax's
  Open_ES takes the same step from normal noise, compiled for jax as one function, losses and net included.
- backprop: skorch's training step, and `attach`; SGD.

On one thread times are processor seconds, of all threads that a library starts of its own, and on several those of the
clock. All take turns, and a ratio is the median of
the rounds' pairs, with their spread. A library that is missing is skipped.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import Ratio, Roof
from benchmarks.small_steps import measured
from sidestep import attach
from sidestep.noise import Noise
from sidestep.rules import SPSA, Backprop, Evolution

NETS = {"784-64-10": (784, 64, 10), "784-512-512-10": (784, 512, 512, 10)}
ESTIMATORS = ("SPSA", "RDSA", "MeZO")  # of torchzero, along Rademacher directions
PEERS = ("torchzero", "cma", "evosax", "skorch")
RATE = 1e-3
Ways = dict[str, Callable[[], object]]


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


def cma_step(cma: Any, widths: tuple[int, ...], pairs: int) -> Callable[[], object]:
    """Return a step of cma's: ask, the losses, tell."""
    model, (inputs, targets) = mlp(widths), rows()
    weights = list(model.parameters())
    start = nn.utils.parameters_to_vector(weights).detach().double().numpy()
    settings = {"popsize": 2 * pairs, "CMA_diagonal": True, "verbose": -9, "seed": 1}
    strategy = cma.CMAEvolutionStrategy(start, 0.01, settings)

    @torch.no_grad()
    def loss(member: Any) -> float:
        nn.utils.vector_to_parameters(torch.from_numpy(np.asarray(member, dtype=np.float32)), weights)
        return F.cross_entropy(model(inputs), targets).item()

    def step() -> object:
        members = strategy.ask()
        return strategy.tell(members, [loss(member) for member in members])

    return step


def evosax_step(_: Any, widths: tuple[int, ...], pairs: int) -> Callable[[], object]:
    """Return a step of evosax's Open_ES: ask, the losses and tell, in one compiled function."""
    jax, optax = import_module("jax"), import_module("optax")
    weights = [weight.detach().numpy() for weight in mlp(widths).parameters()]
    inputs, targets = (each.numpy() for each in rows())
    settings = {"use_antithetic_sampling": True, "optimizer": optax.sgd(RATE)}
    shaping = import_module("evosax.core.fitness_shaping").identity_fitness_shaping_fn
    make = import_module("evosax.algorithms").Open_ES
    strategy = make(2 * pairs, weights, std_schedule=optax.constant_schedule(0.01), fitness_shaping_fn=shaping,
                    **settings)  # fmt: skip
    params = strategy.default_params
    held = [jax.random.key(0), strategy.init(jax.random.key(1), weights, params)]

    def loss(member: list[Any]) -> Any:
        hidden = inputs
        for place in range(0, len(member), 2):
            hidden = hidden @ member[place].T + member[place + 1]
            hidden = jax.nn.relu(hidden) if place < len(member) - 2 else hidden
        return optax.softmax_cross_entropy_with_integer_labels(hidden, targets).mean()

    @jax.jit
    def generation(key: Any, state: Any) -> tuple[Any, Any, Any]:
        key, asking, telling = jax.random.split(key, 3)
        members, state = strategy.ask(asking, state, params)
        losses = jax.vmap(loss)(members)
        state, _ = strategy.tell(telling, members, losses, state, params)
        return key, state, losses.mean()

    def step() -> object:
        *held[:], found = generation(*held)
        return float(found)

    return step


def own_step(rule: SPSA | Evolution | Backprop, widths: tuple[int, ...]) -> Callable[[], object]:
    """Return a step of ours, whose loss is read."""
    sgd = None if isinstance(rule, SPSA) else lambda groups: torch.optim.SGD(groups, lr=RATE)
    step, batch = attach(mlp(widths), rule, optimizer=sgd), rows()
    return lambda: float(step(*batch))


def ways_of(peers: dict[str, Any], widths: tuple[int, ...], pairs: int) -> dict[str, Ways]:
    """Return rule -> the ways to take its step, ours last; nothing for a rule whose peer is missing."""
    tables: dict[str, Ways] = {}
    if tz := peers["torchzero"]:
        tables["spsa"] = {f"torchzero {e}": torchzero_step(tz, e, widths, pairs) for e in ESTIMATORS}
        tables["spsa"]["ours"] = own_step(SPSA(pairs=pairs, learning_rate=RATE), widths)
    others = {"cma, separable": cma_step, "evosax, Open_ES": evosax_step}
    if there := {name: make for name, make in others.items() if peers[name.partition(",")[0]]}:
        rule = Evolution(noise_kind="full-rank", per="group", population=2 * pairs)
        found = {name: make(peers[name.partition(",")[0]], widths, pairs) for name, make in there.items()}
        tables["evolution"] = {**found, "ours": own_step(rule, widths)}
    if skorch := peers["skorch"]:
        tables["backprop"] = {"skorch": skorch_step(skorch, widths), "ours": own_step(Backprop(), widths)}
    return tables


def timed(peers: dict[str, Any], threads: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return a row for each net, rule and way, on so many threads."""
    torch.set_num_threads(threads)
    clock, found = "processor" if threads == 1 else "wall", []
    for net, widths in NETS.items():
        for rule, ways in ways_of(peers, widths, given.pairs).items():
            taken = measured(ways, given.rounds, given.steps, clock)
            for name, seconds in taken.items():
                over = None if name == "ours" else Ratio.of(seconds, taken["ours"])
                said = "" if over is None else f"  over ours {over}"
                middle = statistics.median(seconds)
                print(f"{rule:9} {net:15} {threads:3} {name:15} {1e3 * middle:8.2f} ms{said}", flush=True)
                row = {"rule": rule, "net": net, "threads": threads, "clock": clock, "way": name, "seconds": middle}
                found.append({**row, "over ours": over and asdict(over), "rounds": seconds})
    return found


def environment(peers: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured on, and with which versions."""
    there = [name for name in PEERS if peers[name]]
    torch.set_num_threads(1)
    roof = Roof.measure(size=1024)
    return {
        "python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count(),
        "one core, matrix products, GFLOP/s": roof.flops / 1e9, "one core, copies, GB/s": roof.bandwidth / 1e9,
        **{name: metadata.version(name) for name in there},
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each net and peer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="pairs in turn, of which five or more make a ratio")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=8, help="directions of spsa, half the members of evolution")
    usual = sorted({1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1})
    parser.add_argument("--threads", type=int, nargs="+", default=usual, help="one, and all cores, by default")
    parser.add_argument("--out", type=Path, help="JSON file for the rows, and what was measured on")
    given = parser.parse_args(arguments)
    peers = {name: peer(name) for name in PEERS}
    found = [row for threads in given.threads for row in timed(peers, threads, given)]
    if given.out:
        record = {"environment": environment(peers), "rows": found}
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
