"""A language model of trits beside the same net with float weights, at equal processor time.

    python -m experiments.ternary_text TEXT --rows runs/text.jsonl [--only WAY] [--next]
    python -m experiments.ternary_text TEXT --rows runs/text.jsonl --table
    python -m experiments.ternary_text TEXT --rows runs/text.jsonl --try 800 flip_share=0.01 hidden=256,256

Three ways: `ternary` (noise-step of the preset `noise-step-text`, through `train`), `float` (the same net with float
weights, AdamW, end to end) and `ste` (ternary weights with float latents and scales, AdamW, end to end). Rows of 64
characters, 16 a step, a cosine to zero.

Each way has six trials of some 22 processor seconds (`TRIALS`, seed 0); the best by bits a character on validation is
then trained with seeds 0, 1 and 2, `--times` as long, and the test part is read at the end of these runs alone. Steps
are fixed, so that a run can be made again, by the time that steps take in turn on a quiet machine (`STEPS`); the
processor seconds of training stand in each row.

A finished run is a line of the file of rows, and is not made again. `--next` makes the first that is missing and no
more. `--try` makes one run with other settings, of as many steps, of the way that `--only` names, and keeps its row as
a trial outside the search.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.given import a_count, a_seed
from experiments.kept_rows import Row, keep_row, kept_rows, row_key
from sidestep import data, train
from sidestep.data import DataSet, Split, batch_indices
from sidestep.data.objective import NEXT_TOKENS
from sidestep.nets.ternary.causal import ternary_causal_net
from sidestep.nets.ternary.straight_through import float_twin
from sidestep.noise import Noise
from sidestep.presets.catalogue import find_preset
from sidestep.rules import NoiseStep
from sidestep.training import Options
from sidestep.training.options import Compute

BATCH = 16
STEPS = {"ternary": 400, "float": 400, "ste": 360}  # of a trial
TRIALS: dict[str, list[dict[str, Any]]] = {
    "ternary": [{"flip_share": share, "momentum": momentum}
                for momentum in (0.98, 0.99) for share in (0.003, 0.006, 0.012)],
    "float": [{"rate": rate, "decay": decay} for decay in (1e-3, 0.1) for rate in (7e-4, 1.5e-3, 3e-3)],
    "ste": [{"rate": rate, "decay": decay}
            for rate, decay in ((1.5e-3, 1e-3), (3e-3, 1e-3), (7e-4, 1e-3), (4e-4, 1e-3), (1e-3, 1e-3), (1e-3, 0.1))],
}  # fmt: skip
HEADS = 10 / 3  # the share of flips of the heads beside that of the stages, unless a trial says otherwise


class Clock:
    """Processor seconds from the beginning of a run to its last step."""

    def on_begin(self, event: Any) -> None:
        """Start."""
        self.started = self.ended = time.process_time()

    def on_step(self, event: Any) -> None:
        """Look."""
        self.ended = time.process_time()

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.started


def ternary(text: DataSet, settings: dict[str, Any], seed: int, steps: int) -> Row:
    """Train the net of trits; return bits a character and what they took."""
    options = dict(find_preset("noise-step-text").options)
    if "flip_share" in settings:
        options["head_share"] = round(HEADS * settings["flip_share"], 6)
    clock = Clock()
    run = train(
        NoiseStep(**options | settings), text, Options(steps=steps, batch=BATCH, seed=seed, decay="cosine"),
        observers=[clock],
    )  # fmt: skip
    return _row(run.net, text, clock.seconds)


def by_adam(text: DataSet, way: str, settings: dict[str, Any], seed: int, steps: int) -> Row:
    """Train a float twin end to end."""
    hidden = settings.get("hidden", find_preset("noise-step-text").options["hidden"])
    plain = ternary_causal_net(text.image_shape[0], text.classes, hidden, False)
    net, started = float_twin(plain, Noise(seed).stream("layers"), way == "ste"), time.process_time()
    adam_steps(net, text, settings, seed, steps)
    return _row(net, text, time.process_time() - started)


def _row(net: nn.Module, text: DataSet, seconds: float) -> Row:
    part = Split(text.train.images[: len(text.validation)], text.train.labels[: len(text.validation)])
    parts = {"train": part, "validation": text.validation, "test": text.test}
    found = {name: round(bits(net, split), 4) for name, split in parts.items()}
    return {**found, "seconds": round(seconds, 1), "weights": sum(parameter.numel() for parameter in net.parameters())}


def adam_steps(net: nn.Module, text: DataSet, settings: dict[str, Any], seed: int, steps: int) -> None:
    """AdamW with a cosine to zero, on the batches that a run of that seed has."""
    rate = settings["rate"]
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=settings["decay"])
    compute, order = Compute.find("cpu", "auto"), Noise(seed).stream("order")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = batch_indices(order, step, len(text.train), BATCH)
        with compute.autocast():
            loss = NEXT_TOKENS.mean(net(text.train.images[rows]), text.train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def bits(net: nn.Module, split: Split) -> float:
    """Return bits a character."""
    found = [
        NEXT_TOKENS.each(net(split.images[start : start + 200]), split.labels[start : start + 200])
        for start in range(0, len(split), 200)
    ]
    return float(torch.cat(found).double().mean()) / math.log(2)


def planned(way: str, rows: list[Row], times: int, seeds: list[int]) -> Row | None:
    """Return the first run of a way that has no row yet: trials, then the best of them with each seed."""
    trial, length = STEPS[way], times * STEPS[way]
    tried = {_key(row): row for row in rows if row["way"] == way and row["kind"] == "trial"}
    for settings in TRIALS[way]:
        wanted = {"kind": "trial", "way": way, "settings": settings, "seed": 0, "steps": trial}
        if _key(wanted) not in tried:
            return wanted
    best = min((tried[_key({"settings": s, "seed": 0, "steps": trial})] for s in TRIALS[way]), key=_validation)
    done = {_key(row) for row in rows if row["way"] == way and row["kind"] == "run"}
    for seed in seeds:
        wanted = {"kind": "run", "way": way, "settings": best["settings"], "seed": seed, "steps": length}
        if _key(wanted) not in done:
            return wanted
    return None


def make(text: DataSet, wanted: Row) -> Row:
    """Train what is wanted; only a run of full length keeps its test figure."""
    way, settings, seed, steps = (wanted[name] for name in ("way", "settings", "seed", "steps"))
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    found = ternary(text, settings, seed, steps) if way == "ternary" else by_adam(text, way, settings, seed, steps)
    if wanted["kind"] != "run":
        del found["test"]
    return wanted | found


def table(rows: list[Row]) -> None:
    """Print every trial, and the runs of each way, as Markdown."""
    print("| way | tried | steps | train | validation | processor seconds |\n|---|---|---|---|---|---|")
    for row in (row for row in rows if row["kind"] != "run"):
        said = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        print(f"| {row['way']} | {said} | {row['steps']} | {row['train']} | {row['validation']} | {row['seconds']} |")
    print("\n| way | settings | steps | train | validation | test | mean of test | seconds |\n|" + "---|" * 8)
    for way in STEPS:
        own = sorted((row for row in rows if row["kind"] == "run" and row["way"] == way), key=lambda row: row["seed"])
        for steps in sorted({row["steps"] for row in own}):
            some = [row for row in own if row["steps"] == steps]
            each = [", ".join(f"{row[name]:.3f}" for row in some) for name in ("train", "validation", "test")]
            mean = sum(row["test"] for row in some) / len(some)
            took = ", ".join(f"{row['seconds']:.0f}" for row in some)
            print(f"| {way} | {some[0]['settings']} | {steps} | {' | '.join(each)} | {mean:.3f} | {took} |")


def _key(row: Row) -> str:
    return row_key(row, ("settings", "seed", "steps"))


def _validation(row: Row) -> float:
    return float(row["validation"])


def _value(word: str) -> Any:
    parts = [_number(part) for part in word.split(",")]
    return parts if len(parts) > 1 else parts[0]


def _number(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _tried(way: str, words: list[str]) -> Row:
    pairs = [word.partition("=") for word in words[1:]]
    settings = {name: _value(value) for name, _, value in pairs}
    return {"kind": "try", "way": way, "settings": settings, "seed": 0, "steps": int(words[0])}


def main() -> None:
    """Make what is missing, or one run of it; each row is printed and kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--times", type=a_count, default=1, help="how many times as long as a trial a run is")
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0, 1, 2], help="of the runs")
    parser.add_argument("--kind", choices=("trial", "run"), help="trials alone, or runs of ways whose trials are done")
    parser.add_argument("--next", action="store_true", help="the first missing run alone")
    parser.add_argument("--try", dest="tried", nargs="+", metavar=("STEPS", "NAME=VALUE"), help="one run besides")
    parser.add_argument("--table", action="store_true", help="train nothing, print the tables")
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = data.from_text(given.text.read_text(encoding="utf-8"), name=given.text.stem)
    while True:
        rows = kept_rows(given.rows)
        if given.table:
            return table(rows)
        queue = (
            [_tried(given.only[0], given.tried)]
            if given.tried
            else [planned(way, rows, given.times, given.seeds) for way in given.only]
        )
        missing = [row for row in queue if row and given.kind in (None, row["kind"])]
        wanted = min(missing, key=lambda row: (row["kind"] == "run", row["seed"]), default=None)
        if wanted is None:
            return print("nothing is missing")
        keep_row(given.rows, make(text, wanted), "auto")
        if given.next or given.tried:
            return None


if __name__ == "__main__":
    main()
