"""Time a step of every preset, for `sidestep presets --minutes`, which has no time to do so itself.

    OMP_NUM_THREADS=1 nice python -m benchmarks.preset_times [--only TEXT]

Writes src/sidestep/cli/preset_times.json: for each preset and budget the steps of a run and the processor seconds of a
step, on random images in the shape of the preset's set; how fast the machine multiplied two matrices meanwhile; and
what it is. Where it is stopped it goes on, unless --again or on another machine, where it begins anew: some four
minutes for all. Times of presets on a text of yours depend on the text.
"""

import argparse
import json
import time
from typing import Any

import torch

from sidestep.cli.listing import listed
from sidestep.cli.preset_times import PATH, matrix_seconds
from sidestep.data import DataSet, Split, steps_per_epoch
from sidestep.measure.processor import has_bfloat16, processor_name
from sidestep.noise import Noise
from sidestep.presets.catalogue import ANY_TEXT, PRESETS, Preset
from sidestep.rules import RULES
from sidestep.training import Options
from sidestep.training.begin import begin

STEPS, BATCH = 2, 32  # timed steps; a larger batch is taken to cost as much more as it has more images
BATCHES = 16, 64  # of ternary nets, whose updates cost the same for every batch: along a line through these two


def images(preset: Preset, batch: int) -> DataSet:
    """Return random images in the shape of the preset's data set."""
    of = listed("data")[preset.data]
    size = preset.image_size or of["sizes"][0]
    shape = (max(2 * batch, 256), of["channels"], size, size)
    noise, count = Noise(0), len(of["class_names"])
    values = noise.integers(torch.Size(shape).numel(), 256).to(torch.uint8).view(shape)
    split = Split(values, torch.arange(shape[0]) % count)  # each class has some
    return DataSet(preset.data, split, split, tuple(of["class_names"]), (0.5,) * shape[1], (0.3,) * shape[1])


def seconds_of_step(preset: Preset, changes: dict[str, Any], most: int = BATCH) -> tuple[float, int]:
    """Return the least processor seconds of a step, after one to warm up, and how many images it had."""
    rule, batch = RULES[preset.rule](**{**preset.options, **changes}), min(most, preset.train["batch"])
    given = {**preset.train, "batch": batch, "decay": "none", "warmup": 0.0, "steps": 100, "epochs": None}
    state, loop = begin(rule, images(preset, batch), Options(**given))
    loop.take_step(state)
    seconds = []
    for _ in range(STEPS):
        began = time.process_time()
        loop.take_step(state)
        seconds.append(time.process_time() - began)
    return min(seconds), batch


def scaled(preset: Preset, changes: dict[str, Any]) -> float:
    """Return the seconds of a step of the preset's batch, from fewer images."""
    if preset.rule == "evolution":  # small nets: a step costs little, and far from 32 times that of an image
        return seconds_of_step(preset, changes, preset.train["batch"])[0]
    if preset.rule != "noise-step" and not preset.options.get("ternary"):
        seconds, batch = seconds_of_step(preset, changes)
        return seconds * preset.train["batch"] / batch
    (low, few), (high, more) = (seconds_of_step(preset, changes, most) for most in BATCHES)
    return high + max(0.0, high - low) / max(1, more - few) * (preset.train["batch"] - more)


def step_of(preset: Preset) -> float:
    """Return the seconds of a step; with very many solver steps in training, along a line through fewer of them."""
    steps = preset.options.get("steps", 0)
    if preset.rule != "neural-ode" or steps <= 4:
        return scaled(preset, {})
    few, more = (scaled(preset, {"steps": count}) for count in (2, 4))
    return few + (more - few) * (steps - 2) / 2


def row(preset: Preset) -> dict[str, Any]:
    """Return what is written of a preset with the values of one budget."""
    return {
        "steps": steps_of(preset),
        "seconds": round(step_of(preset), 4),
        "matrix": round(matrix_seconds(), 5),
    }


def steps_of(preset: Preset) -> int:
    """Return the steps of a whole run."""
    examples = int(listed("data")[preset.data]["train"] * (1 - preset.validation))
    return int(preset.train["epochs"] * steps_per_epoch(examples, preset.train["batch"]))


def main() -> None:
    """Time what has not been timed, and write it after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="presets with this in their names")
    parser.add_argument("--again", action="store_true", help="time what has been timed, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    machine = {"processor": processor_name(), "bfloat16": has_bfloat16(), "torch": torch.__version__}
    written = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    found = written["presets"] if written.get("machine") == machine else {}
    known: dict[str, dict[str, Any]] = {}
    for name, preset in PRESETS.items():
        if given.only not in name or preset.data == ANY_TEXT or (name in found and not given.again):
            continue
        rows = {}
        for budget in ("full", *preset.budgets):
            made = preset.for_budget(budget)
            key = repr((made.rule, made.data, made.options, made.train["batch"], made.train.get("augment")))
            found_row = row(made) if key not in known else {**known[key], "steps": steps_of(made)}
            known[key] = found_row
            rows[budget] = found_row
        found[name] = rows
        PATH.write_text(json.dumps({"machine": machine, "presets": found}, indent=1) + "\n", encoding="utf-8")
        print(name, rows, flush=True)


if __name__ == "__main__":
    main()
