"""Time one training step of noise-step against one of Adam with straight-through ternary weights, in one process.

    python -m benchmarks.ternary_step [--repeats 9] [--steps 5] [--threads 1]

Both train the same net at the same batch, on made-up images, in turn, so that drift of the machine hits both. Prints
the median of the pairs' ratios and their spread.
"""

import argparse
import statistics
import time

import torch

from sidestep.data import DataSet, Split
from sidestep.noise import Noise
from sidestep.presets.catalogue import find_preset
from sidestep.rules import RULES, Task
from sidestep.training import Options
from sidestep.training.loop import Loop
from sidestep.training.options import Compute
from sidestep.training.state import State

PAIRS = (
    ("noise-step-best-mnist", "backprop-ternary-mnist", (1, 28)),
    ("noise-step-best-mnist-conv", "backprop-ternary-mnist-conv", (1, 28)),
    ("noise-step-best-cifar10", "backprop-ternary-cifar10", (3, 32)),
)


def made_up(channels: int, size: int) -> DataSet:
    """Return random images: a step costs the same on them."""
    noise = Noise(0)
    images = noise.integers(2000 * channels * size * size, 256).to(torch.uint8).view(2000, channels, size, size)
    split = Split(images, noise.stream("labels").integers(2000, 10))
    return DataSet("made-up", split, split, tuple("0123456789"), (0.5,) * channels, (0.3,) * channels)


def ready(name: str, data: DataSet) -> tuple[Loop, State]:
    """Return a preset's loop and state, before the first step."""
    preset = find_preset(name)
    rule, options = RULES[preset.rule](**preset.options), Options(**preset.train)
    net = rule.build(Task(data.image_shape, data.class_names, data.mean, data.std), Noise(0), data.train, None)
    return Loop(rule, data, options, Compute.find("cpu", "auto"), None), State(net, rule.optimizer(net))


def seconds(loop: Loop, state: State, steps: int) -> float:
    """Return the time of one step, the mean of `steps`."""
    started = time.perf_counter()
    for _ in range(steps):
        loop.take_step(state)
    return (time.perf_counter() - started) / steps


def main() -> None:
    """Parse the options and print a line for each net."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for ours, theirs, (channels, size) in PAIRS:
        data = made_up(channels, size)
        sides = [ready(name, data) for name in (ours, theirs)]
        for loop, state in sides:
            seconds(loop, state, 2)
        times = [[seconds(*side, given.steps) for side in sides] for _ in range(given.repeats)]
        ratios = sorted(mine / other for mine, other in times)
        middle = [statistics.median(column) * 1000 for column in zip(*times, strict=True)]
        print(
            f"{ours}: {middle[0]:.1f} ms a step; {theirs}: {middle[1]:.1f} ms; "
            f"ratio {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
