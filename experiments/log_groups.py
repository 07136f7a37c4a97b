"""Two other codes for what a step decides, beside single flips: how accurate is a net for the bits of its log?

    python -m experiments.log_groups --rows runs/groups.jsonl [--data digits] [--hidden 256 256] [--seeds 0 1 2]
        [--batch 100] [--epochs 20] [--ways "flips 0.002" "groups 0.001 4 12" "trits 500 3" ...]
    python -m experiments.log_groups --rows runs/groups.jsonl --table

All take the exact gradients of local losses, and what they log can be replayed without data.

    flips P             noise-step's own: the share P of weights with the largest momentum that can move, a cosine to 0
    groups P N K        2^K seeded sets of N weights are drawn, each weight with a move that it can make; the set whose
                        moves the momentum wants most, sum of move v over the set, is made, and its number is logged:
                        K bits for N moves; so many sets that the share P moves, a cosine to 0
    trits K T           the gradient on K seeded probes of one weight each: sign and median, a trit each; integer
                        accumulators move a weight when T trits agree (0: by the clamped sum)

Bits: `flips`, the file's own bytes; `groups`, K for each set; `trits`, 1.5 a probe, which is their entropy. Headers are
left out. `bound` is what log2 C(d, n) + n would take for flips.
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.kept_rows import Row, keep_row, kept_rows, row_key
from sidestep import data, train
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.noise import Noise
from sidestep.rules import NoiseStep
from sidestep.steplog.codecs.flips import encode_flips, least_bits
from sidestep.training import Options
from sidestep.update import Dense, Flips, Update

TOTAL = {"bits": 0.0, "bound": 0.0, "moves": 0, "steps": 0}


@dataclass(frozen=True)
class Counted(NoiseStep):
    """noise-step, whose flips are counted as they are decided."""

    def decide(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Return the flips, and add up what they take."""
        found = super().decide(net, update, optimizer)
        if isinstance(found, Flips):
            weights = sum(p.numel() for p in ternary_parameters(net).values())
            TOTAL["bits"] += 8 * len(encode_flips([found], weights))
            TOTAL["bound"] += least_bits(len(found.positions), weights)
            TOTAL["moves"] += len(found.positions)
        else:
            TOTAL["bits"] += 1.5 * self.probes
        TOTAL["steps"] += 1
        return found


