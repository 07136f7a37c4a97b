"""Settings of the scikit-learn classifier's default net, on tables that `benchmarks.sklearn` does not have.

    nice python -m benchmarks.sklearn_settings --out settings.json

Iris, six generated tables with and without words and gaps, and two of small pictures of MNIST. Each of three random
thirds is left out once for validation, with one seed each; a setting's figure is its mean difference, in points, to
scikit-learn's MLP of at most 200 passes, its own default. A table that --out holds already is not run again.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from sklearn.datasets import load_iris
from sklearn.model_selection import StratifiedKFold

from benchmarks.sklearn import mlp
from sidestep import data, rules
from sidestep.integrations.sklearn import SidestepClassifier
from sidestep.noise import Noise

CHOSEN: dict[str, Any] = {
    "hidden": (128, 128), "norm": "none", "learning_rate": 5e-3, "weight_decay": 1.0, "label_smoothing": 0.0,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "the default": CHOSEN,
    "hidden 64, 64": CHOSEN | {"hidden": (64, 64)},
    "hidden 256, 256": CHOSEN | {"hidden": (256, 256)},
    "learning rate 2e-3": CHOSEN | {"learning_rate": 2e-3},
    "learning rate 1e-2": CHOSEN | {"learning_rate": 1e-2},
    "weight decay 0.1": CHOSEN | {"weight_decay": 0.1},
    "weight decay 0.3": CHOSEN | {"weight_decay": 0.3},
    "label smoothing 0.1": CHOSEN | {"label_smoothing": 0.1},
    "batch norm": CHOSEN | {"norm": "batch"},
    "rules.LocalLoss()": {},
}


def classes(score: Any) -> Any:
    """Return three classes of equal size by a score."""
    return np.array(["low", "middle", "high"])[np.searchsorted(np.quantile(score, [1 / 3, 2 / 3]), score)]


def numbers(kind: str, rows: int) -> tuple[Any, Any]:
    """Return eight numbers a row, and classes that follow a line, a product, or a distance, with some noise."""
    noise = Noise(1).stream(kind)
    table = noise.stream("table").normal(8 * rows).view(rows, 8).numpy()
    other = noise.stream("other").normal(rows).numpy()
    score = {
        "line": lambda: table @ np.linspace(-1, 1, 8) + other,
        "product": lambda: table[:, 0] * table[:, 1] + table[:, 2] + 0.3 * other,
        "distance": lambda: np.abs(table[:, :4]).sum(axis=1) + 0.3 * other,
    }[kind]()
    return table, classes(score)


def mixed(kind: str, rows: int) -> tuple[Any, Any]:
    """Return four numbers and three words a row, a share of them missing, and classes that follow both."""
    noise = Noise(2).stream(kind)
    table = noise.stream("table").normal(4 * rows).view(rows, 4).numpy()
    words = noise.stream("words").integers(3 * rows, 5).view(rows, 3).numpy()
    gaps = noise.stream("gaps").uniform(7 * rows).view(rows, 7).numpy() < 0.08
    score = {
        "sum": lambda: table[:, 0] - table[:, 1] + np.array([-2, -1, 0, 1, 2])[words[:, 0]],
        "one or the other": lambda: np.where(words[:, 1] < 2, table[:, 2], -table[:, 3]) + 0.5 * (words[:, 2] == 4),
        "word": lambda: (words[:, 0] == words[:, 1]) + np.tanh(table[:, 0]),
    }[kind]()
    frame = pandas.DataFrame(np.where(gaps[:, :4], np.nan, table), columns=list("abcd"))
    for place, name in enumerate("xyz"):
        frame[name] = np.where(gaps[:, 4 + place], None, np.array(["p", "q", "r", "s", "t"])[words[:, place]])
    return frame, classes(score)


def pictures(rows: int) -> tuple[Any, Any]:
    """Return pictures of MNIST at 7 x 7, as rows of numbers, and their digits."""
    split = data.load("mnist").train
    found = split.images[:rows].float().reshape(rows, 7, 4, 7, 4).mean(dim=(2, 4))
    return found.reshape(rows, 49).numpy(), split.targets[:rows].numpy()


TABLES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "iris": lambda: load_iris(return_X_y=True),
    "line, 200 rows": lambda: numbers("line", 200),
    "product, 600 rows": lambda: numbers("product", 600),
    "distance, 1,500 rows": lambda: numbers("distance", 1500),
    "sum, mixed, 300 rows": lambda: mixed("sum", 300),
    "one or the other, mixed, 600 rows": lambda: mixed("one or the other", 600),
    "word, mixed, 1,200 rows": lambda: mixed("word", 1200),
    "mnist 7 x 7, 500 rows": lambda: pictures(500),
    "mnist 7 x 7, 2,000 rows": lambda: pictures(2000),
}


def scores(name: str) -> dict[str, float]:
    """Return each setting's points on a table, and the MLP's: means over three thirds left out."""
    inputs, targets = TABLES[name]()
    frame = hasattr(inputs, "iloc")
    found: dict[str, list[float]] = {}
    for seed, rows in enumerate(StratifiedKFold(3, shuffle=True, random_state=0).split(inputs, targets)):
        train, held = ((inputs.iloc[part] if frame else inputs[part], targets[part]) for part in rows)
        nets = {"MLP": mlp(False, frame, 200, seed)}
        nets |= {each: SidestepClassifier(rules.LocalLoss(**of), random_state=seed) for each, of in SETTINGS.items()}
        for each, net in nets.items():
            found.setdefault(each, []).append(100 * net.fit(*train).score(*held))
    return {each: statistics.fmean(values) for each, values in found.items()}


def main() -> None:
    """Run the settings and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers of each table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # that the MLP's passes are not enough to converge
    known = options.out is not None and options.out.exists()
    found: dict[str, dict[str, float]] = json.loads(options.out.read_text(encoding="utf-8")) if known else {}
    for name in TABLES:
        if name not in found:
            found[name] = scores(name)
            if options.out:
                options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print("| setting | mean difference to the MLP | least | most | tables behind |")
    print("|---|---|---|---|---|")
    for setting in SETTINGS:
        apart = [of[setting] - of["MLP"] for of in found.values()]
        behind = sum(each < 0 for each in apart)
        print(f"| {setting} | {statistics.fmean(apart):+.2f} | {min(apart):+.2f} | {max(apart):+.2f} | {behind} |")


if __name__ == "__main__":
    main()
