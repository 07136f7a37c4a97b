"""What spsa's defaults are worth: step sizes, sides and noise at equal numbers of forward passes.

    python -m experiments.zeroth_order_ablation digits | text | changed [--only WORD]

Three seeds; what a way leaves open (a learning rate) is chosen on the validation split, for each way by itself.
`changed` fine-tunes a GPT that back-propagation has trained on prose (Python's help) to another text (Python's source).
"""

import argparse
import functools
import inspect
import itertools
import pydoc_data.topics
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from experiments.given import a_count
from sidestep import attach, data, train
from sidestep.noise import Noise
from sidestep.rules import SPSA, Backprop
from sidestep.training import Options

SEEDS = (0, 1, 2)
RATES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
WIDTH, LENGTH, BATCH = 32, 32, 16


@dataclass(frozen=True)
class Way:
    """A rule, the forward passes of its step, and the learning rates to choose from."""

    rule: SPSA | Backprop
    passes: float  # a step of back-propagation counts as three
    rates: tuple[float | None, ...] = (None,)


PAIR = SPSA(pairs=1, sides="both", learning_rate=1e-3)
WAYS = {
    "default: 32 one-sided, step size found": Way(SPSA(), 36),
    "16 pairs, step size found": Way(SPSA(pairs=16, sides="both"), 36),
    "8 one-sided, step size found": Way(SPSA(pairs=8), 12),
    "one pair, step size found": Way(SPSA(pairs=1, sides="both"), 6),
    "32 one-sided, fixed rate": Way(SPSA(learning_rate=1e-3), 33, RATES),
    "32 one-sided, rate by the spread (FZOO)": Way(SPSA(learning_rate=1e-3, spread=True), 33, RATES),
    "one pair, fixed rate": Way(PAIR, 2, RATES),
    "one pair, fixed rate, momentum (the former default)": Way(replace(PAIR, optimizer_kind="sgd"), 2, RATES),
    "default with normal values": Way(SPSA(distribution="gaussian"), 36),
    "default with sparse noise": Way(SPSA(distribution="sparse"), 36),
    "default with rank-one noise": Way(SPSA(distribution="rank-one"), 36),
}
ADAM = "back-propagation, AdamW, a tenth of the passes"
CHANGED = {ADAM: Way(Backprop(), 30, (1e-3, 3e-3, 1e-2)), **WAYS}


def on_digits(rule: SPSA, steps: int, seed: int) -> tuple[float, float]:
    """Return validation and test accuracy, in percent."""
    result = train(rule, data.load("digits"), Options(steps=steps, seed=seed)).result
    return 100 * result["validation_accuracy"], 100 * result["test_accuracy"]


class Block(nn.Module):
    """Causal attention and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.merge = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows of the same shape."""
        parts = self.mix(self.before(rows)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        rows = rows + self.merge(scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))
        return rows + self.mlp(self.between(rows))


class GPT(nn.Module):
    """A GPT of two blocks, 29,000 weights."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks, self.output = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, (batch, length, characters)."""
        return self.output(self.blocks(self.characters(tokens) + self.places.weight[: tokens.shape[1]]))


