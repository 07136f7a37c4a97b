"""Make the tables and the picture of docs/alignment.md: measured cosines beside theory, and beside accuracy.

    python -m experiments.alignment_page --runs runs/alignment --data digits mnist [--draw]

Theory is held to untrained nets on the digits. Then every rule trains a net of two hidden layers, one run after
another, and its alignment is measured before and after. Finished runs, and theory.json, are
read again; --draw trains nothing.
"""

import argparse
import json
import math
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from experiments.alignment_theory import claims, spread, theory_table
from experiments.given import a_seed
from sidestep import Options, align, load_run, train
from sidestep.data import DataSet, load
from sidestep.rules import (
    SPSA,
    Backprop,
    DirectFeedbackAlignment,
    Evolution,
    FeedbackAlignment,
    ForwardGradient,
    LocalLoss,
    NeuralODE,
    NoiseStep,
    NoPropCT,
    NoPropDT,
    NoPropFM,
    Rule,
)
from sidestep.training import alignment_curves

WEAK = 0.06
ADAM = {"optimizer_kind": "adamw"}


def rules(width: int) -> dict[str, Rule]:
    """Return the rules that are trained, each on an MLP of two hidden layers, or on NoProp's blocks."""
    hidden = (width, width)
    return {
        "backprop": Backprop(net="mlp", hidden=hidden),
        "feedback alignment": FeedbackAlignment(hidden=hidden, norm="layer"),
        "sign-symmetric": FeedbackAlignment(hidden=hidden, norm="layer", feedback="sign-symmetric"),
        "Kolen-Pollack": FeedbackAlignment(hidden=hidden, norm="layer", feedback="kolen-pollack"),
        "direct feedback alignment": DirectFeedbackAlignment(hidden=hidden, norm="layer"),
        "local losses": LocalLoss(hidden=hidden, norm="layer"),
        "forward gradient, local": ForwardGradient(hidden=hidden),
        "forward gradient, activities": ForwardGradient(hidden=hidden, kind="activities"),
        "forward gradient, weights": ForwardGradient(hidden=hidden, kind="weights", tangents=16),
        "evolution, rank-1": Evolution(hidden=hidden),
        "SPSA, 16 pairs": SPSA(hidden=hidden, pairs=16, sides="both", learning_rate=1e-3, **ADAM),
        "noise-step, local losses": NoiseStep(hidden=hidden),
        "noise-step, activity probes": NoiseStep(hidden=hidden, estimator="activity-probes", tangents=4),
        "noise-step, weight probes": NoiseStep(hidden=hidden, estimator="weight-probes"),
        "NoProp-DT, 3 blocks": NoPropDT(blocks=3),
        "NoProp-CT, 10 steps": NoPropCT(steps=10),
        "NoProp-FM, 10 steps": NoPropFM(steps=10),
        "neural ODE, 5 steps": NeuralODE(steps=5),
    }


SETTINGS = {"digits": (64, 20), "mnist": (128, 3)}  # width, epochs
ON_MNIST = list(rules(1))[:6]


def theory_beside(runs: Path, seeds: list[int]) -> tuple[str, list[tuple[float, float]]]:
    """Return what `theory_table` does of the digits, measured once and then read from the runs' folder."""
    file, wanted = runs / "theory.json", {"seeds": seeds, "claims": [claim.what for claim in claims()]}
    if file.exists() and (known := json.loads(file.read_text()))["of"] == wanted:
        return known["table"], known["points"]
    table, points = theory_table(load("digits"), seeds)
    file.write_text(json.dumps({"of": wanted, "table": table, "points": points}))
    return table, points


def run_one(name: str, data: DataSet, seed: int, folder: Path) -> None:
    """Train one net, and measure before and after."""
    if (folder / "alignment.json").exists():
        return
    width, epochs = SETTINGS[data.name]
    rule, again = rules(width)[name], (folder / "config.toml").exists()
    print(f"{data.name} {name} seed {seed}", flush=True)
    start = align(rule, data, Options(seed=seed), estimates=8)
    options = Options(epochs=epochs, seed=seed, decay="cosine", out=folder, align=0.05, overwrite=again)
    run = train(rule, data, options)
    end = align(load_run(folder), data, estimates=8)
    record = {"start": start.record(), "end": end.record(), "test": run.result["test_accuracy"]}
    (folder / "alignment.json").write_text(json.dumps(record))


def matrices(record: dict, least: int) -> list[float | None]:
    """Return the cosines of the first two large weight matrices of an MLP."""
    return [found["cosine"] for found in record["tensors"].values() if found["elements"] >= least][:2]


def rules_table(data: str, seeds: list[int], runs: Path) -> tuple[str, list[tuple[str, float, float, float, bool]]]:
    """Return the table as Markdown, and (name, cosine before, after, accuracy, whether it is no MLP)."""
    lines = [
        "| rule | seeds | test % | cos, untrained | cos, trained | first hidden | second hidden | signal to noise |",
        "|---|---|---|---|---|---|---|---|",
    ]
    points = []
    for name in rules(1):
        files = [runs / f"{data}-{name.replace(', ', '-').replace(' ', '-')}-{seed}/alignment.json" for seed in seeds]
        found = [json.loads(file.read_text()) for file in files if file.exists()]
        if not found:
            continue
        width = SETTINGS[data][0]
        tests = [100 * one["test"] for one in found]
        start, end = ([one[when]["whole"]["cosine"] for one in found] for when in ("start", "end"))
        layers = [matrices(one["end"], width * width) for one in found]
        other = isinstance(rules(1)[name], NoPropDT | NoPropCT | NoPropFM | NeuralODE)  # whose nets have other layers
        by_layer = ["-", "-"] if other else [spread([layer[i] for layer in layers], 3) for i in (0, 1)]
        noise = [one["end"]["whole"]["signal_to_noise"] for one in found]
        cells = [name, str(len(found)), spread(tests, 2), spread(start, 3), spread(end, 3), *by_layer]
        lines.append(f"| {' | '.join(cells)} | {'no noise' if None in noise else spread(noise, 3)} |")
        points.append((name, mean(start), mean(end), mean(tests), other))
    return "\n".join(lines), points


