"""How small can the log of a ternary net on MNIST be? Train what is missing, and plot test error against log bytes.

    python -m experiments.log_frontier --runs runs/frontier [--seed 0] [--draw]

Each run is a process of its own, one after another. A log's bytes are those of the whole file: header, steps, and the
running statistics of batch norms where there are any.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from experiments.given import a_seed

COMMON = ("--data", "mnist", "--validation", "0.05", "--decay", "cosine", "--augment", "shift", "--momentum", "0.98")
CONV = ("--net", "conv", "--hidden", "32", "64", "128", "--batch", "250", "--epochs", "4")
MLP = ("--hidden", "512", "512", "512", "--batch", "500", "--epochs", "10")
TRITS = ("--hidden", "512", "512", "--batch", "1000", "--codec", "trits", "--schedule", "constant", "--exclusive")
RUNS: dict[str, tuple[str, ...]] = {
    **{f"conv, flips, p = {p}": (*CONV, "--flip-share", str(p), "--head-share", str(1.5 * p))
       for p in (0.0001, 0.0002, 0.0004, 0.001)},
    **{f"MLP, flips, p = {p}": (*MLP, "--flip-share", str(p), "--head-share", str(10 * p))
       for p in (0.00005, 0.00015, 0.0004, 0.001)},
    **{f"MLP, trits, K = {k}": (*TRITS, "--probes", str(k), "--density", "1.5e-6", "--epochs", "8")
       for k in (500, 2000)},
}  # fmt: skip


def train(name: str, seed: int, folder: Path) -> None:
    """Run one entry, or what is left of it."""
    if (folder / "result.json").exists():
        return
    again = ["--resume"] if (folder / "config.toml").exists() else []
    command = [sys.executable, "-m", "sidestep", "train", "noise-step", *COMMON, *RUNS[name]]
    subprocess.run([*command, "--seed", str(seed), "--out", str(folder), *again], check=True)


def main() -> None:
    """Parse the options, train what is missing, print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seed", type=a_seed, default=0)
    parser.add_argument("--draw", action="store_true", help="train nothing; table and plot of what is there")
    given = parser.parse_args()
    figure, axis = plt.subplots(figsize=(7, 4.5))
    print("| run | test % | log, bytes | packed weights | log / weights |\n|---|---|---|---|---|")
    lines: dict[str, list[tuple[int, float]]] = {}
    for index, name in enumerate(RUNS):
        folder = given.runs / f"{index}-{given.seed}"
        if not given.draw:
            train(name, given.seed, folder)
        if not (folder / "result.json").exists():
            continue
        result = json.loads((folder / "result.json").read_text())
        log, packed = (folder / "steps.steplog").stat().st_size, -(-result["parameters"] // 5)
        print(
            f"| {name} | {100 * result['test_accuracy']:.2f} | {log:,} | {packed:,} | {log / packed:.2f} |", flush=True
        )
        lines.setdefault(name.rsplit(",", 1)[0], []).append((log, 100 * (1 - result["test_accuracy"])))
        axis.axvline(packed, color=f"C{len(lines) - 1}", linestyle=":", linewidth=1)
    for line, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), marker="o", label=line)
    axis.set(
        xscale="log", yscale="log", xlabel="log, bytes (dotted: the packed weights)", ylabel="MNIST: test error, %"
    )
    axis.legend()
    axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(Path(__file__).resolve().parents[1] / "docs" / "results" / "log-frontier.png", dpi=110)


if __name__ == "__main__":
    main()
