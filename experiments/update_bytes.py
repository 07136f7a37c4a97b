"""Accuracy of a fine-tune over the bytes that it takes to keep: a log of seeded steps beside adapters.

    python -m experiments.update_bytes --rows update-bytes.jsonl --most 400      again and again, until nothing is left
    python -m experiments.update_bytes --rows update-bytes.jsonl --plot update-bytes.png

An MLP of 86,026 weights that Adam has trained on the 8 x 8 digits goes on to digits that are moved by a pixel. Bytes
are those of the update alone: four for each direction of a log, two for each number of an adapter in half precision, or
one and a scale of two bytes for each row in int8. Every way has three rates at seed 0; the best on validation, at each
size, is trained from two seeds more.
"""

import argparse
import copy
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import sidestep
from experiments.kept_rows import Row, keep_row, kept_rows, mean_and_deviation
from sidestep import data
from sidestep.noise import Noise
from sidestep.rules import SPSA

SEEDS, BATCH, STEPS, WIDTH = (0, 1, 2), 64, 400, 256
SPSA_TOO = ", by spsa"  # 8 directions a step, whose size finds itself
RATES = {
    "log of spsa, all weights": (3e-3, 1e-2, 3e-2),
    "log of spsa, norms and biases": (3e-2, 1e-1, 3e-1),
    "output layer, fitted": (1e-3, 1e-2, 1e-1),  # penalties of ridge regression
    "TinyLoRA": (0.1, 0.3, 1.0, 3.0),
    **{f"TinyLoRA {numbers}, by spsa": (0.0,) for numbers in (13, 50, 250, 1000)},
}
ADAM_RATES = (1e-3, 3e-3, 1e-2)
PAIRS, LOG_SIZES = 8, (16, 32, 64, 128, 512, 2048)  # directions a step, and in the whole log
LORA, TINY, FACTORS = (1, 2, 4, 8, 32), (13, 50, 250, 1000), 32
WAYS = (
    *("output layer, fitted", "norms and biases", "all weights", "log of spsa, all weights"),
    *(f"LoRA {rank}" for rank in LORA),
    *(f"TinyLoRA {numbers}" for numbers in TINY),
    *(f"TinyLoRA {numbers}{SPSA_TOO}" for numbers in TINY),
    "log of spsa, norms and biases",
)
Values = dict[str, Tensor]


