"""Groups of a small causal net on the characters of a text, at several shares of exact steps: bits a character.

    python -m experiments.blockwise_text TEXT --out runs/blockwise-text [--steps 400] [--seeds 1] [--most 3]

Six blocks of width 64 in three groups, rows of 64 characters, 16 a step, AdamW at 1e-3 with cosine decay; each row of
rows.jsonl is a run, and those that stand there are left out. Test: the first 200 rows of the test part.

    end to end       the same blocks as one net, on the exact loss
    share s          blockwise; a share s of the steps goes end to end along the walk, on the loss of its last outputs
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidestep import data
from sidestep.data import DataSet
from sidestep.noise import Noise
from sidestep.rules import Batch, Blockwise, Rule, Task
from sidestep.rules.shared.same_net import SameNet

BATCH, WIDTH, DEPTH, GROUPS, RATE, TESTED = 16, 64, 6, 3, 1e-3, 200
WAYS = ("end to end", "share 0", "share 0.25", "share 0.5", "readable, share 0", "readable, share 0.5", "share 1")


def rule_of(way: str) -> Rule:
    """Return what trains the net in one way."""
    share = float(way.rsplit(" ", 1)[-1]) if "share" in way else 0.0
    levels = "readable" if "readable" in way else "normal"
    rule = Blockwise(groups=GROUPS, depth=DEPTH, width=WIDTH, levels=levels, exact_share=share, learning_rate=RATE)
    return SameNet(rule) if way == "end to end" else rule


def bits(probabilities: Tensor, targets: Tensor) -> float:
    """Return the mean of -log2 p(character)."""
    found = probabilities.gather(-1, targets.long().unsqueeze(-1)).clamp_min(1e-30)
    return float(-found.double().log2().mean())


def run(text: DataSet, way: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one net, and return its row."""
    task, rule = Task.of(text), rule_of(way)
    net: nn.Module = rule.build(task, Noise(seed).stream("build"), None, None)
    optimizer = rule.optimizer(net)
    order = Noise(seed).stream("order").integers(BATCH * steps, len(text.train.targets))
    started = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        places = order[step * BATCH : (step + 1) * BATCH]
        batch = Batch(text.train.images[places], text.train.targets[places], task.objective)
        rule.apply(net, rule.estimate(net, batch, Noise(seed).stream("estimate").at(step)), optimizer)
    seconds, found = time.process_time() - started, {}
    for start in range(0, TESTED, 50):
        rows, targets = (part[start : start + 50] for part in (text.test.images, text.test.targets))
        for name, given in rule.predict(net, rows, Noise(seed)).items():
            found[name] = found.get(name, 0.0) + bits(given, targets) * 50 / TESTED
    readings = {name: round(value, 4) for name, value in found.items()}
    return {"way": way, "seed": seed, "steps": steps, "seconds": round(seconds, 1), "bits": readings}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--most", type=int, default=1000, help="rows to run before it stops")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["way"], row["seed"], row["steps"]) for row in rows}
    wanted = [(way, seed, given.steps) for seed in range(given.seeds) for way in WAYS]
    text = data.load(str(given.text))
    for row in [each for each in wanted if each not in done][: given.most]:
        line = json.dumps(run(text, *row))
        print(line, flush=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")


if __name__ == "__main__":
    main()
