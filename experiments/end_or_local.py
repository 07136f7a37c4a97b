"""Directions on layer outputs against the end loss, or against a local loss in each stage: accuracy by depth and draws.

    python -m experiments.end_or_local [--depths 2 4 8] [--draws 1 4 16] [--seeds 0 1 2] [--epochs 15]

Digits (8 x 8), ternary MLPs of 128 units a layer, direct flips with the same share, momentum and cosine for all, none
tuned. `end` is noise-step's activity-probes: for each example `draws` tangents, each a random direction on the outputs
of all layers at once, and its derivative of the last head's loss. `local` is local-probes: for each example and stage
`draws` orthogonal directions on that stage's outputs, and a head and a loss in each. The last column has the exact
local gradient. Neither takes a reverse derivative, but for the last column. Validation accuracy is not used; test
accuracy is read once a run.
"""

import argparse
import json
import statistics
import time

import torch

from experiments.given import a_count, a_seed
from sidestep import data, train
from sidestep.rules import NoiseStep
from sidestep.training import Options

WIDTH, SHARE, HEAD_SHARE, MOMENTUM = 128, 0.005, 0.02, 0.95


def accuracy(estimator: str, draws: int | None, depth: int, epochs: int, seed: int) -> float:
    """Return test accuracy in percent."""
    options: dict[str, object] = {"directions": draws} if estimator == "local-probes" else {}
    if estimator == "activity-probes" and draws:
        options = {"tangents": draws}
    steps = {"flip_share": SHARE, "head_share": HEAD_SHARE, "momentum": MOMENTUM}
    rule = NoiseStep(hidden=(WIDTH,) * depth, estimator=estimator, **steps, **options)
    given = Options(epochs=epochs, batch=64, decay="cosine", seed=seed, precision="float32")
    return 100 * float(train(rule, data.load("digits"), given).result["test_accuracy"])


def main() -> None:
    """Print one JSON object for each cell: mean and standard error over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=a_count, nargs="+", default=[2, 4, 8])
    parser.add_argument("--draws", type=a_count, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=a_count, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for depth in given.depths:
        ways = [(kind, draws) for kind in ("activity-probes", "local-probes") for draws in given.draws]
        for kind, draws in [*ways, ("local-losses", None)]:
            started = time.process_time()
            found = [accuracy(kind, draws, depth, given.epochs, seed) for seed in given.seeds]
            error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")
            seconds = (time.process_time() - started) / len(found)
            print(
                json.dumps({
                    "depth": depth, "estimator": kind, "draws": draws, "test": round(statistics.mean(found), 2),
                    "error": round(error, 2), "each": [round(each, 2) for each in found], "seconds": round(seconds, 1),
                }),
                flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