def sets(moved: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """Return train, validation and test, (n, 64), in units of the training images."""
    digits, found = data.load("digits"), {}
    pixels = digits.train.images.float()
    for name in ("train", "validation", "test"):
        split = getattr(digits, name)
        images = (split.images.float() - pixels.mean()) / pixels.std()
        found[name] = ((images.roll((1, 1), (-2, -1)) if moved else images).flatten(1), split.labels)
    return found


@cache
def pretrained(seed: int) -> nn.Sequential:
    """Return the net that was trained on digits which stand where they did."""
    with Noise(seed).torch_seeded():
        net = nn.Sequential(nn.Linear(64, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(),
                            nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))  # fmt: skip
    weights: Values = dict(net.named_parameters())
    descend(net, weights, lambda: weights, sets(moved=False)["train"], seed + 100, 1e-3)
    return net.requires_grad_(False)


def start(seed: int) -> nn.Sequential:
    """Return a copy of it."""
    return copy.deepcopy(pretrained(seed))


def batches(split: tuple[Tensor, Tensor], seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches that are drawn from the seed."""
    for step in range(steps):
        chosen = Noise(seed).stream("batches").at(step).integers(BATCH, len(split[0]))
        yield split[0][chosen], split[1][chosen]


def descend(  # long: a whole training
    net: nn.Module, moving: Values, used: Callable[[], Values], split: tuple[Tensor, Tensor], seed: int, rate: float
) -> None:
    """Train tensors by Adam; `used` are the weights that the net has with them."""
    optimizer = torch.optim.Adam([each.requires_grad_() for each in moving.values()], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for inputs, labels in batches(split, seed, STEPS):
        optimizer.zero_grad()
        cross_entropy(functional_call(net, used(), (inputs,)), labels).backward()
        optimizer.step()
        schedule.step()


def scores(net: nn.Module, weights: Values, found: dict[str, tuple[Tensor, Tensor]]) -> Row:
    """Return accuracy on test, accuracy and loss on validation."""
    with torch.no_grad():
        outputs = {name: functional_call(net, weights, (found[name][0],)) for name in ("validation", "test")}
    right = {name: float((out.argmax(dim=1) == found[name][1]).float().mean()) for name, out in outputs.items()}
    return {**right, "validation_nll": float(cross_entropy(outputs["validation"], found["validation"][1]))}


def half(values: Values) -> tuple[Values, int]:
    """Return tensors as half precision keeps them, and its bytes."""
    return {name: value.detach().half().float() for name, value in values.items()}, 2 * size(values)


def eighth(values: Values) -> tuple[Values, int]:
    """Return tensors as int8 with a scale for each row keeps them, and its bytes."""
    kept, total = {}, 0
    for name, value in values.items():
        rows = value.detach().view(-1, value.shape[-1])
        scale = (rows.abs().amax(dim=1, keepdim=True) / 127).half().float().clamp_min(1e-7)
        kept[name] = ((rows / scale).round().clamp(-127, 127) * scale).view(value.shape)
        total += rows.numel() + 2 * len(rows)
    return kept, total


def size(values: Values) -> int:
    """Return how many numbers there are."""
    return sum(value.numel() for value in values.values())


def adapter(way: str, net: nn.Module, seed: int) -> tuple[Values, Callable[[Values], Values]]:
    """Return what is trained, and what makes the net's weights of it."""
    own: Values = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    matrices = [name for name, weight in own.items() if weight.ndim == 2]
    noise, number = Noise(seed).stream("adapter"), int(way.split()[-1]) if way[-1].isdecimal() else 0
    if way.startswith("LoRA"):
        moving: Values = {}
        for name in matrices:
            rows, columns = own[name].shape
            drawn = noise.stream(name).normal(number * columns).view(number, columns)
            moving |= {f"{name} a": drawn / columns**0.5, f"{name} b": torch.zeros(number, rows)}
        return moving, lambda made: own | {n: own[n] + made[f"{n} b"].T @ made[f"{n} a"] for n in matrices}
    if way.startswith("TinyLoRA"):  # W + U S (sum_i v_i P_i) V^T: the largest singular values, P random
        parts = {}
        for name in matrices:
            left, values, right = torch.linalg.svd(own[name], full_matrices=False)
            rank = min(FACTORS, len(values))
            drawn = noise.stream(name).normal(number * rank**2).view(number, rank, rank) / number**0.5
            parts[name] = (left[:, :rank] * values[:rank], drawn, right[:rank])

        def added(made: Values) -> Values:
            cores = {n: torch.einsum("u,uij->ij", made["v"], parts[n][1]) for n in matrices}
            return own | {n: own[n] + parts[n][0] @ cores[n] @ parts[n][2] for n in matrices}

        return {"v": torch.zeros(number)}, added
    chosen = [name for name, weight in own.items() if way == "all weights" or weight.ndim == 1]
    moving = {name: torch.zeros_like(own[name]) for name in chosen}
    return moving, lambda made: own | {name: own[name] + made[name] for name in chosen}


class Adapted(nn.Module):
    """A net with an adapter, which is all that is trained."""

    def __init__(self, net: nn.Module, made: Values, used: Callable[[Values], Values]) -> None:
        super().__init__()
        self.numbers, self.frozen = nn.ParameterDict({name: nn.Parameter(made[name]) for name in made}), (net, used)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs."""
        net, used = self.frozen
        return functional_call(net, used(dict(self.numbers)), (inputs,))


def fitted(net: nn.Sequential, found: dict[str, tuple[Tensor, Tensor]], penalty: float) -> Values:
    """Return the change of the output layer to that of ridge regression on what the net before it gives."""
    with torch.no_grad():
        features = net[:-1](found["train"][0])
        features = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
        wanted = torch.nn.functional.one_hot(found["train"][1], 10).double() * 2 - 1
        gram = features.T @ features
        made = torch.linalg.solve(gram + penalty * gram.trace() / len(gram) * torch.eye(len(gram)), features.T @ wanted)
    return {"6.weight": made[:-1].T.float() * 3, "6.bias": made[-1].float() * 3}


def run(way: str, rate: float, seed: int) -> Iterator[Row]:
    """Fine-tune once, and yield a row for every size that it can be kept in."""
    net, found, began = start(seed), sets(moved=True), time.process_time()
    told = {"way": way, "rate": rate, "seed": seed}
    if way.startswith("log"):
        for weight in net.parameters():
            weight.requires_grad_("all" in way or weight.ndim == 1)
        step = sidestep.attach(net, SPSA(pairs=PAIRS, learning_rate=rate), seed=seed)
        for inputs, labels in batches(found["train"], seed, max(LOG_SIZES) // PAIRS):
            step(lambda inputs=inputs, labels=labels: cross_entropy(net(inputs), labels))
            if step.steps * PAIRS in LOG_SIZES:
                kept = 4 * PAIRS * step.steps + 16  # seed and rate once
                seconds = round(time.process_time() - began, 1)
                yield {**told, "bytes": kept, "seconds": seconds, **scores(net, dict(net.named_parameters()), found)}
        return
    if way == "output layer, fitted":
        own = {name: weight.detach() for name, weight in net.named_parameters()}
        made, used = fitted(net, found, rate), lambda values: own | values
    else:
        made, used = adapter(way.removesuffix(SPSA_TOO), net, seed)
    if way.endswith(SPSA_TOO):
        model = Adapted(net, made, used)
        step = sidestep.attach(model, SPSA(pairs=PAIRS), seed=seed)
        for inputs, labels in batches(found["train"], seed, STEPS):
            step(lambda inputs=inputs, labels=labels: cross_entropy(model(inputs), labels, reduction="none"))
        made = dict(model.numbers)
    elif way != "output layer, fitted":
        descend(net, made, lambda: used(made), found["train"], seed, rate)
    for name, keep in (("", half), (", int8", eighth)):
        kept, count = keep(made)
        seconds = round(time.process_time() - began, 1)
        yield {**told, "way": way + name, "bytes": count, "seconds": seconds, **scores(net, used(kept), found)}


def rates(way: str) -> tuple[float, ...]:
    """Return what is tried: learning rates, or penalties of the fitted layer."""
    return RATES.get(way.rstrip("0123456789 "), ADAM_RATES)


def curve(rows: list[Row]) -> Iterator[tuple[str, int, float, list[Row]]]:
    """Yield way, bytes, chosen rate and rows of the chosen rate, for what is complete at seed 0."""
    for way, count in sorted({(row["way"], row["bytes"]) for row in rows}, key=lambda each: each[::-1]):
        own = [row for row in rows if (row["way"], row["bytes"]) == (way, count)]
        tried = set(rates(way.removesuffix(", int8")))
        losses = {row["rate"]: row["validation_nll"] for row in own if row["seed"] == 0 and row["rate"] in tried}
        finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
        if losses.keys() == tried and finite:
            rate = min(finite, key=finite.__getitem__)
            yield way, count, rate, [row for row in own if row["rate"] == rate]


def left(rows: list[Row]) -> Iterator[tuple[str, float, int]]:
    """Yield what has no rows yet."""
    done = {(row["way"].removesuffix(", int8"), row["rate"], row["seed"]) for row in rows}
    for way in WAYS:
        yield from ((way, rate, 0) for rate in rates(way) if (way, rate, 0) not in done)
        chosen = {rate for name, _, rate, _ in curve(rows) if name.removesuffix(", int8") == way}
        yield from ((way, rate, s) for rate in sorted(chosen) for s in SEEDS[1:] if (way, rate, s) not in done)


def page(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table, by bytes."""
    yield "| bytes | way | test, mean (deviation) | rate |\n|---|---|---|---|"
    for way, count, rate, own in curve(rows):
        tests = [100 * row["test"] for row in own]
        if len(tests) == len(SEEDS):
            yield f"| {count:,} | {way} | {mean_and_deviation(tests, 1)} | {rate:g} |"


def plot(rows: list[Row], path: Path) -> None:
    """Draw accuracy over bytes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    families: dict[str, list[tuple[int, float, float]]] = {}
    for way, count, _, own in curve(rows):
        family = re.sub(r" \d+", "", way)
        tests = [100 * row["test"] for row in own]
        if len(tests) == len(SEEDS):
            families.setdefault(family, []).append((count, statistics.mean(tests), statistics.stdev(tests)))
    for family, points in sorted(families.items()):
        style = "--" if "int8" in family else "-"
        axes.errorbar(*map(list, zip(*points, strict=True)), marker="o", ms=4, ls=style, capsize=2, label=family)
    axes.set(xscale="log", xlabel="bytes of the update", ylabel="test accuracy, %")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Take the runs that are left, or print the table and draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("update-bytes.jsonl"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--most", type=float, default=400, help="processor seconds after which no run is begun")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = kept_rows(given.rows)
    if given.plot:
        print("\n".join(page(rows)))
        plot(rows, given.plot)
        return
    while time.process_time() < given.most and (following := next(left(rows), None)):
        made = list(run(*following))
        rows += made
        for row in made:
            keep_row(given.rows, row)


if __name__ == "__main__":
    main()
