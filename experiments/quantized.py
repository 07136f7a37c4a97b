"""Whole-numbered weights trained by forward passes: what the error feedback does, beside floats and float latents.

    python -m experiments.quantized --rows quantized.jsonl --most 400      again and again, until nothing is left
    python -m experiments.quantized --rows quantized.jsonl --page

An MLP of 4,810 weights on the 8 x 8 digits: from scratch, and a fine-tune of a net trained in floats to digits that are
moved by a pixel, that also with 4 bits. Each way has three rates at seed 0; that with the least
validation loss is trained from two seeds more.
"""

import argparse
import copy
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import sidestep
from experiments.kept_rows import Row, keep_row, kept_rows, mean_and_deviation
from sidestep import data
from sidestep.nets import quantize
from sidestep.nets.quantized import quantized_weights
from sidestep.noise import Noise
from sidestep.rules import SPSA
from sidestep.rules.shared import error_feedback

SEEDS, BATCH = (0, 1, 2), 64
TASKS = {"scratch": 600, "fine-tune": 400}
SPSA_RATES = {"scratch": (0.01, 0.03, 0.1), "fine-tune": (0.003, 0.01, 0.03)}
ADAM_RATES = (3e-4, 1e-3, 3e-3)
HEADROOM = {"scratch": 4.0, "fine-tune": 2.0}
WAYS: dict[str, tuple[Any, str]] = {
    "float spsa": (0, "float"),
    "int8 spsa, window 16": (8, "window"),
    "int8 spsa, residual stored": (8, "stored"),
    "int8 spsa, stochastic rounding": (8, "each"),
    "int8 spsa, decaying residual (QES)": (8, "decaying"),
    "int8 spsa, to the nearest, no feedback": (8, "nearest"),
    "int8 Adam, straight through, float latents": (8, "latents"),
    "4 bits, spsa, window 16": (4, "window"),
    "4 bits, spsa, to the nearest, no feedback": (4, "nearest"),
    "4 bits, spsa, decaying residual (QES)": (4, "decaying"),
    "4 bits, Adam, straight through, float latents": (4, "latents"),
}
Sets = dict[str, tuple[Tensor, Tensor]]


def sets(moved: bool) -> Sets:
    """Return train, validation and test, (n, 64), in units of the training images."""
    digits, found = data.load("digits"), {}
    pixels = digits.train.images.float()
    for name in ("train", "validation", "test"):
        split = getattr(digits, name)
        images = (split.images.float() - pixels.mean()) / pixels.std()
        images = images.roll((1, 1), (-2, -1)) if moved else images
        found[name] = (images.flatten(1), split.labels)
    return found


