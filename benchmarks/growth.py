"""How the cost of a step grows with blocks, probes, weights, batch, classes and depth, held to what theory says.

    python -m benchmarks.growth [--only NAME ...] [--out growth.json] [--plot growth.png]

One step of the loop of `train`, float32, one thread, on made-up images. For each axis and size: floating point
operations of products, elements that all operations wrote (sums, noise, activations and what optimisers do), the most
bytes that tensors took over net, optimiser and data, and processor seconds (the median of some steps). Numpy's share of
the noise is in the seconds alone. Between the two largest sizes

    exponent = log(cost of the one / cost of the other) / log(the one size / the other)

is 0 for a flat cost, 1 for a linear one, 2 for a quadratic slip. The first three are counts: the same on every machine,
and a test holds them to the table below. Seconds are printed beside them.
"""

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sidestep import data
from sidestep.measure import count_operations, peak_allocation
from sidestep.noise import Noise
from sidestep.notices import DataNotice
from sidestep.rules import SPSA, Backprop, LocalLoss, NoiseStep, NoPropDT
from sidestep.rules.protocol import Rule
from sidestep.training import Options
from sidestep.training.begin import begin

__all__ = ["AXES", "Axis", "Cost", "Step", "exponent", "grown"]


@dataclass(frozen=True)
class Step:
    """What one step is measured on."""

    rule: Rule[Any]
    batch: int = 64
    classes: int = 10
    side: int = 8  # of an image, pixels


@dataclass(frozen=True)
class Axis:
    """One way in which a step grows, and the exponents that theory gives for its costs.

    Args:
        step: makes the step of a size.
        sizes: from small to large.
        operations, elements, memory: exponents from what to what.
        why: in a few words.
    """

    step: Callable[[int], Step]
    sizes: Sequence[int]
    operations: tuple[float, float]
    elements: tuple[float, float]
    memory: tuple[float, float]
    why: str


LINEAR, FLAT, UP_TO_LINEAR = (0.9, 1.1), (-0.1, 0.15), (-0.1, 1.1)
POWERS = (4, 16, 64, 128, 256)

AXES: Mapping[str, Axis] = {
    "noprop-dt, blocks": Axis(
        lambda size: Step(NoPropDT(blocks=size)), (2, 4, 8), LINEAR, LINEAR, UP_TO_LINEAR, "blocks are independent"
    ),
    "noprop-dt, classes": Axis(
        lambda size: Step(NoPropDT(blocks=2), classes=size),
        (10, 100, 1000),
        UP_TO_LINEAR,
        UP_TO_LINEAR,
        UP_TO_LINEAR,
        "the embedding's width is the number of classes",
    ),
    "noprop-dt, batch": Axis(
        lambda size: Step(NoPropDT(blocks=2), batch=size),
        (32, 128, 512),
        LINEAR,
        UP_TO_LINEAR,
        UP_TO_LINEAR,
        "weights do not grow",
    ),
    "spsa, directions": Axis(
        lambda size: Step(SPSA(hidden=(1024,), pairs=size, learning_rate=1e-3)),
        (64, 96, 128),
        LINEAR,
        LINEAR,
        FLAT,
        "one pass for each direction; a net beyond 4 M signs draws them one by one",
    ),
    "spsa, weights": Axis(
        lambda size: Step(SPSA(hidden=(size,), pairs=2, learning_rate=1e-3)),
        (1024, 4096, 16384),
        LINEAR,
        LINEAR,
        LINEAR,
        "a direction is as large as the weights",
    ),
    "noise-step, probes": Axis(
        lambda size: Step(NoiseStep(hidden=(64,), estimator="weight-probes", schedule="constant", probes=size)),
        POWERS,
        UP_TO_LINEAR,
        UP_TO_LINEAR,
        UP_TO_LINEAR,
        "probes share the passes of their columns",
    ),
    "noise-step, directions of local probes": Axis(
        lambda size: Step(NoiseStep(hidden=(256, 256), estimator="local-probes", directions=size)),
        (4, 16, 64, 128),
        FLAT,
        FLAT,
        FLAT,
        "disjoint directions share one pass of a stage's tail",
    ),
    "local-loss, depth": Axis(
        lambda size: Step(LocalLoss(hidden=(128,) * size)),
        (2, 8, 32),
        LINEAR,
        LINEAR,
        UP_TO_LINEAR,
        "a stage's activations go before the next one's come; gradients stay",
    ),
    "local-loss, batch": Axis(
        lambda size: Step(LocalLoss(hidden=(128, 128)), batch=size),
        (32, 128, 512, 2048),
        LINEAR,
        UP_TO_LINEAR,
        UP_TO_LINEAR,
        "weights do not grow",
    ),
    "backprop, depth": Axis(
        lambda size: Step(Backprop(net="mlp", hidden=(128,) * size)),
        (2, 8, 32),
        LINEAR,
        LINEAR,
        LINEAR,
        "all activations are kept",
    ),
}


