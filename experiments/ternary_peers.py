"""Four ways to move ternary weights, each with the same number of trials on validation: direct flips and its peers.

    python -m experiments.ternary_peers --rows runs/peers.jsonl [--data mnist] [--trial-epochs 4] [--epochs 20]
    python -m experiments.ternary_peers --rows runs/peers.jsonl --table

The net and batches are the same: an MLP of 512 and 512 units, batches of 500, shifts by up to a pixel, a cosine to
zero. `flips`, `bop` and `rounding` take the exact gradients of local losses; `ste` is AdamW on float latents, straight
through, end to end. `rounding` is stochastic rounding of Adam's step, with no latent weights (as in Zhao et al.,
"Direct quantized training of language models with stochastic rounding", 2024):

    w <- clamp(floor(w - eta m / (sqrt(v) + 1e-8) + u), -1, 1)        u uniform in [0, 1)

Eight settings of each (of Bop twelve, as the best of eight stood at their edge) are tried with seed 0, and the best by
validation accuracy is trained for longer with every seed; the test split is read at the end of those runs alone.

Steps of `flips`, `bop` and `ste` take equally long on this net; those of `rounding` half as long again, most of it for
u, and it has as many. A finished run is a line of the file of rows, and is not made again.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.given import a_count, a_seed
from experiments.kept_rows import Row, keep_row, kept_rows, row_key
from sidestep import data, train
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.noise import Noise
from sidestep.rules import Backprop, NoiseStep
from sidestep.training import Options
from sidestep.update import Dense, Flips, Update

HIDDEN = (512, 512)
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "flips": [{"flip_share": share, "momentum": momentum}
              for momentum in (0.95, 0.98) for share in (0.001, 0.003, 0.006, 0.012)],
    "bop": [{"bop_rate": rate, "bop_threshold": threshold}
            for rate, thresholds in ((1e-3, (1e-6, 2e-6, 3e-6, 6e-6, 1e-5, 2e-5)),
                                     (1e-2, (3e-6, 1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4)))
            for threshold in thresholds],
    "rounding": [{"flip_share": rate} for rate in (3e-3, 1e-2, 2e-2, 3e-2, 5e-2, 0.1, 0.2, 0.4)],
    "ste": [{"learning_rate": rate} for rate in (5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 6e-3, 1e-2, 2e-2)],
}  # fmt: skip


@dataclass(frozen=True)
class Rounding(NoiseStep):
    """noise-step's local losses, and weights that move by stochastic rounding; `flip_share` is the step size eta."""

    def decide(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> Flips:
        """Return the moves that the rounding of Adam's step makes."""
        assert isinstance(update, Dense)
        positions, moves, at = [], [], 0
        for index, (name, trits) in enumerate(ternary_parameters(net).items()):
            state, gradient = optimizer.state[trits], update.gradients[name].float()
            step = state["step"] = state.get("step", 0) + 1
            first = state.setdefault("first", torch.zeros_like(gradient)).lerp_(gradient, 0.1)
            second = state.setdefault("second", torch.zeros_like(gradient)).lerp_(gradient.square(), 0.001)
            change = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            rate = next(g["lr"] for g in optimizer.param_groups if any(p is trits for p in g["params"]))
            draw = Noise(0).stream("rounding").sub(index).at(step).uniform(trits.numel()).view(trits.shape)
            moved = (trits - rate * change + draw).floor().clamp(-1, 1) - trits
            found = moved.view(-1).nonzero()[:, 0]
            positions.append(found + at)
            moves.append(moved.view(-1)[found].sign().to(torch.int8))
            at += trits.numel()
        return Flips(torch.cat(positions), torch.cat(moves), losses=update.losses)


class Flipped:
    """Counts what a run took: processor seconds."""

    def on_begin(self, event: Any) -> None:
        """Start."""
        self.started = self.ended = time.process_time()

    def on_step(self, event: Any) -> None:
        """Look."""
        self.ended = time.process_time()


def rule_of(way: str, options: dict[str, Any]) -> NoiseStep | Backprop:
    """Return the rule with one setting."""
    if way == "ste":
        return Backprop(net="mlp", ternary=True, hidden=HIDDEN, label_smoothing=0.1, **options)
    if way == "rounding":
        return Rounding(hidden=HIDDEN, codec="flips", update="flips", **options)
    return NoiseStep(hidden=HIDDEN, codec="flips", update=way, **options)


def one(split: data.DataSet, wanted: Row) -> Row:
    """Train once; return accuracies in percent, and processor seconds; of a trial none on the test split."""
    clock = Flipped()
    given = Options(epochs=wanted["epochs"], batch=500, decay="cosine", augment=wanted["augment"], seed=wanted["seed"])
    result = train(rule_of(wanted["way"], wanted["options"]), split, given, observers=[clock]).result
    found = {name: round(100 * result[f"{name}_accuracy"], 2) for name in ("validation", "test")}
    if wanted["kind"] == "trial":
        del found["test"]
    return wanted | found | {"seconds": round(clock.ended - clock.started, 1)}


def planned(rows: list[Row], given: argparse.Namespace) -> Row | None:
    """Return the first run that has no row yet: of each way its trials, then the best of them with every seed."""
    done, missing = {_key(row): row for row in rows}, []
    for way, settings in SETTINGS.items():
        base = {"data": given.data, "augment": "shift" if given.data == "mnist" else "none", "way": way}
        trials = [base | {"kind": "trial", "options": o, "seed": 0, "epochs": given.trial_epochs} for o in settings]
        left = [wanted for wanted in trials if _key(wanted) not in done]
        missing += left
        if not left:
            best = max((done[_key(trial)] for trial in trials), key=lambda row: float(row["validation"]))
            run = base | {"kind": "run", "options": best["options"], "epochs": given.epochs}
            missing += [run | {"seed": seed} for seed in given.seeds if _key(run | {"seed": seed}) not in done]
    return next((row for row in missing if given.kind in (None, row["kind"])), None)


def table(rows: list[Row]) -> None:
    """Print the trials and the runs of each way as Markdown."""
    print("| way | tried: validation % | validation % | test % (seeds; test set) | processor seconds |")
    print("|---|---|---|---|---|")
    for way in SETTINGS:
        own = [row for row in rows if row["way"] == way]
        tried = "; ".join(f"{_said(row)}: {row['validation']:.2f}" for row in own if row["kind"] == "trial")
        runs = sorted((row for row in own if row["kind"] == "run"), key=lambda row: int(row["seed"]))
        test = [row["test"] for row in runs]
        if len(test) < 2:
            continue
        mean, spread = statistics.mean(test), statistics.stdev(test) / len(test) ** 0.5
        images = {"mnist": 10_000, "digits": 360}.get(runs[0]["data"], 10_000)
        own_error = 100 * (mean / 100 * (1 - mean / 100) / images) ** 0.5
        validation, took = (statistics.mean(row[name] for row in runs) for name in ("validation", "seconds"))
        print(f"| {way} | {tried} | {validation:.2f} | {mean:.2f} ({spread:.2f}; {own_error:.2f}) | {took:.0f} |")


def _said(row: Row) -> str:
    return ", ".join(f"{value:g}" for value in row["options"].values())


def _key(row: Row) -> str:
    return row_key(row, ("kind", "data", "way", "options", "seed", "epochs"))


def main() -> None:
    """Make what is missing, or one run of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--trial-epochs", type=a_count, default=4)
    parser.add_argument("--epochs", type=a_count, default=20)
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--most", type=a_count, default=1_000_000, help="make no more than so many runs")
    parser.add_argument("--kind", choices=("trial", "run"), help="trials alone, or runs of ways whose trials are done")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        return table(kept_rows(given.rows))
    split = data.load(given.data, validation=0.0833)
    for _ in range(given.most):
        wanted = planned(kept_rows(given.rows), given)
        if wanted is None:
            return print("nothing is missing")
        keep_row(given.rows, one(split, wanted), "auto")
    return None


if __name__ == "__main__":
    main()
