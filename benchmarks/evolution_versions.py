"""Time an evolution step of an earlier version of the package against today's, in alternating processes.

    git worktree add /tmp/before 8115caf
    OMP_NUM_THREADS=1 python -m benchmarks.evolution_versions /tmp/before [--rounds 7] [--out versions.json]

The rule's defaults on a batch of 128 digits: an MLP of 128-64, eight antithetic pairs of rank-1 noise for each example;
estimate, decide and apply, 120 steps after 20 that warm up. Processor seconds; ratios of the medians and of the fastest
steps, each of a pair of processes. The oldest commit with the rule is 8115caf.
"""

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS, WARM = 120, 20


def seconds() -> list[float]:
    """Return the processor seconds of each step, by whatever version is on the path."""
    import torch

    from sidestep import data
    from sidestep.noise import Noise
    from sidestep.rules import Evolution
    from sidestep.rules.protocol import Batch, Task

    torch.set_num_threads(1)
    digits, rule, noise = data.load("digits"), Evolution(), Noise(0)
    shapes = (digits.image_shape, tuple(digits.class_names), tuple(digits.mean), tuple(digits.std))
    task = Task.of(digits) if hasattr(Task, "of") else Task(*shapes, "uint8")
    images = data.standardise(digits.train.images[:128], digits.mean, digits.std)
    more = [task.objective] if "objective" in inspect.signature(Batch).parameters else []
    batch, net = Batch(images, digits.train.labels[:128], *more), rule.build(task, noise, None, None)
    optimizer, found = rule.optimizer(net), []
    for step in range(WARM + STEPS):
        started = time.process_time()
        update = rule.estimate(net, batch, noise.stream("estimate").at(step))
        given = (net, update, optimizer)[: len(inspect.signature(rule.decide).parameters)]
        rule.apply(net, rule.decide(*given), optimizer)
        found.append(time.process_time() - started)
    return found[WARM:]


def of_version(root: Path) -> list[float]:
    """Return what `seconds` gives in a process of the version that lies in a folder."""
    program = [sys.executable, "-c", Path(__file__).read_text(encoding="utf-8"), "--steps-of-this-version"]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run(program, cwd=root, env=environment, check=True, capture_output=True, text=True)
    return list(json.loads(done.stdout))


def main() -> None:
    """Print the ratios of all pairs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, help="folder of the earlier version")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file for the seconds of all steps")
    given = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    pairs = [(of_version(given.before.resolve()), of_version(here)) for _ in range(given.rounds)]
    for name, of in (("median", statistics.median), ("fastest", min)):
        before, now = ([1e3 * of(pair[place]) for pair in pairs] for place in (0, 1))
        ratios = sorted(one / other for one, other in zip(before, now, strict=True))
        print(f"{name:8} {statistics.median(before):6.2f} ms before, {statistics.median(now):6.2f} ms now: "
              f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps({"before, now": pairs}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--steps-of-this-version"]:
        print(json.dumps(seconds()))
    else:
        main()
