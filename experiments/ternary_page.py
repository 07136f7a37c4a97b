"""Train the ternary nets of docs/ternary-results.md, or only what is missing, and write its tables and plots.

    python -m experiments.ternary_page --runs runs/ternary --seeds 0 1 2 [--only mnist] [--draw]

Each run is a process of its own, one after another, `sidestep train` with a preset. Accuracy along the way is that of
the validation images (a twentieth of the training images, kept aside from all runs alike), at the end that of the test.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from experiments.given import a_seed
from sidestep.bench.report import share
from sidestep.bench.studies.blocks import mean_and_error

TEST_IMAGES = 10_000  # of MNIST, and of CIFAR-10


@dataclass(frozen=True)
class Entry:
    """One line of a table: how it is trained, and what a step costs in forward passes of its net."""

    title: str
    data: str
    arguments: tuple[str, ...]
    forwards: float


LINEAR = ("backprop", "--net", "linear", "--epochs", "10", "--batch", "500", "--decay", "cosine")
ENTRIES = {
    "paper": Entry("noise_step, the paper's", "mnist", ("--preset", "noise-step-paper-mnist", "--epochs", "28"), 129),
    "mlp": Entry("noise-step, MLP", "mnist", ("--preset", "noise-step-best-mnist"), 2),
    "mlp-ste": Entry("Adam-STE, the same MLP", "mnist", ("--preset", "backprop-ternary-mnist"), 3),
    "conv": Entry("noise-step, conv net", "mnist", ("--preset", "noise-step-best-mnist-conv"), 2),
    "conv-ste": Entry("Adam-STE, the same conv net", "mnist", ("--preset", "backprop-ternary-mnist-conv"), 3),
    "small-log": Entry("noise-step, a log below its weights", "mnist", ("--preset", "noise-step-small-log-mnist"), 2),
    "linear": Entry("a linear classifier (float, Adam)", "mnist", (*LINEAR, "--data", "mnist"), 3),
    "cifar": Entry("noise-step, conv net", "cifar10", ("--preset", "noise-step-best-cifar10"), 2),
    "cifar-ste": Entry("Adam-STE, the same conv net", "cifar10", ("--preset", "backprop-ternary-cifar10"), 3),
    "cifar-paper": Entry(
        "noise_step, the paper's rule, MLP", "cifar10",
        ("noise-step", "--estimator", "weight-probes", "--bias", "--hidden", "256", "256", "--probes", "128",
         "--data", "cifar10", "--batch", "1024", "--epochs", "33"), 129,
    ),
    "cifar-linear": Entry("a linear classifier (float, Adam)", "cifar10", (*LINEAR, "--data", "cifar10"), 3),
}  # fmt: skip


def train(name: str, arguments: Sequence[str], seed: int, folder: Path, threads: int | None = None) -> None:
    """Run one entry with one seed, or what is left of it, on so many threads (by default as many as torch takes)."""
    if (folder / "result.json").exists():
        return
    again = ["--resume"] if (folder / "config.toml").exists() else []
    command = [sys.executable, "-m", "sidestep", "train", *arguments, "--validation", "0.05"]
    print(f"{name} seed {seed}", flush=True)
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    command += ["--seed", str(seed), "--out", str(folder), *again]
    subprocess.run(command, check=True, env={**os.environ, **limit})


@dataclass(frozen=True)
class Curve:
    """One finished run."""

    test: float
    train: float
    seconds: float
    log: int  # bytes; 0 if there is none
    steps: int
    epochs: list[tuple[int, float, float]]  # step, seconds, validation accuracy
    weights: int


def read(folder: Path) -> Curve | None:
    """Return a finished run, or None."""
    if not (folder / "result.json").exists():
        return None
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [(m["step"], m["seconds"], m["value"]) for m in lines if m["split"] == "validation"]
    log = folder / "steps.steplog"
    size = log.stat().st_size if log.exists() else 0
    return Curve(
        result["test_accuracy"], result["train_accuracy"], result["seconds"], size, result["steps"], epochs,
        result["parameters"],
    )  # fmt: skip


def table(found: dict[str, list[Curve]], data: str) -> str:
    """Return the Markdown table of a data set."""
    lines = [
        "| net and rule | seeds | test % (seeds; test set) | train % | seconds | forward passes | log, bytes "
        "| weights, packed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, curves in found.items():
        if not curves or ENTRIES[name].data != data:
            continue
        tests = share(*mean_and_error([curve.test for curve in curves]), images=TEST_IMAGES)
        one = curves[0]
        ternary = "linear" not in name
        lines.append(
            f"| {ENTRIES[name].title} | {len(curves)} | {tests} "
            f"| {mean(100 * curve.train for curve in curves):.2f} | {mean(curve.seconds for curve in curves):.0f} "
            f"| {one.steps * ENTRIES[name].forwards:,.0f} | {f'{one.log:,}' if one.log else '-'} "
            f"| {f'{-(-one.weights // 5):,}' if ternary else f'{4 * one.weights:,} (float32)'} |"
        )
    return "\n".join(lines)


def draw(found: dict[str, list[Curve]], data: str, path: Path) -> None:
    """Plot validation accuracy against forward passes, seconds and log bytes."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    for index, (name, curves) in enumerate(found.items()):
        entry = ENTRIES[name]
        if not curves or entry.data != data:
            continue
        for curve in curves:
            steps, seconds, accuracy = zip(*curve.epochs, strict=True)
            wrong = [100 * (1 - value) for value in accuracy]
            label = entry.title if curve is curves[0] else None
            style = {"color": f"C{index % 10}", "label": label, "linewidth": 1}
            axes[0].plot([step * entry.forwards for step in steps], wrong, **style)
            axes[1].plot(seconds, wrong, **style)
            if curve.log:
                axes[2].plot([step * curve.log / curve.steps for step in steps], wrong, **style)
                axes[2].axvline(curve.weights / 5, color=f"C{index % 10}", linestyle=":", linewidth=1)
    for axis, what in zip(axes, ("forward passes", "seconds", "log, bytes (dotted: the packed weights)"), strict=True):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(what)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel(f"{data}: validation error, %")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse the options, train what is missing, and write the page's parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--draw", action="store_true", help="train nothing; tables and plots of what is there")
    given = parser.parse_args()
    if not given.draw:
        for seed in given.seeds:
            for name in given.only:
                train(name, ENTRIES[name].arguments, seed, given.runs / f"{name}-{seed}")
    found = {
        name: [c for seed in given.seeds if (c := read(given.runs / f"{name}-{seed}"))] for name in ENTRIES
    }  # fmt: skip
    results = Path(__file__).resolve().parents[1] / "docs" / "results"
    for data in ("mnist", "cifar10"):
        print(f"\n{data}\n\n{table(found, data)}")
        if any(curves and ENTRIES[name].data == data for name, curves in found.items()):
            draw(found, data, results / f"ternary-{data}.png")


if __name__ == "__main__":
    main()