def text() -> tuple[Tensor, Tensor, Tensor, int]:
    """Return characters as numbers: for training, validation and test, and how many kinds there are."""
    words = " ".join(line.strip() for line in itertools.__doc__.splitlines()) + str(argparse.__doc__)
    words = (words + " ".join(str(module.__doc__) for module in (statistics, torch.optim.SGD, nn.Transformer)))[:12_000]
    kinds = sorted(set(words))
    tokens = torch.tensor([kinds.index(character) for character in words])
    cuts = (len(tokens) * 8 // 10, len(tokens) * 9 // 10)
    return tokens[: cuts[0]], tokens[cuts[0] : cuts[1]], tokens[cuts[1] :], len(kinds)


def on_text(rule: SPSA | Backprop, steps: int, seed: int) -> tuple[float, float]:
    """Return minus the bits a character, of validation and test."""
    own, *others, kinds = text()
    with Noise(seed).torch_seeded():
        model = GPT(kinds)
    taught(model, rule, own, steps, seed)
    return bits(model, others[0]), bits(model, others[1])


def on_changed_text(rule: SPSA | Backprop, steps: int, seed: int) -> tuple[float, float]:
    """Return minus the bits a character of source code, of validation and test, after prose."""
    code = help_and_source()[1]
    model = GPT(128)
    model.load_state_dict(learned(seed))
    cuts = (len(code) * 8 // 10, len(code) * 9 // 10)
    if steps:
        taught(model, rule, code[: cuts[0]], steps, seed)
    return bits(model, code[cuts[0] : cuts[1]]), bits(model, code[cuts[1] :])


@functools.cache
def learned(seed: int) -> dict[str, Tensor]:
    """Return the weights of the model after prose."""
    with Noise(seed).torch_seeded():
        model = GPT(128)
    taught(model, Backprop(learning_rate=3e-3), help_and_source()[0], 1500, seed)
    return model.state_dict()


@functools.cache
def help_and_source() -> tuple[Tensor, Tensor]:
    """Return the help of Python's language, and the source of its module `statistics`, as ASCII."""
    prose = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    parts = (prose[:200_000], inspect.getsource(statistics))
    return tuple(torch.tensor([min(ord(sign), 127) for sign in part]) for part in parts)  # type: ignore[return-value]


def taught(model: GPT, rule: SPSA | Backprop, own: Tensor, steps: int, seed: int) -> None:
    """Take the steps of a rule on rows of a text."""
    step, noise = attach(model, rule, seed=seed), Noise(seed).stream("rows")
    for number in range(steps):
        starts = noise.at(number).integers(BATCH, len(own) - LENGTH - 1)
        rows = own[starts[:, None] + torch.arange(LENGTH + 1)]
        step(lambda rows=rows: loss(model, rows))


def loss(model: GPT, rows: Tensor) -> Tensor:
    """Return the mean cross-entropy of next characters, in nats."""
    return cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def bits(model: GPT, part: Tensor) -> float:
    """Return minus the bits a character of a text."""
    with torch.no_grad():
        rows = part[: len(part) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
        return -float(loss(model, rows)) / 0.693147


def rows(task: str, passes: int, only: str) -> Iterator[str]:
    """Yield a line of the table for each way that has a word in its name."""
    measure = {"digits": on_digits, "text": on_text, "changed": on_changed_text}[task]
    ways = CHANGED if task == "changed" else WAYS
    for label, way in ((label, way) for label, way in ways.items() if only in label):
        found = {}
        for rate in way.rates:
            rule = way.rule if rate is None else replace(way.rule, learning_rate=rate)
            try:
                found[rate] = [measure(rule, int(passes / way.passes), seed) for seed in SEEDS]
            except Exception as error:  # a rate that diverges is a result
                print(f"  {label}, {rate}: {type(error).__name__}", flush=True)
        best = max(found, key=lambda rate: statistics.mean(score for score, _ in found[rate]))
        tests = [test for _, test in found[best]]
        chosen = "" if best is None else f"{best:g}"
        mean, spread = statistics.mean(tests), statistics.stdev(tests)
        yield f"| {label} | {chosen} | {mean:.2f} ({spread:.2f}) |"


def main() -> None:
    """Print the table of one task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("digits", "text", "changed"))
    parser.add_argument("--passes", type=a_count, default=3600)
    parser.add_argument("--only", default="", help="ways that have this word in their name")
    given = parser.parse_args()
    print("| way | rate chosen | test, mean (deviation) |\n|---|---|---|")
    if given.task == "changed":
        before = [on_changed_text(SPSA(), 0, seed)[1] for seed in SEEDS]
        print(f"| before | | {statistics.mean(before):.2f} ({statistics.stdev(before):.2f}) |", flush=True)
    for row in rows(given.task, given.passes, given.only):
        print(row, flush=True)


if __name__ == "__main__":
    main()
