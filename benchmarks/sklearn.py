"""Sidestep's scikit-learn estimators beside scikit-learn's own MLP, in the same folds and in the same time.

    nice python -m benchmarks.sklearn --seeds 5 --out table.json

Each fold: SidestepClassifier (or Regressor) with its defaults; then MLPClassifier (or MLPRegressor) behind a
StandardScaler, with defaults but for as many passes as fit into the processor seconds of the first (it may stop
earlier, where its loss no longer falls), or with --times 4 into four times as many. --plain takes rules.LocalLoss() as
an object, two layers of 512 with a norm over the batch, in place of the default of the rule's name. Beside them the
MLP with at most 2,000 passes, whatever time they take, and a linear model (LogisticRegression or RidgeCV). The
difference's standard error is over seeds, each a mean over five folds. A seed that --out holds already is not run
again.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sidestep import rules
from sidestep.integrations.sklearn import SidestepClassifier, SidestepRegressor
from sidestep.noise import Noise

TRIAL = 5  # passes by which the MLP's seconds a pass are measured
MANY = 2000  # passes of the MLP that may take its time; it stops by itself


def generated(rows: int = 600) -> tuple[Any, Any]:
    """Return a table of two texts and three numbers, a tenth of each missing, and three classes that follow them."""
    noise = Noise(0).stream("generated table")
    numbers = noise.stream("numbers").normal(3 * rows).view(rows, 3).numpy()
    texts = noise.stream("texts").integers(2 * rows, 4).view(rows, 2).numpy()
    gaps = noise.stream("gaps").uniform(5 * rows).view(rows, 5).numpy() < 0.1
    score = numbers[:, 0] * np.array([-1.0, 0.5, 1.5, 0.0])[texts[:, 0]] + numbers[:, 1] ** 2 + (texts[:, 1] == 2)
    frame = pandas.DataFrame(np.where(gaps[:, :3], np.nan, numbers), columns=["length", "width", "weight"])
    for place, name in enumerate(("colour", "town")):
        words = np.array(["red", "green", "blue", "white"] if name == "colour" else ["Ulm", "Bonn", "Jena", "Kiel"])
        frame[name] = np.where(gaps[:, 3 + place], None, words[texts[:, place]])
    return frame, np.array(["low", "middle", "high"])[np.searchsorted(np.quantile(score, [1 / 3, 2 / 3]), score)]


DATA: dict[str, Callable[[], tuple[Any, Any]]] = {
    "wine": lambda: load_wine(return_X_y=True),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "diabetes (R2)": lambda: load_diabetes(return_X_y=True),
    "digits": lambda: load_digits(return_X_y=True),
    "generated, texts and gaps": generated,
}


def scaled(net: Any, frame: bool) -> Any:
    """Return an estimator behind what makes scaled numbers of a table."""
    if not frame:
        return make_pipeline(StandardScaler(), net)
    return make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(), StandardScaler()), make_column_selector(dtype_include="number")),
            (make_pipeline(SimpleImputer(strategy="constant", fill_value="none"), OneHotEncoder(sparse_output=False)),
             make_column_selector(dtype_exclude="number")),
        ),
        net,
    )  # fmt: skip


def mlp(values: bool, frame: bool, passes: int, seed: int) -> Any:
    """Return scikit-learn's MLP for so many passes at most."""
    return scaled((MLPRegressor if values else MLPClassifier)(max_iter=passes, random_state=seed), frame)


def timed(estimator: Any, train: tuple[Any, Any]) -> tuple[Any, float]:
    """Return the fitted estimator, and the processor seconds of its fit."""
    began = time.process_time()
    estimator.fit(*train)
    return estimator, time.process_time() - began


def fold(  # long: the rows, what they are, and the seconds
    inputs: Any, targets: Any, rows: tuple[Any, Any], values: bool, seed: int, options: argparse.Namespace
) -> dict[str, float]:
    """Return all scores on one fold's test rows, and all times."""
    frame = hasattr(inputs, "iloc")
    train, test = ((inputs.iloc[part] if frame else inputs[part], targets[part]) for part in rows)
    rule = rules.LocalLoss() if options.plain else "local-loss"
    ours, seconds = timed((SidestepRegressor if values else SidestepClassifier)(rule, random_state=seed), train)
    _, trial = timed(mlp(values, frame, TRIAL, seed), train)
    theirs, their_seconds = timed(mlp(values, frame, max(1, int(options.times * seconds / trial * TRIAL)), seed), train)
    longer, longer_seconds = timed(mlp(values, frame, MANY, seed), train)
    line, _ = timed(scaled(RidgeCV() if values else LogisticRegression(max_iter=MANY), frame), train)
    return {
        "sidestep": ours.score(*test), "mlp": theirs.score(*test), "sidestep_seconds": seconds,
        "mlp_seconds": their_seconds, "mlp_passes": float(theirs[-1].n_iter_), "longer": longer.score(*test),
        "longer_seconds": longer_seconds, "line": line.score(*test),
    }  # fmt: skip


def seed_means(name: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the means over five folds, whose cut the seed decides."""
    inputs, targets = DATA[name]()
    values = name.endswith("(R2)")
    cut = (KFold if values else StratifiedKFold)(5, shuffle=True, random_state=seed)
    found = [fold(inputs, targets, rows, values, seed, options) for rows in cut.split(inputs, targets)]
    return {key: statistics.fmean(each[key] for each in found) for key in found[0]}


def printed(name: str, found: list[dict[str, float]]) -> str:
    """Return a table's row of what the seeds gave."""
    means = {key: statistics.fmean(each[key] for each in found) for key in found[0]}
    apart = [100 * (each["sidestep"] - each["mlp"]) for each in found]
    error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
    return (
        f"| {name} | {100 * means['sidestep']:.2f} | {100 * means['mlp']:.2f} | {statistics.fmean(apart):+.2f} ± "
        f"{error:.2f} | {means['sidestep_seconds']:.2f} | {means['mlp_seconds']:.2f} | {means['mlp_passes']:.0f} "
        f"| {100 * means['longer']:.2f} | {means['longer_seconds']:.2f} | {100 * means['line']:.2f} |"
    )


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=list(DATA), action="append")
    parser.add_argument("--times", type=float, default=1.0, help="how many times our seconds the MLP gets")
    parser.add_argument("--plain", action="store_true", help="rules.LocalLoss() in place of the default")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers of each seed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # that the MLP's passes are not enough to converge
    known = options.out is not None and options.out.exists()
    found: dict[str, list[dict[str, float]]] = json.loads(options.out.read_text(encoding="utf-8")) if known else {}
    print(
        "| data | Sidestep | MLP, equal time | difference | seconds | MLP's | passes | MLP, long | seconds | linear |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.only or DATA:
        rows = found.setdefault(name, [])
        while len(rows) < options.seeds:
            rows.append(seed_means(name, len(rows), options))
            if options.out:
                options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(printed(name, rows), flush=True)


if __name__ == "__main__":
    main()
