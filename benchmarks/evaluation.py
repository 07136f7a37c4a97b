"""Time what the end of a run evaluates by, and each engine beside the machine's own roof, in one process.

    python -m benchmarks.evaluation [--images 500] [--rounds 5] [--threads 1] [--out evaluation.json]

NoProp-DT and NoProp-CT, untrained, on made-up images in the shape of MNIST's, float32: the image paths, and predictions
by the first reading, by those that a run ends with, and by all. Beside them a training step of NoProp-DT and a step of
spsa on 784-512-512-10. Operations are those of matrix products and convolutions; the roof is the best rate of a large
matrix product, and of a copy, before the others and after them. Processor seconds on one thread, else the clock's.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import Roof, made_up, ready
from benchmarks.peer_steps import NETS, own_step
from benchmarks.small_steps import measured
from sidestep.measure import count_operations, keep_freed_memory
from sidestep.noise import Noise
from sidestep.rules import SPSA, NoPropCT, NoPropDT
from sidestep.rules.protocol import Rule, Task
from sidestep.training.options import Compute

Ways = dict[str, Callable[[], object]]


def evaluations(rule: Rule[Any], images: int) -> Ways:
    """Return what a rule's predictions of so many images are made of, by name."""
    data = made_up("mnist", images)
    task, noise = Task.of(data), Noise(0)
    net, inputs = rule.build(task, noise, None, None), task.prepare(data.train.images)
    net.eval()

    def paths() -> object:
        with torch.no_grad():
            return net.block.prepare(inputs) if isinstance(rule, NoPropCT) else net.image_features(inputs)

    names = {"first reading": rule.readings[:1], "readings at a run's end": rule.at_end, "all readings": rule.readings}
    found = {name: lambda of=of: rule.predict(net, inputs, noise, 0, of) for name, of in names.items()}
    return {f"{rule.name}, {name}": way for name, way in {"image paths": paths, **found}.items()}


def steps() -> Ways:
    """Return training steps, by name."""
    loop, state = ready(NoPropDT(), made_up("mnist"), Compute.find("cpu", "float32"), batch=128)
    return {
        "noprop-dt, a training step": lambda: loop.take_step(state),
        "spsa, a step, 784-512-512-10": own_step(SPSA(pairs=8, learning_rate=1e-3), NETS["784-512-512-10"]),
    }


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as train does
    ways = {**evaluations(NoPropDT(), given.images), **evaluations(NoPropCT(), given.images), **steps()}
    operations = {}
    for name, way in ways.items():
        with count_operations() as counted:
            way()
        operations[name] = counted.count
    roofs = [Roof.measure(size=1024)]
    taken = measured(ways, given.rounds, 1, "processor" if given.threads == 1 else "wall")
    roofs.append(Roof.measure(size=1024))
    rows = []
    for name, seconds in taken.items():
        rates = sorted(operations[name] / each / 1e9 for each in seconds)
        rows.append({"what": name, "seconds": statistics.median(seconds), "operations": operations[name],
                     "GFLOP/s": statistics.median(rates), "least": rates[0], "most": rates[-1]})  # fmt: skip
        print(f"{name:36} {rows[-1]['seconds']:7.3f} s  {operations[name] / 1e9:7.1f} G operations  "
              f"{rows[-1]['GFLOP/s']:6.1f} GFLOP/s ({rates[0]:.1f} to {rates[-1]:.1f})")  # fmt: skip
    print(*[f"{when}: {roof}" for when, roof in zip(("roof before", "after"), roofs, strict=True)], sep="\n")
    if given.out:
        record = {"threads": given.threads, "roofs": [vars(roof) for roof in roofs], "rows": rows}
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
