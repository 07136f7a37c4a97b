"""Time one training step of NoProp-DT, all ten blocks at batch 128, against the plain float32 loop, in one process.

    python benchmarks/noprop_step.py [--data mnist] [--repeats 5] [--steps 5]

The plain loop is first timed as it runs alone; then the two alternate, so that drift of the machine hits both, with
freed memory kept for both, which the fast path does and the plain loop gains from. Prints medians and spread.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sidestep import Options, rules
from sidestep.data import DataSet, Split, load
from sidestep.measure import keep_freed_memory
from sidestep.noise import Noise
from sidestep.rules import Task
from sidestep.training.loop import Loop
from sidestep.training.options import Compute
from sidestep.training.state import State
from tests.reference.noprop_plain import PlainNoProp

SHAPES = {"mnist": (1, 28), "cifar10": (3, 32), "digits": (1, 8)}


def made_up(name: str) -> DataSet:
    """Return random images in the shape of the named set: a step costs the same on them."""
    channels, size = SHAPES[name]
    noise = Noise(0)
    images = noise.integers(1280 * channels * size * size, 256).to(torch.uint8).view(1280, channels, size, size)
    split = Split(images, noise.stream("labels").integers(1280, 10))
    return DataSet(name, split, split, tuple("0123456789"), (0.5,) * channels, (0.3,) * channels)


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", choices=SHAPES)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    data = load(given.data, data_dir=given.data_dir) if given.data_dir else made_up(given.data)
    rule, options, compute = rules.NoPropDT(), Options(), Compute.find("cpu", given.precision)
    task = Task(data.image_shape, tuple(data.class_names), tuple(data.mean), tuple(data.std))
    net = rule.build(task, Noise(0).stream("build"), None, None)
    loop, state = Loop(rule, data, options, compute, None), State(net, rule.optimizer(net))
    plain = PlainNoProp(data.image_shape[0], data.image_shape[1], data.classes)
    batches = [loop.batch(step) for step in range(given.steps)]

    def fast_seconds() -> float:
        begun = time.perf_counter()
        for _ in range(given.steps):
            loop.take_step(state)
        return (time.perf_counter() - begun) / given.steps

    def plain_seconds() -> float:
        begun = time.perf_counter()
        for batch in batches:
            plain.step(batch.images.contiguous(), batch.labels)
        return (time.perf_counter() - begun) / given.steps

    plain_seconds()
    before = [plain_seconds() for _ in range(given.repeats)]  # as it runs without us
    keep_freed_memory()
    fast_seconds()
    pairs = [(plain_seconds(), fast_seconds()) for _ in range(given.repeats)]
    ratios = [p / f for p, f in pairs]
    kept, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"device: {torch.get_num_threads()} threads, {compute.precision}; {given.data} shapes, batch 128, 10 blocks")
    print(f"plain float32 loop: {statistics.median(before):.3f} s a step; with freed memory kept: {kept:.3f} s a step")
    print(f"sidestep: {fast:.3f} s a step")
    print(f"ratio to the plain loop as it runs alone: {statistics.median(before) / fast:.2f}x")
    print(f"ratio, alternating, with freed memory kept for both: {statistics.median(ratios):.2f}x "
          f"(from {min(ratios):.2f}x to {max(ratios):.2f}x, {given.repeats} pairs)")  # fmt: skip


if __name__ == "__main__":
    main()
