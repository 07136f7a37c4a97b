"""Time the alignments of sparse probes on a 784-512-512-10 net against vmap(torch.func.jvp), in one process.

    python -m benchmarks.tangents [--probes 1024] [--repeats 3] [--threads 2]

All variants alternate, so that drift of the machine hits each of them; medians are printed. Then the peak memory for
growing numbers of probes, and for one probe at a time against inference: tensors only, counted to the byte.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sidestep.gradients.tangents.alignments import alignments
from sidestep.measure import has_bfloat16, keep_freed_memory, peak_allocation
from sidestep.nets.ternary.convert import ternarize
from sidestep.noise import Noise
from sidestep.probes import SparseProbes

BATCH, CHUNKS, DENSITIES = 1024, (1, 4, 16, 64), (16, 4, 1)


def plain_chunk(net: nn.Module, inputs: Tensor, labels: Tensor, probes: SparseProbes, size: int) -> Tensor:
    """Return alpha of the first `size` probes by vmap(jvp) with probes that are written out."""
    weights = {name: weight.float() for name, weight in net.named_parameters()}
    found = probes.entries(0, size)
    rows = torch.zeros(size, probes.weights)
    rows[found.probe, found.position] = found.sign.float()
    parts = rows.split([weight.numel() for weight in weights.values()], dim=1)
    tangents = {n: part.view(size, *w.shape) for part, (n, w) in zip(parts, weights.items(), strict=True)}

    def value(changed: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, changed, (inputs,)), labels)

    def along(tangent: dict[str, Tensor]) -> Tensor:
        return torch.func.jvp(value, (weights,), (tangent,))[1]

    with torch.no_grad():
        return torch.vmap(along)(tangents)


def seconds(run: Callable[[], object]) -> float:
    """Return how long `run` takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def print_speed(net: nn.Module, inputs: Tensor, labels: Tensor, weights: int, given: argparse.Namespace) -> None:
    """Print probes per second of every variant, and ratios to the best chunk of the plain one."""
    variants: dict[str, tuple[int, Callable[[], object]]] = {}
    for size in CHUNKS:
        probes = SparseProbes(Noise(1), weights, size, 16 / weights)
        variants[f"vmap(jvp), float32, {size} at a time"] = (
            size,
            lambda probes=probes: plain_chunk(net, inputs, labels, probes, probes.count),
        )

    def fast(probes: SparseProbes, half: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            alignments(net, inputs, labels, probes)

    for non_zeros in DENSITIES:
        for half in (False, True) if has_bfloat16() else (False,):
            probes = SparseProbes(Noise(1), weights, given.probes, non_zeros / weights)
            name = f"sidestep, {'bfloat16' if half else 'float32'}, density {non_zeros}/d"
            variants[name] = given.probes, lambda probes=probes, half=half: fast(probes, half)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(given.repeats + 1):
        for name, (count, run) in variants.items():
            taken = seconds(run) / count
            if turn:  # the first turn warms up
                times[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    best = min(taken for name, taken in medians.items() if name.startswith("vmap"))
    for name, taken in medians.items():
        low, high = min(times[name]), max(times[name])
        print(f"{name:40} {1 / taken:9,.0f} probes/s (from {1 / high:,.0f} to {1 / low:,.0f}) {best / taken:7.1f}x")


def print_memory(net: nn.Module, inputs: Tensor, labels: Tensor, weights: int) -> None:
    """Print the peak of tensors for growing numbers of probes, and for one at a time."""
    for count in (16, 64, 256, 1024, 4096):
        with peak_allocation() as peak:
            alignments(net, inputs, labels, SparseProbes(Noise(1), weights, count, 16 / weights))
        print(f"peak memory of {count:4} probes: {peak.bytes / 2**20:.1f} MiB")
    with torch.no_grad(), peak_allocation() as inference:
        F.cross_entropy(net(inputs), labels)
    with peak_allocation() as peak:
        alignments(net, inputs, labels, SparseProbes(Noise(1), weights, 4, 16 / weights), memory=1 << 20)
    print(f"one at a time: {peak.bytes / 2**20:.1f} MiB; inference: {inference.bytes / 2**20:.1f} MiB; "
          f"ratio {peak.bytes / inference.bytes:.2f}")  # fmt: skip


def print_agreement(net: nn.Module, inputs: Tensor, labels: Tensor, weights: int) -> None:
    """Print how float32 and bfloat16 agree with float64."""
    probes = SparseProbes(Noise(2), weights, 512, 16 / weights)
    exact, _ = alignments(net, inputs.double(), labels, probes)
    large = exact.abs() > exact.abs().median()
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            alpha, _ = alignments(net, inputs, labels, probes)
        error = ((alpha - exact).norm() / exact.norm()).item()
        agree = (alpha.sign() == exact.sign())[large].double().mean().item()
        print(f"{'bfloat16' if half else 'float32'} against float64: relative error {error:.1e}, "
              f"equal signs above the median {agree:.2%}")  # fmt: skip


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    parts = [nn.Linear(784, 512), nn.LayerNorm(512), nn.ReLU(), nn.Linear(512, 512), nn.LayerNorm(512), nn.ReLU()]
    net = ternarize(nn.Sequential(*parts, nn.Linear(512, 10)), Noise(0))
    weights = sum(weight.numel() for weight in net.parameters())
    inputs = Noise(3).uniform(BATCH * 784).view(BATCH, 784).sub_(0.3)
    labels = Noise(4).integers(BATCH, 10)
    print(f"784-512-512-10 with layer norm, {weights:,} weights, batch {BATCH}, {torch.get_num_threads()} threads")
    print_speed(net, inputs, labels, weights, given)
    print_memory(net, inputs, labels, weights)
    print_agreement(net, inputs, labels, weights)


if __name__ == "__main__":
    main()
