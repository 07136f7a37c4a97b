"""Time a training step of NoProp-DT against the plain float32 loop, against backprop, and against the machine.

    python -m benchmarks.noprop_step [--data cifar10] [--blocks 10] [--batch 128] [--repeats 5] [--steps 2]

The plain loop is first timed as it runs alone. Then it, NoProp and backprop through the same chained blocks take turns,
so that drift of the machine hits all, with freed memory kept for all. Prints medians and spread, and which share of the
machine's own rate of matrix products, in the precision used, the whole step reaches: its operations are counted by
torch's FlopCounterMode (products and convolutions, forward and back; nothing else counts).
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import (
    DTYPES,
    SHAPES,
    Ratio,
    Roof,
    add_clock,
    alternating,
    count_flops,
    made_up,
    ready,
    use_clock,
)
from sidestep.data import load
from sidestep.measure import keep_freed_memory
from sidestep.rules import Backprop, NoPropDT
from sidestep.training.options import Compute
from tests.reference.noprop_plain import PlainNoProp


def main(arguments: list[str] | None = None) -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", choices=SHAPES)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", default="auto", choices=("auto", *DTYPES))
    parser.add_argument("--matrix", type=int, default=2048, help="side of the matrices whose product is timed")
    add_clock(parser)
    given = parser.parse_args(arguments)
    use_clock(given.clock, given.threads)
    data = load(given.data, data_dir=given.data_dir) if given.data_dir else made_up(given.data, 10 * given.batch)
    compute, blocks = Compute.find("cpu", given.precision), given.blocks
    loop, state = ready(NoPropDT(blocks=blocks), data, compute, batch=given.batch)
    chain, chain_state = ready(Backprop(blocks=blocks), data, compute, batch=given.batch)
    plain = PlainNoProp(data.image_shape[0], data.image_shape[1], data.classes, blocks)
    batches = [loop.batch(step) for step in range(given.steps)]
    images = [batch.inputs.contiguous() for batch in batches]

    def plain_steps() -> None:
        for batch, pixels in zip(batches, images, strict=True):
            plain.step(pixels, batch.targets)

    def steps(one, its_state) -> None:
        for _ in range(given.steps):
            one.take_step(its_state)

    roof = Roof.measure(DTYPES[compute.precision], size=given.matrix)
    (before,) = alternating([plain_steps], given.repeats)  # as it runs without us
    keep_freed_memory()
    runs = [plain_steps, lambda: steps(loop, state), lambda: steps(chain, chain_state)]
    kept, fast, backprop = alternating(runs, given.repeats)
    after = Roof.measure(DTYPES[compute.precision], size=given.matrix)
    roof = Roof(max(roof.flops, after.flops), max(roof.bandwidth, after.bandwidth))
    flops, chain_flops = count_flops(loop, state), count_flops(chain, chain_state)
    step = [statistics.median(column) / given.steps for column in (before, kept, fast, backprop)]
    print(f"device: {torch.get_num_threads()} threads, {given.clock} clock, {compute.precision}; {given.data} shapes, "
          f"batch {given.batch}, {blocks} blocks, {state.net.execution(compute.device)}")  # fmt: skip
    print(f"machine: {roof} ({compute.precision}, {given.matrix} x {given.matrix}; measured in this run)")
    print(f"plain float32 loop: {step[0]:.3f} s a step; with freed memory kept: {step[1]:.3f} s a step")
    print(f"sidestep: {step[2]:.3f} s a step; backprop through the same blocks: {step[3]:.3f} s a step")
    print(f"ratio to the plain loop as it runs alone: {step[0] / step[2]:.2f}x")
    print(f"ratio, alternating, with freed memory kept for both: {Ratio.of(kept, fast)}, {given.repeats} pairs")
    print(f"cost of a NoProp step over a backprop step: {Ratio.of(fast, backprop)}, {given.repeats} pairs")
    print(f"operations of a step: {flops / 1e9:,.1f} GFLOP (backprop {chain_flops / 1e9:,.1f}), by FlopCounterMode; "
          f"share of the machine's matrix rate: {flops / step[2] / roof.flops:.0%}, "
          f"backprop {chain_flops / step[3] / roof.flops:.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
