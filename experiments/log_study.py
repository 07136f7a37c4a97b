"""How many bits do the flips of a log take, and how many would they take if the coder knew more?

    python -m experiments.log_study [--data mnist] [--epochs 3] [--hidden 256 256] [--share 0.002] [--seed 0]

One run of noise-step by local losses. For every step, the bits of its flips by

    log         the format's own code (`encode_flips`), and `least`, log2 C(d, n) + n
    weight      an adaptive code whose probability for (stay, up, down) depends on the layer and the weight's value
    past        and on what a replay knows besides: how long ago the weight flipped, and which way
    past, rows  and on how often its row and its column flipped of late
    ranking     in place of all that, on the layer, the weight's value, and the rank of its momentum before this step's
                gradient, beta |v|, and its sign: what a replay without data cannot know

An adaptive code counts what happened in each context in earlier steps alone (counts begin at 2, p and p, p the share of
flips), so all but the last could be decoded. Its length is -sum log2 p, which an arithmetic coder reaches nearly.
"""

import argparse
import json
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from experiments.given import a_count, a_seed, a_share
from sidestep import data, train
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.rules import NoiseStep
from sidestep.steplog.codecs.flips import encode_flips, least_bits
from sidestep.training import Options
from sidestep.update import Flips, Update

BINS = 8


class Adaptive:
    """Counts of stay, up and down in each context, and the bits of what happened."""

    def __init__(self, share: float) -> None:
        self.share, self.counts, self.bits = share, {}, 0.0

    def code(self, layer: str, context: Tensor, happened: Tensor) -> None:
        """Add the bits of what happened, (d,) of 0, 1 and 2, in contexts (d,), and count it."""
        size = int(context.max()) + 1
        known = self.counts.get(layer, torch.zeros(0, 3))
        prior = torch.tensor([2.0, self.share, self.share], dtype=torch.float64)
        counts = torch.zeros(max(size, len(known)), 3, dtype=torch.float64)
        counts[: len(known)] = known
        chances = counts + prior
        chances = chances / chances.sum(dim=1, keepdim=True)
        found = torch.bincount(context * 3 + happened, minlength=3 * len(counts)).view(-1, 3).double()
        self.bits -= float((found * chances.log2()).sum())
        self.counts[layer] = counts + found


@dataclass
class Past:
    """What a replay knows of a layer: when and which way each weight flipped last, how often rows and columns do."""

    trits: Tensor
    last: Tensor = field(init=False)
    way: Tensor = field(init=False)
    rows: Tensor = field(init=False)
    columns: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.last = torch.full((self.trits.numel(),), -1)
        self.way = torch.zeros(self.trits.numel(), dtype=torch.int64)
        self.rows, self.columns = torch.zeros(len(self.trits)), torch.zeros(self.trits[0].numel())

    def contexts(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return those of the weight alone, with its past, and with its row and column."""
        weight = self.trits.view(-1).long() + 1
        age = torch.where(self.last < 0, BINS - 1, (step - self.last).clamp_min(1).float().log2().long())
        past = (weight * BINS + age.clamp_max(BINS - 1)) * 3 + self.way + 1
        near = _bins(self.rows)[:, None] * BINS + _bins(self.columns)[None]
        return weight, past, past * BINS * BINS + near.view(-1)

    def advance(self, step: int, happened: Tensor) -> None:
        """Count the flips of a step."""
        flipped = happened > 0
        self.last[flipped] = step
        self.way[flipped] = torch.where(happened[flipped] == 1, 1, -1)
        found = flipped.view(len(self.rows), -1).float()
        self.rows.lerp_(found.mean(dim=1), 0.05)
        self.columns.lerp_(found.mean(dim=0), 0.05)


def _bins(rates: Tensor) -> Tensor:
    """Number each rate by its size beside the mean, a factor of two each."""
    return ((rates / rates.mean().clamp_min(1e-12)).clamp_min(1e-3).log2().round().long() + BINS // 2).clamp(
        0, BINS - 1
    )


STUDY: dict[str, Adaptive] = {}
TOTAL = {"flips": 0, "log": 0.0, "least": 0.0, "steps": 0}
PAST: dict[str, Past] = {}


@dataclass(frozen=True)
class Studied(NoiseStep):
    """noise-step, whose flips are counted as they are decided."""

    def decide(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Return the flips, and add up what they would take."""
        trits = ternary_parameters(net)
        before = {name: optimizer.state[p].get("momentum", torch.zeros(p.shape)).clone() for name, p in trits.items()}
        found = super().decide(net, update, optimizer)
        assert isinstance(found, Flips)
        step, count, weights = TOTAL["steps"], len(found.positions), sum(p.numel() for p in trits.values())
        TOTAL["steps"] += 1
        TOTAL["flips"] += count
        TOTAL["log"] += 8 * len(encode_flips([found], weights))
        TOTAL["least"] += least_bits(count, weights)
        at = 0
        for name, parameter in trits.items():
            here = (found.positions >= at) & (found.positions < at + parameter.numel())
            happened = torch.zeros(parameter.numel(), dtype=torch.int64)
            happened[found.positions[here] - at] = torch.where(found.moves[here] > 0, 1, 2)
            at += parameter.numel()
            past = PAST.setdefault(name, Past(parameter))
            momentum = before[name].view(-1)
            rank = torch.empty_like(happened)
            rank[momentum.abs().argsort(descending=True)] = torch.arange(len(rank))
            ranked = (rank + 1).float().log2().mul(2).long()
            weight, own, near = past.contexts(step)
            ranking = (ranked * 3 + weight) * 2 + (momentum > 0).long()
            for kind, context in zip(
                ("weight", "past", "past, rows", "ranking"), (weight, own, near, ranking), strict=True
            ):
                STUDY.setdefault(kind, Adaptive(self.flip_share)).code(name, context, happened)
            past.advance(step, happened)
        return found


def main() -> None:
    """Train once, and print the bits a flip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=a_count, default=3)
    parser.add_argument("--hidden", type=a_count, nargs="+", default=[256, 256])
    parser.add_argument("--share", type=a_share, default=0.002)
    parser.add_argument("--seed", type=a_seed, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rule = Studied(hidden=tuple(given.hidden), flip_share=given.share)
    options = Options(epochs=given.epochs, batch=500, decay="cosine", seed=given.seed)
    result = train(rule, data.load(given.data), options).result
    flips = TOTAL["flips"]
    bits = {"log": TOTAL["log"], "least": TOTAL["least"], **{kind: each.bits for kind, each in STUDY.items()}}
    print(json.dumps({
        "steps": TOTAL["steps"], "flips": flips, "test": round(100 * result["test_accuracy"], 2),
        "bits a flip": {kind: round(found / flips, 3) for kind, found in bits.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