def batches(split: tuple[Tensor, Tensor], seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches that are drawn from the seed."""
    noise = Noise(seed).stream("batches")
    for step in range(steps):
        chosen = noise.at(step).integers(BATCH, len(split[0]))
        yield split[0][chosen], split[1][chosen]


def start(task: str, seed: int) -> nn.Module:
    """Return the untrained net, or the one that was trained in floats on digits that stand where they did."""
    with Noise(seed).torch_seeded():
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    if task == "fine-tune":
        descend(net, 0, 1.0, sets(moved=False), seed + 100, 600, 1e-3)
    return net


def descend(  # long: a whole training
    net: nn.Module, bits: Any, headroom: float, found: Sets, seed: int, steps: int, rate: float
) -> nn.Module:
    """Train float latents by Adam through rounding, and return the net that is used; bits = 0 rounds nothing."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    grids = quantized_weights(quantize(copy.deepcopy(net), bits, headroom)) if bits else {}

    def rounded() -> dict[str, Tensor]:
        values: dict[str, Tensor] = dict(net.named_parameters())
        for name, (_, scale, limit) in grids.items():
            latent, own = values[name], scale[:, None]
            values[name] = latent + ((latent / own).round().clamp(-limit, limit) * own - latent).detach()
        return values

    for inputs, labels in batches(found["train"], seed, steps):
        cross_entropy(functional_call(net, rounded(), (inputs,)), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    used = copy.deepcopy(net)
    used.load_state_dict({name: value.detach() for name, value in rounded().items()})
    return used


@contextmanager
def rounding(kind: str) -> Iterator[None]:
    """Put another way of rounding in the place of the library's; what it keeps is kept here."""
    kept: dict[str, Tensor] = {}

    def change(name: str, weight: Tensor, scale: Tensor, rows: slice, along: Any, noise: Noise) -> Tensor:
        directions, coefs = along[-1]
        place = range(rows.start * weight.shape[1], rows.stop * weight.shape[1])
        wish = -directions.elements(name, coefs, 0, weight, place).view(-1, weight.shape[1]) / scale[rows, None]
        if kind == "stored":
            dither = noise.at(0).uniform(len(place), place.start).view(wish.shape)
            before = kept.get(name, torch.zeros(()))
            kept[name] = before + wish
            return ((kept[name] + dither).floor() - (before + dither).floor()).int()
        residual = 0.9 * kept.get(name, torch.zeros(())) + wish if kind == "decaying" else wish
        kept[name] = residual - residual.round()
        return residual.round().int()

    own = error_feedback._change
    if kind in ("stored", "decaying", "nearest"):
        error_feedback._change = change  # type: ignore[assignment]
    try:
        yield
    finally:
        error_feedback._change = own


def trained(task: str, way: str, rate: float, seed: int) -> Row:
    """Train one net, and return its row."""
    (bits, kind), headroom = WAYS[way], HEADROOM[task]
    found, steps, net = sets(moved=task == "fine-tune"), TASKS[task], start(task, seed)
    began = time.process_time()
    if kind == "latents":
        net = descend(net, bits, headroom, found, seed, steps, rate)
    else:
        net = quantize(net, bits, headroom) if bits else net
        begun = {name: weight.clone() for name, (weight, _, _) in quantized_weights(net).items()}
        rule = SPSA(pairs=8, learning_rate=rate, window=1 if kind == "each" else 16)
        step = sidestep.attach(net, rule, seed=seed)
        with rounding(kind):
            for inputs, labels in batches(found["train"], seed, steps):
                step(lambda inputs=inputs, labels=labels: cross_entropy(net(inputs), labels))
    seconds = round(time.process_time() - began, 1)
    row = {"task": task, "way": way, "rate": rate, "seed": seed, "seconds": seconds}
    if bits and kind != "latents":
        now = quantized_weights(net)
        moved = sum(int((now[name][0] != weight).sum()) for name, weight in begun.items())
        row["moved"] = moved / sum(weight.numel() for weight in begun.values())
    with torch.no_grad():
        for name in ("validation", "test"):
            outputs, labels = net(found[name][0]), found[name][1]
            row[name] = float((outputs.argmax(dim=1) == labels).float().mean())
            row[f"{name}_nll"] = float(cross_entropy(outputs, labels))
    return row


def rates(task: str, way: str) -> tuple[float, ...]:
    """Return the learning rates that are tried."""
    return ADAM_RATES if WAYS[way][1] == "latents" else SPSA_RATES[task]


def best(rows: list[Row], task: str, way: str) -> float | None:
    """Return the rate with the least validation loss at seed 0; None while some are missing."""
    own = [row for row in rows if (row["task"], row["way"], row["seed"]) == (task, way, 0)]
    losses = {row["rate"]: row["validation_nll"] for row in own if row["rate"] in rates(task, way)}
    if losses.keys() != set(rates(task, way)):
        return None
    return min(losses, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)


def left(rows: list[Row]) -> Iterator[tuple[str, str, float, int]]:
    """Yield what has no row yet."""
    done = {(row["task"], row["way"], row["rate"], row["seed"]) for row in rows}
    for way in WAYS:
        for task in TASKS if WAYS[way][0] in (0, 8) else ("fine-tune",):
            wanted = [(rate, 0) for rate in rates(task, way)]
            chosen = best(rows, task, way)
            wanted += [(chosen, seed) for seed in SEEDS[1:]] if chosen else []
            yield from ((task, way, *each) for each in wanted if (task, way, *each) not in done)


def page(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table for each task."""
    for task in TASKS:
        yield f"\n| {task} | rate | validation | test, mean (deviation) | test loss | weights that moved |"
        yield "|---|---|---|---|---|---|"
        for way in WAYS:
            rate = best(rows, task, way)
            own = [row for row in rows if (row["task"], row["way"], row["rate"]) == (task, way, rate)]
            if len(own) < len(SEEDS):
                continue
            tests = [100 * row["test"] for row in own]
            moved = f"{statistics.mean(row['moved'] for row in own):.0%}" if "moved" in own[0] else "-"
            yield (
                f"| {way} | {rate:g} | {100 * statistics.mean(row['validation'] for row in own):.1f} "
                f"| {mean_and_deviation(tests, 1)} "
                f"| {statistics.mean(row['test_nll'] for row in own):.3f} | {moved} |"
            )


def main() -> None:
    """Take the runs that are left, or print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("quantized.jsonl"))
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--most", type=float, default=400, help="processor seconds after which no run is begun")
    given = parser.parse_args()
    if given.page:
        print("\n".join(page(kept_rows(given.rows))))
        return
    torch.set_num_threads(1)
    while time.process_time() < given.most:
        following = next(left(kept_rows(given.rows)), None)
        if following is None:
            return
        row = trained(*following)
        keep_row(given.rows, row)


if __name__ == "__main__":
    main()