@dataclass(frozen=True)
class Cost:
    """What one step took."""

    operations: int
    elements: int
    memory: int
    seconds: float


def taken(step: Step, steps: int = 3) -> Cost:
    """Measure a step, after one that warms up; `steps` more are timed, or none."""
    rows = step.batch
    pixels = Noise(1).stream("pixels").integers(rows * step.side**2, 256).to(torch.uint8)
    labels = torch.arange(rows) % step.classes
    names = [str(each) for each in range(step.classes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNotice)  # 1,000 classes on 64 images
        made = data.from_arrays(pixels.view(rows, step.side, step.side), labels, class_names=names, validation=0.0)
    options = Options(epochs=1000, batch=rows, device="cpu", precision="float32")
    state, loop = begin(step.rule, made, options)
    loop.take_step(state)
    with peak_allocation() as peak:
        loop.take_step(state)
    with count_operations() as operations:
        loop.take_step(state)
    with _written() as elements:
        loop.take_step(state)
    seconds = []
    for _ in range(steps):
        started = time.process_time()
        loop.take_step(state)
        seconds.append(time.process_time() - started)
    return Cost(operations.count, elements[0], peak.bytes, statistics.median(seconds) if seconds else 0.0)


def grown(axis: Axis, sizes: Sequence[int], steps: int = 3) -> list[Cost]:
    """Return the cost of each size."""
    return [taken(axis.step(size), steps) for size in sizes]


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Return the exponent between the two largest sizes, where constant parts weigh least."""
    return math.log(costs[-1] / costs[-2]) / math.log(sizes[-1] / sizes[-2])


class _Written(TorchDispatchMode):
    def __init__(self, found: list[int]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            self._found[0] += sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
        return made


@contextmanager
def _written() -> Iterator[list[int]]:
    found, threads = [0], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _Written(found):
            yield found
    finally:
        torch.set_num_threads(threads)


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw each axis: costs over sizes, both in logarithms, each cost as a multiple of the smallest size's."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(results) / 2)
    figure = Figure(figsize=(10, 3 * rows), layout="constrained")
    for place, (name, found) in enumerate(results.items(), start=1):
        part = figure.add_subplot(rows, 2, place)
        for what in ("operations", "elements", "memory", "seconds"):
            part.loglog(found["sizes"], [each / found[what][0] for each in found[what]], marker="o", label=what)
        part.set_title(name)
        part.set_ylabel("times the smallest")
        part.legend()
    figure.savefig(path)


def main() -> None:
    """Print a table of exponents, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(AXES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    print("| what grows | from, to | operations | elements | memory | seconds | why |\n|---|---|---|---|---|---|---|")
    for name in given.only or AXES:
        axis = AXES[name]
        costs = grown(axis, axis.sizes)
        found = {
            what: [getattr(cost, what) for cost in costs] for what in ("operations", "elements", "memory", "seconds")
        }
        results[name] = {"sizes": list(axis.sizes), **found}
        shown = " | ".join(f"{exponent(axis.sizes, values):.2f}" for values in found.values())
        print(f"| {name} | {axis.sizes[0]:,}, {axis.sizes[-1]:,} | {shown} | {axis.why} |", flush=True)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if given.plot:
        plot(results, given.plot)


if __name__ == "__main__":
    main()