@dataclass(frozen=True)
class Grouped(NoiseStep):
    """noise-step, whose moves are the best of 2^k seeded sets of n."""

    members: int = 4
    choices_bits: int = 12

    def decide(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> Flips:
        """Return the moves of the sets that were chosen."""
        assert isinstance(update, Dense)
        positions, moves, at = [], [], 0
        for index, (name, trits) in enumerate(ternary_parameters(net).items()):
            state, gradient = optimizer.state[trits], update.gradients[name].float()
            momentum = state.setdefault("momentum", torch.zeros_like(gradient))
            momentum.mul_(self.momentum).sub_(gradient / gradient.square().mean().sqrt().clamp_min(1e-30))
            rate = next(g["lr"] for g in optimizer.param_groups if any(p is trits for p in g["params"]))
            owed = state.get("owed", 0.0) + rate * trits.numel() / self.members
            state["owed"] = owed - int(owed)
            noise = Noise(0).stream("sets").sub(index).at(int(TOTAL["steps"]))
            places, steps = self._best(noise, int(owed), trits.view(-1), momentum.view(-1))
            wanted = momentum.view(-1)[places] * steps > 0
            momentum.view(-1)[places[wanted]] = 0
            positions.append(places + at)
            moves.append(steps)
            at += trits.numel()
            TOTAL["bits"] += int(owed) * self.choices_bits
            TOTAL["moves"] += len(places)
        TOTAL["steps"] += 1
        return Flips(torch.cat(positions), torch.cat(moves), losses=update.losses)

    def _best(self, noise: Noise, sets: int, trits: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places and moves of the best of the seeded sets, (sets members), each place once."""
        if not sets:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int8)
        shape = (sets, 1 << self.choices_bits, self.members)
        count = shape[0] * shape[1] * shape[2]
        drawn = noise.integers(count, 2 * len(trits)).view(shape)
        places, sign = drawn >> 1, (2 * (drawn & 1) - 1).to(torch.int8)
        steps = torch.where(trits[places] == 0, sign, -trits[places])  # a weight at -1 or 1 can go one way alone
        best = (momentum[places] * steps).sum(dim=2).argmax(dim=1)
        rows = torch.arange(sets)
        places, steps = places[rows, best].view(-1), steps[rows, best].view(-1)
        order = places.argsort(stable=True)
        places, steps = places[order], steps[order]
        first = torch.ones(len(places), dtype=torch.bool)
        first[1:] = places[1:] != places[:-1]
        return places[first], steps[first]


def rule_of(way: str, given: argparse.Namespace) -> NoiseStep:
    """Return the rule that a way names."""
    kind, *numbers = way.split()
    common = {"hidden": tuple(given.hidden), "momentum": given.momentum}
    if kind == "flips":
        share = float(numbers[0])
        return Counted(**common, flip_share=share, head_share=given.heads * share)
    if kind == "groups":
        share = float(numbers[0])
        return Grouped(
            **common, flip_share=share, head_share=given.heads * share, members=int(numbers[1]),
            choices_bits=int(numbers[2]),
        )  # fmt: skip
    threshold = int(numbers[1])
    update = {"update": "accumulators", "threshold": threshold} if threshold else {"update": "clamped-sum"}
    return Counted(
        **common, codec="trits", **update, probes=int(numbers[0]), density=given.density, schedule="constant",
        exclusive=True,
    )  # fmt: skip


def one(wanted: Row, given: argparse.Namespace) -> Row:
    """Train once."""
    TOTAL.update(bits=0.0, bound=0.0, moves=0, steps=0)
    options = Options(epochs=given.epochs, batch=given.batch, decay="cosine", seed=wanted["seed"])
    split = data.load(given.data, validation=given.validation)
    result = train(rule_of(wanted["way"], given), split, options).result
    found = {name: round(100 * result[f"{name}_accuracy"], 2) for name in ("validation", "test")}
    packed = -(-result["parameters"] // 5)
    return wanted | found | {"bytes": round(TOTAL["bits"] / 8), "bound": round(TOTAL["bound"] / 8), "packed": packed,
                             "moves": TOTAL["moves"], "steps": TOTAL["steps"]}  # fmt: skip


def table(rows: list[Row]) -> None:
    """Print the means over seeds as Markdown."""
    print("| setting | way | bytes | bound | moves | validation % | test % | seeds |\n" + "|---" * 8 + "|")
    for setting, way in dict.fromkeys((row["setting"], row["way"]) for row in rows):
        own = [row for row in rows if row["way"] == way and row["setting"] == setting]
        mean = {name: statistics.mean(row[name] for row in own) for name in ("bytes", "bound", "moves")}
        score = {name: statistics.mean(row[name] for row in own) for name in ("validation", "test")}
        error = statistics.stdev(row["test"] for row in own) / len(own) ** 0.5 if len(own) > 1 else float("nan")
        print(
            f"| {setting} | {way} | {mean['bytes']:,.0f} | {mean['bound']:,.0f} | {mean['moves']:,.0f} | "
            f"{score['validation']:.2f} | {score['test']:.2f} ({error:.2f}) | {len(own)} |"
        )


def main() -> None:
    """Train what is missing; one row a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--validation", type=float, default=0.2)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--momentum", type=float, default=0.95)
    parser.add_argument("--heads", type=float, default=4, help="the heads' share of flips beside that of the stages")
    parser.add_argument("--density", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=["flips 0.001", "groups 0.001 4 12"])
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = kept_rows(given.rows)
    if given.table:
        return table(rows)
    setting = f"{given.data} {given.hidden} {given.epochs} x {given.batch}, momentum {given.momentum:g}"
    done = {row_key(row, ("setting", "way", "seed")) for row in rows}
    for way in given.ways:
        for seed in given.seeds:
            wanted = {"setting": setting, "way": way, "seed": seed}
            if row_key(wanted, ("setting", "way", "seed")) not in done:
                keep_row(given.rows, one(wanted, given))
    return None


if __name__ == "__main__":
    main()
