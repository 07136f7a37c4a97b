"""Four ways to move ternary weights, each with the same number of trials on validation: direct flips and its peers.

    python experiments/ternary_peers.py [--data mnist] [--epochs 3] [--seeds 0 1 2]

The net, batches and epochs are the same: an MLP of 512 and 512 units, batches of 500, a cosine to zero. `flips`, `bop`
and `rounding` take the exact gradients of local losses; `ste` is AdamW on float latents, straight through, end to end.
`rounding` is stochastic rounding of Adam's step, with no latent weights (as in Zhao et al., "Direct quantized training
of language models with stochastic rounding", 2024):

    w <- clamp(floor(w - eta m / (sqrt(v) + 1e-8) + u), -1, 1)        u uniform in [0, 1)

Four settings of each are tried with seed 0, and the best by validation accuracy is trained with every seed; the test
split is read once a run.
"""

import argparse
import json
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sidestep import data, train
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.noise import Noise
from sidestep.rules import Backprop, NoiseStep
from sidestep.training import Options
from sidestep.update import Dense, Flips, Update

HIDDEN = (512, 512)
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "flips": [{"flip_share": share} for share in (0.001, 0.003, 0.006, 0.01)],
    "bop": [{"bop_rate": rate, "bop_threshold": threshold}
            for rate, threshold in ((1e-3, 1e-6), (1e-3, 3e-6), (1e-2, 3e-6), (1e-2, 1e-5))],
    "rounding": [{"flip_share": rate} for rate in (1e-3, 3e-3, 1e-2, 3e-2)],
    "ste": [{"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3, 1e-2)],
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


def one(way: str, options: dict[str, Any], split: data.DataSet, epochs: int, seed: int) -> dict[str, Any]:
    """Train once; return accuracies in percent, and processor seconds."""
    clock = Flipped()
    given = Options(epochs=epochs, batch=500, decay="cosine", seed=seed)
    result = train(rule_of(way, options), split, given, observers=[clock]).result
    return {
        "way": way, "options": options, "seed": seed, "validation": round(100 * result["validation_accuracy"], 2),
        "test": round(100 * result["test_accuracy"], 2), "seconds": round(clock.ended - clock.started, 1),
    }  # fmt: skip


def main() -> None:
    """Search, then train; one JSON object a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    split = data.load(given.data, validation=0.0833)
    for way, settings in SETTINGS.items():
        tried = [one(way, options, split, given.epochs, 0) for options in settings]
        for each in tried:
            print(json.dumps({"trial": True, **{k: v for k, v in each.items() if k != "test"}}), flush=True)
        best = max(tried, key=lambda each: each["validation"])
        for seed in given.seeds:
            found = best if seed == 0 else one(way, best["options"], split, given.epochs, seed)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
