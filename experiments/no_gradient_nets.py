"""Five nets without a useful gradient on MNIST, by ways of training that need none.

    python -m experiments.no_gradient_nets run FILE.jsonl [--ways ...] [--nets ...] [--seeds 0,1,2]
    python -m experiments.no_gradient_nets table FILE.jsonl

A row is one net, way, seed and number of passes; those that the file has are not run again. A forward pass is one
example through a net, shifted or noisy or neither, and all ways have the same number of them, to within a step. All
settings were chosen on the validation images, seed 0, at 150,000 passes or less.
`--no-test` leaves the test split unread; else it is read once, after the last step of a row.
The nets are those of `experiments.no_gradient_modules`.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.given import a_count
from experiments.kept_rows import keep_row, kept_as
from experiments.no_gradient_modules import NETS
from sidestep import attach, data
from sidestep.noise import Noise
from sidestep.rules import SPSA, Evolution
from sidestep.training.learned_feedback import LearnedFeedback

PASSES, BATCH = 300_000, 256
PUBLISHED = {"spiking": 93.4, "int8": 97.1, "attention": 86.8, "staircase": 93.2, "experts": 90.7}


@dataclass(frozen=True)
class Way:
    """A way of training.

    passes: through the net for each example of a step.
    step: (net, steps in all, seed) -> a function that takes one step from a batch, given the share of steps done.
    """

    passes: int
    make: Callable[[nn.Module, int, int], Callable[[Tensor, Tensor, float], None]]
    batch: int = BATCH


def rate_at(rate: float, done: float) -> float:
    """Return the rate of a step: up from zero over a twentieth of all steps, then down along a cosine."""
    return rate * min(1.0, 20 * done + 0.01) * (1 + math.cos(math.pi * done)) / 2


def by_feedback(rate: float, batch: int, **settings: float) -> Way:
    """Return learned feedback with Adam."""

    def make(net: nn.Module, steps: int, seed: int) -> Callable[[Tensor, Tensor, float], None]:
        estimate = LearnedFeedback(net, seed=seed, **settings)
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)

        def step(inputs: Tensor, targets: Tensor, done: float) -> None:
            optimizer.param_groups[0]["lr"] = rate_at(rate, done)
            optimizer.zero_grad()
            estimate(inputs, targets)
            optimizer.step()

        return step

    return Way(2, make, batch)


def by_rule(rule: SPSA | Evolution, passes: int, batch: int = BATCH) -> Way:
    """Return a rule of the library, attached to the net."""

    def make(net: nn.Module, steps: int, seed: int) -> Callable[[Tensor, Tensor, float], None]:
        attached = attach(net, rule, seed=seed)
        rate = None if rule.learning_rate is None else rule.learning_rate

        def step(inputs: Tensor, targets: Tensor, done: float) -> None:
            if rate is not None:
                attached.optimizer.param_groups[0]["lr"] = rate_at(rate, done)
            attached(inputs, targets)

        return step

    return Way(passes, make, batch)


def straight_through(rate: float, batch: int) -> Way:
    """Return Adam with straight-through gradients: a forward and a backward pass, counted as one pass."""

    def make(net: nn.Module, steps: int, seed: int) -> Callable[[Tensor, Tensor, float], None]:
        for part in net.modules():
            if hasattr(part, "straight"):
                part.straight = True
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)

        def step(inputs: Tensor, targets: Tensor, done: float) -> None:
            optimizer.param_groups[0]["lr"] = rate_at(rate, done)
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), targets).backward()
            optimizer.step()

        return step

    return Way(1, make, batch)


def by_cma(spread: float, population: int, batch: int) -> Way:
    """Return separable CMA-ES over all weights (`pip install cma`)."""

    def make(net: nn.Module, steps: int, seed: int) -> Callable[[Tensor, Tensor, float], None]:
        import cma

        start = nn.utils.parameters_to_vector(net.parameters()).detach().double().numpy()
        options = {"CMA_diagonal": True, "seed": seed + 1, "popsize": population, "verbose": -9}
        search = cma.CMAEvolutionStrategy(start, spread, options)

        def load(values) -> None:
            nn.utils.vector_to_parameters(torch.as_tensor(values, dtype=torch.float32), net.parameters())

        @torch.no_grad()
        def step(inputs: Tensor, targets: Tensor, done: float) -> None:
            tried, losses = search.ask(), []
            for values in tried:
                load(values)
                losses.append(float(F.cross_entropy(net(inputs), targets)))
            search.tell(tried, losses)
            load(search.mean)

        return step

    return Way(population, make, batch)


WAYS = {
    "learned feedback": by_feedback(4e-3, 128),
    "spsa": by_rule(SPSA(eps=0.01), 36, 64),
    "evolution": by_rule(
        Evolution(noise_kind="full-rank", per="group", eps=0.03, population=32, learning_rate=0.01), 32, 64
    ),
    "cma": by_cma(0.03, 32, 64),
    "straight-through Adam": straight_through(4e-3, 128),
}
# A net that fires at 15 time steps takes smaller steps, or units of its last layer fall silent for good.
SPIKING = {"learned feedback": by_feedback(1e-3, 64), "straight-through Adam": straight_through(1e-3, 64)}


@dataclass(frozen=True)
class Row:
    """What one run came to: accuracies in percent, passes, steps, processor seconds."""

    net: str
    way: str
    seed: int
    validation: float
    test: float | None
    passes: int
    steps: int
    seconds: float


def splits() -> dict[str, tuple[Tensor, Tensor]]:
    """Return standardised pixels and labels of train, validation (5,000 of the training images) and test."""
    images = data.load("mnist", validation=5000 / 60000)
    found = {}
    for name in ("train", "validation", "test"):
        split = getattr(images, name)
        pixels = split.images.view(len(split.images), -1).float() / 255
        found[name] = (pixels - 0.1307) / 0.3081, split.labels.long()
    return found


def batches(rows: int, size: int, noise: Noise) -> Iterator[Tensor]:
    """Yield the numbers of the examples of each step, in another order in every epoch."""
    for epoch in itertools.count():
        yield from noise.at(epoch).permutation(rows)[: rows - rows % size].view(-1, size)


@torch.no_grad()
def accuracy(net: nn.Module, split: tuple[Tensor, Tensor]) -> float:
    """Return the accuracy in percent."""
    right = [
        net(inputs).argmax(dim=1) == targets for inputs, targets in zip(*(p.split(1000) for p in split), strict=True)
    ]
    return 100 * float(torch.cat(right).float().mean())


def run(name: str, way: str, seed: int, sets: dict[str, tuple[Tensor, Tensor]], passes: int, test: bool) -> Row:
    """Return one row."""
    with Noise(seed).stream("weights").torch_seeded():
        net = NETS[name]()
    chosen_way, begun = (SPIKING if name == "spiking" else WAYS).get(way, WAYS[way]), time.process_time()
    steps = max(1, passes // (chosen_way.passes * chosen_way.batch))
    step = chosen_way.make(net, steps, seed)
    inputs, targets = sets["train"]
    order = batches(len(inputs), chosen_way.batch, Noise(seed).stream("order"))
    for number in range(steps):
        rows = next(order)
        step(inputs[rows], targets[rows], number / steps)
    seconds = time.process_time() - begun
    net.eval()
    taken = steps * chosen_way.passes * chosen_way.batch
    final = accuracy(net, sets["test"]) if test else None
    return Row(name, way, seed, accuracy(net, sets["validation"]), final, taken, steps, seconds)


def rows_of(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return kept_as(Row, path)


def budget(row: Row) -> float:
    """Return the passes of a row in millions, to a hundredth."""
    return round(row.passes / 1e6, 2)


def table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table: test accuracy, mean and standard deviation over seeds, or that of one seed."""
    yield "| way | passes | " + " | ".join(NETS) + " |"
    yield "|---" * (2 + len(NETS)) + "|"
    yield "| published | about 30 M | " + " | ".join(str(PUBLISHED[name]) for name in NETS) + " |"
    for passes in sorted({budget(row) for row in rows}, reverse=True):
        for way in WAYS:
            cells = []
            for name in NETS:
                same = [row for row in rows if (row.net, row.way, budget(row)) == (name, way, passes)]
                found = [row.test for row in same if row.test is not None]
                spread = f" ({statistics.stdev(found):.1f})" if len(found) > 1 else ""
                cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "-")
            if any(cell != "-" for cell in cells):
                yield f"| {way} | {passes} M | " + " | ".join(cells) + " |"


def main() -> None:
    """Run rows that are missing, or print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--passes", type=a_count, default=PASSES)
    parser.add_argument("--no-test", action="store_true", help="leave the test split unread, while something is chosen")
    given = parser.parse_args()
    if given.command == "table":
        print("\n".join(table(rows_of(given.file))))
        return
    sets = splits()
    for seed, name, way in itertools.product(
        map(int, given.seeds.split(",")), given.nets.split(","), given.ways.split(",")
    ):
        done = [(row.net, row.way, row.seed, budget(row)) for row in rows_of(given.file)]
        if (name, way, seed, round(given.passes / 1e6, 2)) not in done:
            keep_row(given.file, asdict(run(name, way, seed, sets, given.passes, not given.no_test)))


if __name__ == "__main__":
    main()
