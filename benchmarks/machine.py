"""What the benchmarks share: made-up data, steps ready to be timed, and what the machine can do at most."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sidestep.data import DataSet, Split
from sidestep.measure import count_operations
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule
from sidestep.training import Options
from sidestep.training.begin import begin
from sidestep.training.loop import Loop
from sidestep.training.options import Compute
from sidestep.training.state import State

SHAPES = {"digits": (1, 8), "mnist": (1, 28), "cifar10": (3, 32)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def made_up(name: str, count: int = 1280) -> DataSet:
    """Return random images in the shape of the named set: a step costs the same on them."""
    channels, size = SHAPES[name]
    noise = Noise(0)
    images = noise.integers(count * channels * size * size, 256).to(torch.uint8).view(count, channels, size, size)
    split = Split(images, noise.stream("labels").integers(count, 10))
    return DataSet(name, split, split, tuple("0123456789"), (0.5,) * channels, (0.3,) * channels)


def ready(rule: Rule, data: DataSet, compute: Compute, **options: Any) -> tuple[Loop, State]:
    """Return a loop and its state, before the first step."""
    where: Any = {"device": str(compute.device), "precision": compute.precision}
    state, loop = begin(rule, data, Options(**where, **options))
    return loop, state


def finish(device: torch.device) -> None:
    """Wait for what a GPU has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], times: int = 1, device: torch.device | None = None) -> float:
    """Return how long one `run` takes, the mean of `times`, by the clock of `use_clock`."""
    device = device or torch.device("cpu")
    finish(device)
    started = _clock[-1]()
    for _ in range(times):
        run()
    finish(device)
    return (_clock[-1]() - started) / times


_clock = [time.perf_counter]


def use_clock(name: str, threads: int | None = None) -> None:
    """Time by the `wall`, or by this process's `cpu` seconds: on a busy machine with one thread these mean more."""
    if threads:
        torch.set_num_threads(threads)
    _clock.append(time.process_time if name == "cpu" else time.perf_counter)


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark the options of `use_clock`."""
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: seconds of this process")
    parser.add_argument("--threads", type=int, help="threads of torch; all by default")


def alternating(
    runs: Sequence[Callable[[], object]], repeats: int, times: int = 1, device: torch.device | None = None
) -> list[list[float]]:
    """Return the seconds of each run, in turn, so that drift of the machine hits all: one list per run."""
    for run in runs:
        run()
    rows = [[seconds_of(run, times, device) for run in runs] for _ in range(repeats)]
    return [list(column) for column in zip(*rows, strict=True)]


@dataclass(frozen=True)
class Ratio:
    """How many times longer one run takes than another: median of pairs, and their spread."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, slow: Sequence[float], fast: Sequence[float]) -> "Ratio":
        """From the seconds of pairs."""
        found = sorted(a / b for a, b in zip(slow, fast, strict=True))
        return cls(statistics.median(found), found[0], found[-1])

    def __str__(self) -> str:
        return f"{self.median:.2f}x (from {self.least:.2f}x to {self.most:.2f}x)"


@dataclass(frozen=True)
class Roof:
    """What the machine does at most, measured here and now: the best of a few tries."""

    flops: float  # floating-point operations a second in a large matrix product
    bandwidth: float  # bytes a second, read and written, of a large copy

    @classmethod
    def measure(
        cls, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", size: int = 2048, tries: int = 4
    ) -> "Roof":
        """Multiply two square matrices of `size`, and copy 32 times as many bytes as one has elements."""
        device = torch.device(device)
        left = Noise(0).uniform(size * size, device=device).view(size, size).to(dtype)
        source = torch.ones(8 * size * size, device=device)
        target = torch.empty_like(source)
        product = min(alternating([lambda: left @ left], tries, 1, device)[0])
        copy = min(alternating([lambda: target.copy_(source)], tries, 1, device)[0])
        return cls(2 * size**3 / product, 2 * source.numel() * 4 / copy)

    def seconds(self, flops: float = 0, moved: float = 0) -> float:
        """Return the least time for so many operations and so many bytes."""
        return max(flops / self.flops, moved / self.bandwidth)

    def __str__(self) -> str:
        return f"matrix products {self.flops / 1e9:,.0f} GFLOP/s, copies {self.bandwidth / 1e9:,.1f} GB/s"


def count_flops(loop: Loop, state: State) -> int:
    """Return the floating-point operations of one step's estimate, in matrix products and convolutions.

    They are counted as they reach the kernels, so not in a recorded or compiled pass: blocks run one by one meanwhile.
    """
    if hasattr(state.net, "set_execution"):
        state.net.set_execution("per block")
    try:
        with count_operations() as counted, loop.compute.autocast():
            loop.rule.estimate(state.net, loop.batch(0), loop.noise.stream("estimate"))
    finally:
        if hasattr(state.net, "set_execution"):
            state.net.set_execution("auto")
    return counted.count
