"""How accurate is a ternary net for the bytes of its log: single flips, seeded sets of moves, or trits of projections?

    python -m experiments.log_sets --rows runs/sets.jsonl [--data digits] [--hidden 256 256] [--seeds 0 1 2]
        [--batch 100] [--epochs 20] [--ways "flips 0.0005" "sets 0.002 8" "trits 200 3" ...]
    python -m experiments.log_sets --rows runs/sets.jsonl --table

All take the exact gradients of local losses, and what they log can be replayed without data.

    flips P     noise-step's default: the share P of weights with the largest momentum that can move
    sets P N    `--update sets`: of 256 seeded sets of N moves the one that the momentum wants most, a byte each, until
                the share P of weights is drawn
    trits K T   the gradient on K seeded probes of one weight each, by sign and median; integer accumulators move a
                weight when T trits agree (0: by the clamped sum)

P falls to zero as a cosine; K stays. Bytes are those of the whole file. A finished run is a line of the file of rows,
and is not made again.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from experiments.given import a_count, a_seed, a_share
from experiments.kept_rows import Row, keep_row, kept_rows, row_key
from sidestep import data, train
from sidestep.noise import Noise
from sidestep.rules import NoiseStep, Task
from sidestep.training import Options

NAMES = ("setting", "way", "seed")


def rule_of(way: str, given: argparse.Namespace) -> NoiseStep:
    """Return the rule that a way names."""
    kind, first, *rest = way.split()
    options: dict[str, Any] = {"hidden": tuple(given.hidden), "momentum": given.momentum, "net": given.net}
    if kind != "trits":
        options |= {"update": kind, "flip_share": float(first), "head_share": given.heads * float(first)}
        return NoiseStep(**options | ({"set_size": int(rest[0])} if rest else {}))
    threshold = int(rest[0])
    options |= {"update": "accumulators", "threshold": threshold} if threshold else {"update": "clamped-sum"}
    weights = NoiseStep(**options, density=1.0).build(Task.of(given.split), Noise(0), None, None)
    count = sum(parameter.numel() for parameter in weights.parameters())
    return NoiseStep(
        **options, codec="trits", probes=int(first), density=1 / count, schedule="constant", exclusive=True
    )


def one(wanted: Row, given: argparse.Namespace) -> Row:
    """Train once."""
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            epochs=given.epochs, batch=given.batch, decay="cosine", seed=wanted["seed"], augment=given.augment,
            out=Path(folder) / "run",
        )  # fmt: skip
        started = time.process_time()
        result = train(rule_of(wanted["way"], given), given.split, options).result
        log = (Path(folder) / "run" / "steps.steplog").stat().st_size
    found = {name: round(100 * result[f"{name}_accuracy"], 2) for name in ("validation", "test")}
    took = round(time.process_time() - started, 1)
    return wanted | found | {"bytes": log, "packed": -(-result["parameters"] // 5), "seconds": took}


def table(rows: list[Row]) -> None:
    """Print the means over seeds as Markdown."""
    print("| setting | way | log, bytes | packed weights | validation % | test % | seeds |\n" + "|---" * 7 + "|")
    for setting, way in dict.fromkeys((row["setting"], row["way"]) for row in rows):
        own = [row for row in rows if row["way"] == way and row["setting"] == setting]
        mean = {name: statistics.mean(row[name] for row in own) for name in ("bytes", "validation", "test")}
        error = f" ({statistics.stdev(row['test'] for row in own) / len(own) ** 0.5:.2f})" if len(own) > 1 else ""
        print(
            f"| {setting} | {way} | {mean['bytes']:,.0f} | {own[0]['packed']:,} | {mean['validation']:.2f} | "
            f"{mean['test']:.2f}{error} | {len(own)} |"
        )


def main() -> None:
    """Train what is missing; one row a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--validation", type=a_share, default=0.2)
    parser.add_argument("--net", default="mlp", choices=("mlp", "conv"))
    parser.add_argument("--hidden", type=a_count, nargs="+", default=[256, 256])
    parser.add_argument("--batch", type=a_count, default=100)
    parser.add_argument("--epochs", type=a_count, default=20)
    parser.add_argument("--augment", default="none", choices=("none", "shift"))
    parser.add_argument("--momentum", type=a_share, default=0.95)
    parser.add_argument("--heads", type=float, default=4, help="the heads' share of flips beside that of the stages")
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=["flips 0.0005", "sets 0.002 8"])
    parser.add_argument("--table", action="store_true", help="train nothing, print the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = kept_rows(given.rows)
    if given.table:
        return table(rows)
    given.split = data.load(given.data, validation=given.validation)
    net = " ".join([given.net, *map(str, given.hidden)])
    setting = f"{given.data}, {net}, {given.epochs} x {given.batch}, momentum {given.momentum:g}, heads {given.heads:g}"
    setting += "" if given.augment == "none" else f", {given.augment}"
    done = {row_key(row, NAMES) for row in rows}
    for way in given.ways:
        for seed in given.seeds:
            wanted = {"setting": setting, "way": way, "seed": seed}
            if row_key(wanted, NAMES) not in done:
                keep_row(given.rows, one(wanted, given), "auto")
    return None


if __name__ == "__main__":
    main()