def ranks(values: list[float]) -> list[float]:
    """Return ranks from 0; equal values share their mean rank."""
    return [mean(i for i, v in enumerate(sorted(values)) if v == value) for value in values]


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Return Spearman's rank correlation."""
    first, second = ranks(one), ranks(other)
    a, b = [x - mean(first) for x in first], [x - mean(second) for x in second]
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def over_training(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the first two hidden matrices' cosines: untrained, over training, and at the end."""
    record, curves = json.loads((folder / "alignment.json").read_text()), alignment_curves(folder)
    start, end = record["start"], record["end"]
    names = [name for name, found in start["tensors"].items() if found["elements"] >= SETTINGS["mnist"][0] ** 2][:2]
    return {
        name: [
            (0, start["tensors"][name]["cosine"]),
            *curves.get(name, ()),
            (end["step"], end["tensors"][name]["cosine"]),
        ]
        for name in names
    }


def draw(theory: list[tuple[float, float]], found: dict[str, list], runs: Path, path: Path) -> None:
    """Plot measured cosines against theory, over training, and beside accuracy."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.4), width_ratios=(1, 1.1, 1.5))
    left.loglog([x for x, _ in theory], [y for _, y in theory], "o", color="#0b5cad")
    left.loglog([0.01, 1], [0.01, 1], color="grey", linewidth=0.8)
    left.set(xlabel="cosine, theory", ylabel="cosine, measured", title="untrained nets, digits")
    for colour, name in (("C0", "feedback-alignment"), ("C1", "direct-feedback-alignment"), ("C2", "local-losses")):
        for style, (key, points) in zip(("-", "--"), over_training(runs / f"mnist-{name}-0").items(), strict=False):
            label = f"{name}, {key}"
            middle.plot(*zip(*points, strict=True), style, color=colour, label=label, linewidth=1, marker=".", ms=2)
    middle.set(xlabel="step", ylabel="cosine", title="over training, MNIST, seed 0")
    middle.legend(fontsize=6)
    beside_accuracy(right, found)
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def beside_accuracy(axes: Axes, found: dict[str, list]) -> None:
    """Plot the test error against the trained cosine; a rule is a number, which the legend explains."""
    numbers = {name: index for index, name in enumerate(rules(1), start=1)}
    for colour, (data, points) in zip(("#0b5cad", "#c2571a"), found.items(), strict=False):
        points = sorted(points, key=lambda point: point[2])
        wrong = [100 - accuracy for _, _, _, accuracy, _ in points]
        axes.semilogy([p[2] for p in points], wrong, "o", color=colour, label=data, markersize=3)
        for index, ((name, _, cosine, *_), error) in enumerate(zip(points, wrong, strict=True)):
            beside = (-3 if index % 2 else 3, 2)  # neighbours are often near each other
            axes.annotate(
                str(numbers[name]), (cosine, error), beside, textcoords="offset points", fontsize=7, color=colour,
                ha="right" if index % 2 else "left",
            )  # fmt: skip
    shown = {name for points in found.values() for name, *_ in points}
    text = "\n".join(f"{number:2d}  {name}" for name, number in numbers.items() if name in shown)
    axes.text(1.02, 1, text, transform=axes.transAxes, va="top", fontsize=7)
    axes.set(xlabel="cosine of the trained net, all tensors", ylabel="test error, %", title="beside accuracy")
    axes.legend(fontsize=7, loc="upper right")


def main() -> None:
    """Parse the options, train what is missing, print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=["digits", "mnist"], choices=list(SETTINGS))
    parser.add_argument("--data-dir", type=Path, help="folder with the data sets")
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--draw", action="store_true", help="train nothing; tables and picture of what is there")
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    for name in () if given.draw else given.data:
        data = load(name, data_dir=given.data_dir)
        for seed in given.seeds:
            for rule in rules(1):
                if name == "digits" or rule in ON_MNIST:
                    short = rule.replace(", ", "-").replace(" ", "-")
                    run_one(rule, data, seed, given.runs / f"{name}-{short}-{seed}")
    table, theory = theory_beside(given.runs, given.seeds)
    print(f"\n{table}")
    found = {}
    for name in given.data:
        table, found[name] = rules_table(name, given.seeds, given.runs)
        print(f"\n{name}\n\n{table}")
        dense = [point for point in found[name] if not point[4]]
        learning = [point for point in dense if point[2] > WEAK]
        for some, points in (("all MLPs", dense), (f"those with a trained cosine above {WEAK}", learning)):
            for which, index in (("untrained", 1), ("trained", 2)):
                value = rank_correlation([p[index] for p in points], [p[3] for p in points]) if len(points) > 2 else 0
                print(f"{some}, {len(points)} rules: rank correlation of accuracy, {which} cosine: {value:+.2f}")
    draw(theory, found, given.runs, Path(__file__).resolve().parents[1] / "docs" / "results" / "alignment.png")


if __name__ == "__main__":
    main()
