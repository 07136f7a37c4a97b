"""Time the ways to compute NoProp-DT's blocks against one another: one block per core, together, compiled.

    python -m benchmarks.engines [--data digits mnist cifar10] [--blocks 4 10] [--repeats 5] [--compiled] [--device cpu]

All ways take turns in one process, on made-up images, whole training steps at batch 128. Prints a Markdown table: the
median of each, and the ratio to `per block`, the median of pairs with its spread. `in turn` is one block after another
with all threads inside its layers. Compiling takes minutes on a slow machine, so it is timed only on request.
"""

import argparse
import statistics

import torch

from benchmarks.machine import SHAPES, Ratio, add_clock, alternating, made_up, ready, use_clock
from sidestep.measure import keep_freed_memory
from sidestep.rules import NoPropDT
from sidestep.training.options import Compute


def table_rows(data: str, blocks: int, given: argparse.Namespace) -> list[str]:
    """Return the rows of one shape and number of blocks."""
    compute = Compute.find(given.device, given.precision)
    loop, state = ready(NoPropDT(blocks=blocks), made_up(data, 10 * given.batch), compute, batch=given.batch)
    ways = ["per block", "together"]
    if compute.device.type != "cpu":
        ways += ["graph"]
    elif torch.get_num_threads() > 1:
        ways += ["in turn"]
    ways += ["compiled"] if given.compiled else []

    def step(way: str) -> None:
        state.net.together = way != "in turn"
        state.net.set_execution("per block" if way == "in turn" else way)
        loop.take_step(state)

    for way in ways:
        step(way)
    columns = alternating([lambda way=way: step(way) for way in ways], given.repeats, given.steps, compute.device)
    return [
        f"| {data} | {blocks} | {way} | {1000 * statistics.median(column):.1f} | {Ratio.of(column, columns[0])} |"
        for way, column in zip(ways, columns, strict=True)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Parse the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--blocks", nargs="+", type=int, default=[4, 10])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="also by torch.compile")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    add_clock(parser)
    given = parser.parse_args(arguments)
    use_clock(given.clock, given.threads)
    keep_freed_memory()
    precision = Compute.find(given.device, given.precision).precision
    print(f"{given.device}, {torch.get_num_threads()} threads, {given.clock} clock, batch {given.batch}, "
          f"{given.repeats} rounds of {given.steps} steps, {precision}")  # fmt: skip
    print("| shapes | blocks | way | ms a step | time over per block |\n|---|---|---|---|---|")
    for data in given.data:
        for blocks in given.blocks:
            print("\n".join(table_rows(data, blocks, given)), flush=True)


if __name__ == "__main__":
    main()
