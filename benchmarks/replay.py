"""Time replaying sparse probes into a large ternary net against drawing the same probes densely, in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.replay [--weights 10000000] [--probes 1024] [--steps 30] [--dense 3]

A replayed step touches the non-zeros of its probes alone; a dense one draws every element of every probe, adds up, and
clamps. The dense side is timed on a slice: `--dense` probes of a step's, the rest extrapolated. Prints rates, their
ratio, and what follows for whole runs.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sidestep.nets.ternary.layers import TernaryLinear, packed_size
from sidestep.noise import Noise
from sidestep.probes import SparseProbes
from sidestep.steplog import Header, LogReader, LogWriter
from sidestep.update import Seeded


def layers(weights: int) -> nn.Module:
    """Return ten square layers that sum to about `weights`."""
    side = round((weights / 10) ** 0.5)
    return nn.Sequential(*(TernaryLinear(side, side) for _ in range(10)))


def apply(net: nn.Module, update: Seeded) -> None:
    """Subtract the clamped sum of the probes from the weights."""
    position, value = update.probes.weighted_sum(update.coefs)
    change = value.clamp_(-1, 1).to(torch.int8)
    at = 0
    for parameter in net.parameters():
        first, last = torch.searchsorted(position, torch.tensor([at, at + parameter.numel()])).tolist()
        flat, inside = parameter.data.view(-1), position[first:last] - at
        flat[inside] = (flat[inside] - change[first:last]).clamp_(-1, 1)
        at += parameter.numel()


def dense(total: torch.Tensor, flat: torch.Tensor, update: Seeded, probes: int) -> None:
    """Draw `probes` probes over all weights, element by element; add up, clamp, subtract."""
    total.zero_()
    for index in range(probes):
        nu = update.probes.noise.stream("dense").sub(index).sparse_signs(len(flat), update.probes.density)
        total.add_(nu, alpha=int(update.coefs[index]) or 1)
    flat.sub_(total.clamp_(-1, 1)).clamp_(-1, 1)


def log_of(path: Path, net: nn.Module, density: float, probes: int, steps: int) -> int:
    """Write a log of sign-and-median trits; return its bytes without the header."""
    weights = sum(parameter.numel() for parameter in net.parameters())
    table = tuple((name, "int8", tuple(parameter.shape)) for name, parameter in net.named_parameters())
    header = Header({"name": "benchmark"}, {}, "nothing", 0, table, (), "")
    log = LogWriter.create(path, header)
    for step in range(steps):
        noise = Noise(0).stream("probes").at(step)
        trits = torch.where(noise.stream("order").permutation(probes) < probes // 2, noise.stream("s").signs(probes), 0)
        log.append(Seeded(trits, SparseProbes(noise, weights, probes, density)))
    size, _ = log.commit()
    log.close()
    return size - len(header.to_bytes())


def measure(given: argparse.Namespace, share: int, net: nn.Module, path: Path) -> tuple[float, float, float]:
    """Return seconds a step of replay, its spread, and seconds a step of dense noise, for density share / d."""
    weights = sum(parameter.numel() for parameter in net.parameters())
    size = log_of(path, net, share / weights, given.probes, given.steps)
    bits = 8 * size / given.steps / given.probes
    times, flat, total = [], torch.zeros(weights, dtype=torch.int8), torch.zeros(weights, dtype=torch.int16)
    started = time.perf_counter()
    for _, update in LogReader(path).records():  # decoding is part of a replay
        apply(net, update)
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
    started = time.perf_counter()
    dense(total, flat, update, given.dense)
    slow = (time.perf_counter() - started) / given.dense * given.probes
    fast = statistics.fmean(times)
    print(f"density {share}/d: replay {1e3 * fast:.2f} ms a step (median {1e3 * statistics.median(times):.2f}, "
          f"{given.probes / fast:,.0f} probes/s, {given.probes * share / fast:,.0f} non-zeros/s); dense noise "
          f"{slow:,.1f} s a step ({given.probes / slow:,.1f} probes/s, {given.probes * weights / slow:,.0f} a second); "
          f"ratio {slow / fast:,.0f}; log {bits:.3f} bits a probe")  # fmt: skip
    return fast, bits, slow


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=10_000_000)
    parser.add_argument("--probes", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--dense", type=int, default=3)
    given = parser.parse_args()
    net = layers(given.weights)
    weights = sum(parameter.numel() for parameter in net.parameters())
    print(f"{weights:,} weights, packed {packed_size(net):,} bytes; {given.probes} probes a step, {given.steps} steps, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for share in (1, 16):
            fast, bits, slow = measure(given, share, net, Path(folder) / "log")
            size = bits * given.probes * 10_000 / 8
            print(f"  10,000 steps: replay {10_000 * fast:,.0f} s, dense {10_000 * slow / 86_400:,.0f} days, "
                  f"log {size / 1e6:.2f} MB beside {packed_size(net) / 1e6:.1f} MB of packed weights")  # fmt: skip
            print(f"  175 B weights, 93,750 steps (cost is that of the non-zeros): replay {93_750 * fast / 60:,.0f} "
                  f"min, dense {93_750 * slow * 175e9 / weights / 31_557_600:,.0f} years; log "
                  f"{bits * given.probes * 93_750 / 8e6:.1f} MB beside {175e9 * 1.6 / 8e9:.0f} GB")  # fmt: skip


if __name__ == "__main__":
    main()
