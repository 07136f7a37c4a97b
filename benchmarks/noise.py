"""Time words and signs of the counter-based noise, by each of the engines that give the same bits, in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.noise [--pairs 5]

For each count: microseconds by torch's operations and by what `Noise` takes, and the median ratio of alternating
pairs with its spread.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sidestep import philox
from sidestep.noise import Noise

COUNTS = (4, 64, 256, 1024, 4096, 16_384, 65_536, 131_072, 1 << 20)
POINT = Noise(3).stream("benchmark").at(7)


def words_by_torch(n: int) -> Tensor:
    """The words of a point by torch's operations alone."""
    counters = (POINT.substream, POINT.step, POINT.stream_id)
    return philox._by_torch(0, (n + 3) // 4, counters, POINT.seed, torch.device("cpu")).view(-1)[:n]


def signs_by_torch(n: int) -> Tensor:
    """The signs of a point: each bit shifted down by torch's operations."""
    octets = words_by_torch((n + 31) // 32)[:, None] >> torch.arange(0, 32, 8)
    bits = octets.bitwise_and_(255).to(torch.uint8).view(-1, 1) >> torch.arange(8, dtype=torch.uint8)
    return bits.bitwise_and_(1).view(torch.int8).mul_(2).sub_(1).view(-1)[:n]


def seconds(draw: Callable[[int], Tensor], n: int) -> float:
    """Processor seconds of one draw, over at least 20 ms."""
    draws, started = 0, time.process_time()
    while time.process_time() - started < 0.02:
        draw(n)
        draws += 1
    return (time.process_time() - started) / draws


def main() -> None:
    """Print one line for each kind and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    print(f"{'':6} {'count':>8} {'torch':>10} {'ours':>10} {'ratio':>6}   spread")
    for kind, plain, ours in (("words", words_by_torch, POINT.words), ("signs", signs_by_torch, POINT.signs)):
        for n in COUNTS:
            assert torch.equal(plain(n), ours(n))
            times = [(seconds(plain, n), seconds(ours, n)) for _ in range(pairs)]
            ratios = sorted(slow / fast for slow, fast in times)
            slow, fast = (1e6 * statistics.median(column) for column in zip(*times, strict=True))
            print(f"{kind:6} {n:8,} {slow:8.1f}us {fast:8.1f}us {statistics.median(ratios):6.2f}   "
                  f"{ratios[0]:.2f} to {ratios[-1]:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
