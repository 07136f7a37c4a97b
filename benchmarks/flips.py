"""Time a step of noise-step, and its choice of flips, against the choice by a mask and topk over all weights.

    python -m benchmarks.flips [--pairs 7] [--steps 10]

On one thread. A line for each size of layer and each preset: median of the pairs' ratios, and their spread.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ternary_step import made_up, ready
from sidestep.noise import Noise
from sidestep.rules.shared import flips

SHARE = 0.002  # of the weights, noise-step's own
PRESETS = (("noise-step-best-mnist", (1, 28)),)


def plain(momentum: Tensor, trits: Tensor, count: int) -> Tensor:
    """The choice by a mask and topk over all weights."""
    flat, weights = momentum.view(-1), trits.view(-1)
    if not count:
        return torch.empty(0, dtype=torch.int64)
    largest = flat.abs().masked_fill_(flat * weights > 0, 0).topk(min(count, flat.numel()))
    return largest.indices[largest.values > 0].sort().values


def seconds(work: Callable[[], object], times: int) -> float:
    """Processor seconds of one call."""
    begun = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begun) / times


def report(name: str, slow: Callable[[], object], fast: Callable[[], object], times: int, pairs: int) -> None:
    """Print milliseconds of both, and their ratio over alternating pairs."""
    found = [(seconds(slow, times), seconds(fast, times)) for _ in range(pairs + 1)][1:]
    ratios = sorted(one / other for one, other in found)
    medians = [1e3 * statistics.median(column) for column in zip(*found, strict=True)]
    print(f"{name:28} {medians[0]:8.3f} ms {medians[1]:8.3f} ms   {statistics.median(ratios):5.2f}   "
          f"{ratios[0]:.2f} to {ratios[-1]:.2f}")  # fmt: skip


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':28} {'plain':>11} {'ours':>11}   ratio   spread")
    for n in (20_000, 100_000, 400_000, 1_000_000):
        momentum, trits = Noise(1).normal(n), Noise(2).sparse_signs(n, 0.66)
        count = int(SHARE * n)
        assert torch.equal(plain(momentum, trits, count), flips._largest(momentum, trits, count))
        report(f"choice among {n:,}", lambda m=momentum, w=trits, c=count: plain(m, w, c),
               lambda m=momentum, w=trits, c=count: flips._largest(m, w, c), given.steps, given.pairs)  # fmt: skip
    for preset, shape in PRESETS:
        loop, state = ready(preset, made_up(*shape))

        def plain_step(loop: object = loop, state: object = state) -> None:
            with mock.patch.object(flips, "_largest", plain):
                loop.take_step(state)

        report(f"step of {preset}"[:28], plain_step, lambda a=loop, b=state: a.take_step(b), given.steps, given.pairs)


if __name__ == "__main__":
    main()
