"""What a step takes over the built model in a fresh process: inference, zeroth order and back-propagation.

    python benchmarks/zeroth_order_memory.py

A GPT of 4.8 M weights on 16 x 128 tokens, one thread. Each way gets a process of its own; what counts is by how much
the resident set grows at its peak over the model with its batch, after a tiny model has warmed the libraries.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from sidestep import attach, rules
from sidestep.measure import memory_growth
from sidestep.measure.memory import return_freed_memory
from sidestep.nets import quantize
from sidestep.noise import Noise

CHARACTERS, WIDTH, LAYERS, LENGTH, BATCH = 65, 256, 6, 128, 16
SIZES = {"small": (WIDTH, LAYERS), "large": (512, 8)}
WAYS = {
    "inference": "forward pass without derivatives",
    "spsa": "SPSA(): 32 directions, and a step size that finds itself",
    "spsa pair": "SPSA(pairs=1, sides='both', learning_rate=1e-5)",
    "spsa pair gaussian": "the same with normal values, drawn again for every pass",
    "spsa pair momentum": "the same by sgd, whose momentum is one copy of the weights",
    "backprop sgd": "plain SGD, the whole batch",
    "backprop sgd micro": "plain SGD, 16 micro-batches",
    "backprop adam": "Adam, the whole batch",
    "backprop adam micro": "Adam, 16 micro-batches",
    "int8 inference": "forward pass of the quantised model (its linear and embedding weights int8)",
    "int8 spsa": "SPSA() on it",
    "int8 spsa pair": "SPSA(pairs=1, sides='both', learning_rate=1e-5) on it",
}


class Block(nn.Module):
    """Causal attention and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows of the same shape."""
        parts = self.mix(self.before(rows)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
        rows = rows + self.merge(seen)
        return rows + self.mlp(self.between(rows))


class GPT(nn.Module):
    """A GPT whose output layer is its embedding."""

    def __init__(self, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, CHARACTERS, bias=False)
        self.output.weight = self.characters.weight
        nn.init.normal_(self.characters.weight, std=0.02, generator=Noise(1).generator())

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, (batch, length, characters)."""
        rows = self.characters(tokens) + self.places.weight[: tokens.shape[1]]
        return self.output(self.norm(self.blocks(rows)))


def stepper(way: str, model: GPT, tokens: Tensor) -> object:
    """Return a function that takes one step."""

    def loss(part: Tensor) -> Tensor:
        return cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())

    if way.endswith("inference"):
        return torch.no_grad()(lambda: loss(tokens))
    if "spsa" in way:
        kind, noise = ("sgd" if "momentum" in way else "plain-sgd"), ("gaussian" if "gaussian" in way else "signs")
        pair = rules.SPSA(pairs=1, sides="both", learning_rate=1e-5, optimizer_kind=kind, distribution=noise)
        step = attach(model, pair if "pair" in way else rules.SPSA(), seed=0)
        return lambda: step(lambda: loss(tokens))
    kind = torch.optim.Adam if "adam" in way else torch.optim.SGD
    optimizer, parts = kind(model.parameters(), lr=1e-5), 16 if "micro" in way else 1

    def stepped() -> None:
        for part in tokens.chunk(parts):
            (loss(part) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return stepped


def one(way: str, size: str) -> dict[str, float]:
    """Measure one way in this process."""
    torch.set_num_threads(1)
    return_freed_memory()
    ids = Noise(0).integers(BATCH * (LENGTH + 1), CHARACTERS).view(BATCH, LENGTH + 1)
    with Noise(0).torch_seeded():
        tiny, model = GPT(16, 1, LENGTH), GPT(*SIZES[size], LENGTH)
    if way.startswith("int8"):
        tiny, model = quantize(tiny), quantize(model)
    built = sum(p.numel() * p.element_size() for p in model.parameters())
    for warm in (way,) if way.startswith("int8") else (way, "backprop adam"):
        stepper(warm, tiny, ids[:2])()
    step, seconds = stepper(way, model, ids), []
    with memory_growth() as growth:
        for _ in range(4):
            before = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - before)
    weights = sum(p.numel() for p in model.parameters())
    return {"bytes": growth.bytes, "seconds": statistics.median(seconds[1:]), "weights": weights, "built": built}


def main() -> None:
    """Measure all ways, each in a process of its own, and print a table; int8 ways beside inference in int8."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--size", choices=SIZES, default="small", help="large: 512 wide, 8 layers, 25 M weights")
    parser.add_argument("--int8", action="store_true", help="the int8 ways alone")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(one(given.way, given.size)))
        return
    print("| way | MiB over the model | times inference | with the weights, MiB | times inference | s a step |")
    print("|---|---|---|---|---|---|")
    base: dict[str, float] = {}
    for way, words in WAYS.items():
        if given.int8 and not way.startswith("int8"):
            continue
        command = [sys.executable, __file__, "--way", way, "--size", given.size]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        if way.endswith("inference"):
            base = found
        over, whole = found["bytes"], found["bytes"] + found["built"]
        print(
            f"| {way}: {words} | {over / 2**20:.1f} | {over / base['bytes']:.2f} | {whole / 2**20:.1f} "
            f"| {whole / (base['bytes'] + base['built']):.2f} | {found['seconds']:.2f} |",
            flush=True,
        )
    print(f"\n{found['weights']:,.0f} weights")


if __name__ == "__main__":
    main()
