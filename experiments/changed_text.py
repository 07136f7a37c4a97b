"""A GPT goes on to another text: learned feedback on its tokens beside back-propagation, by processor time.

    python -m experiments.changed_text run FILE.jsonl [--seeds 0,1,2] [--ways WORD]
    python -m experiments.changed_text table FILE.jsonl

The model and the texts are those of `zeroth_order_ablation changed`. A row is one way, rate and seed; those that the
file has are not run again. Of the rates of a way the table has the one that is best on the validation part, by the mean
over seeds; the seconds are the processor's, of training alone.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.kept_rows import keep_row, kept_as, mean_and_deviation
from experiments.zeroth_order_ablation import BATCH, GPT, LENGTH, SEEDS, bits, help_and_source, learned, loss
from sidestep.noise import Noise
from sidestep.training.learned_feedback import LearnedFeedback

STEPS = 120  # of back-propagation
Step = Callable[[Tensor], object]  # fills `.grad` from rows of characters, (BATCH, LENGTH + 1)


@dataclass(frozen=True)
class Way:
    """How gradients come about: model, seed -> a step; which parts it trains, for how long, at which rates."""

    make: Callable[[GPT, int], Step]
    passes: int  # forward passes of a step; a backward pass counts as two
    steps: int = STEPS
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    parts: tuple[str, ...] = ("",)
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam


def by_backprop(micro: int = 1) -> Callable[[GPT, int], Step]:
    """Return back-propagation in some micro-batches."""

    def make(model: GPT, seed: int) -> Step:
        def step(rows: Tensor) -> None:
            for part in rows.chunk(micro):
                (loss(model, part) / micro).backward()

        return step

    return make


def by_feedback(**settings: int) -> Callable[[GPT, int], Step]:
    """Return learned feedback; the embeddings and norms stay as they are."""

    def make(model: GPT, seed: int) -> Step:
        for part in model.modules():
            if not isinstance(part, nn.Linear):
                for parameter in part.parameters(recurse=False):
                    parameter.requires_grad_(False)
        estimate = LearnedFeedback(model, "tokens", seed=seed, **settings)
        return lambda rows: estimate(rows[:, :-1], rows[:, 1:])

    return make


LAST = ("blocks.1.mlp", "output")
WAYS = {
    "before": Way(by_backprop(), 3, 0, rates=(0.0,)),
    "Adam": Way(by_backprop(), 3),
    "Adam, last MLP and output layer": Way(by_backprop(), 3, parts=LAST),
    "plain SGD, 16 micro-batches": Way(by_backprop(BATCH), 3, rates=(0.1, 0.3, 1.0), optimizer=torch.optim.SGD),
    "learned feedback, last MLP and output layer": Way(by_feedback(bins=4), 2, 400, rates=(1e-2,), parts=LAST),
    "learned feedback, all dense layers": Way(by_feedback(bins=4), 2, 160, rates=(3e-3,)),
    "learned feedback, output layer alone": Way(by_feedback(), 2, 600, rates=(1e-2,), parts=("output",)),
}


@dataclass(frozen=True)
class Row:
    """Bits a character, forward passes, processor seconds."""

    way: str
    rate: float
    seed: int
    validation: float
    test: float
    passes: int
    seconds: float


def run(label: str, rate: float, seed: int) -> Row:
    """Return one row; rates rise over a twentieth of all steps and fall along a cosine."""
    way, code, model = WAYS[label], help_and_source()[1], GPT(128)
    model.load_state_dict(learned(seed))
    cuts = (len(code) * 8 // 10, len(code) * 9 // 10)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(way.parts))
    step, noise = way.make(model, seed), Noise(seed).stream("rows")
    optimizer, begun = way.optimizer([p for p in model.parameters() if p.requires_grad], lr=rate), time.process_time()
    for number in range(way.steps):
        done = number / way.steps
        optimizer.param_groups[0]["lr"] = rate * min(1, 20 * done + 0.01) * (1 + math.cos(math.pi * done)) / 2
        starts = noise.at(number).integers(BATCH, cuts[0] - LENGTH - 1)
        optimizer.zero_grad()
        step(code[starts[:, None] + torch.arange(LENGTH + 1)])
        optimizer.step()
    seconds = time.process_time() - begun
    parts = (code[cuts[0] : cuts[1]], code[cuts[1] :])
    return Row(label, rate, seed, *(-bits(model, part) for part in parts), way.steps * way.passes, seconds)


def rows_of(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return kept_as(Row, path)


def table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the table: mean and standard deviation over seeds."""
    yield "| way | rate | bits, validation | bits, test | passes | processor seconds |\n|---|---|---|---|---|---|"
    for label in dict.fromkeys(row.way for row in rows):
        rates = {row.rate for row in rows if row.way == label and math.isfinite(row.validation)}  # others diverge
        by_rate = {rate: [row for row in rows if (row.way, row.rate) == (label, rate)] for rate in rates}
        best = min(rates, key=lambda rate, by=by_rate: statistics.mean(row.validation for row in by[rate]))
        own = by_rate[best]
        tests = [row.test for row in own]
        yield (
            f"| {label} | {best:g} | {statistics.mean(row.validation for row in own):.2f} "
            f"| {mean_and_deviation(tests, 2)} | {own[0].passes} "
            f"| {statistics.mean(row.seconds for row in own):.1f} |"
        )


def main() -> None:
    """Run rows that are missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--ways", default="", help="ways that have this word in their name")
    given = parser.parse_args()
    if given.command == "table":
        print("\n".join(table(rows_of(given.file))))
        return
    for seed in map(int, given.seeds.split(",")):
        for label, way in WAYS.items():
            for rate in way.rates if given.ways in label else ():
                if (label, rate, seed) not in {(row.way, row.rate, row.seed) for row in rows_of(given.file)}:
                    row = run(label, rate, seed)
                    keep_row(given.file, asdict(row))


if __name__ == "__main__":
    main()
