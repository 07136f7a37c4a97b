"""Tables scaled by column beside tables scaled by one mean for all: `python -m benchmarks.tables`.

Each of scikit-learn's small tables is cut five ways; a rule is trained with three seeds on each, and judged once, on
the fifth that was left out. Errors: between seeds (standard deviation), and from the number of test rows.
"""

import math
import warnings

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from sidestep import data, train
from sidestep.noise import Noise
from sidestep.rules import RULES
from sidestep.training import Options

EPOCHS, FOLDS, SEEDS = 40, 5, (0, 1, 2)
NETS = {"backprop": {"net": "mlp", "hidden": (64, 64)}, "local-loss": {"hidden": (64, 64)}}


def main() -> None:
    """Print one row for each table, rule and scaling."""
    print("| table | rule | scaled by | score | between seeds | from the test rows |")
    print("|---|---|---|---|---|---|")
    for name, loaded, targets in (
        ("wine", load_wine(), "classes"),
        ("breast cancer", load_breast_cancer(), "classes"),
        ("diabetes", load_diabetes(scaled=False), "values"),
    ):
        for rule in NETS:
            for by in ("one mean", "column"):
                scores = np.array([score(loaded, rule, by, targets, seed) for seed in SEEDS])
                mean, rows = scores.mean(), len(loaded.target)
                error = f"{math.sqrt(mean * (1 - mean) / rows):.3f}" if targets == "classes" else "-"
                print(f"| {name} | {rule} | {by} | {mean:.3f} | {scores.std(ddof=1):.3f} | {error} |")


def score(loaded: object, rule: str, by: str, targets: str, seed: int) -> float:
    """Return accuracy or R2 over the five parts, each left out once."""
    x, y = loaded.data.astype(np.float32), loaded.target  # type: ignore[attr-defined]
    order = Noise(0).stream("folds").permutation(len(x)).numpy()
    found = []
    for fold in range(FOLDS):
        away = order[fold::FOLDS]
        stay = np.setdiff1d(order, away)
        shaped = x if by == "column" else x[:, None, :]  # (n, 1, columns) are images of one row
        kept = data.from_arrays(shaped[stay], y[stay], shaped[away], y[away], validation=0, targets=targets)
        run = train(RULES[rule](**NETS[rule]), kept, Options(epochs=EPOCHS, batch=32, seed=seed))
        found.append(run.result["test_accuracy" if targets == "classes" else "test_score"])
    return float(np.mean(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
