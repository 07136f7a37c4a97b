"""Groups of a small causal net on the characters of a text, at several shares of exact steps: bits a character.

    python -m experiments.blockwise_text TEXT --rows docs/results/blockwise-text.jsonl [--steps 300] [--most 3]

Six blocks of width 64 in three groups, rows of 64 characters, 16 a step, AdamW at 1e-3 with cosine decay; each row of
the file is a run, and those that stand there are left out. Validation and test: the first 200 rows of each part.

    end to end              the same blocks as one net, on the exact loss; also with as few blocks as a group has
    local losses            each group a loss of its own head on what the group before it gives; no derivative between
    share s                 blockwise; a share s of the steps goes end to end along the walk, on its last outputs' loss
    to a                    blockwise; the cleanest level that a group is trained at leaves a share a of the target in z
    B = b                   blockwise of b groups
    z's weights drawn       what z and its level pass through begins as torch draws it, and not at 0
    never sees a target     the same groups with next to nothing of the target in z: so many small nets and their mean
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.blockwise import draw_latent_weights, local_outputs
from experiments.given import a_count
from experiments.kept_rows import keep_row, kept_rows
from sidestep import data
from sidestep.data import DataSet, Split
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.groups.group_chain import GroupChain
from sidestep.noise import Noise
from sidestep.rules import Batch, Blockwise, Rule, Task
from sidestep.rules.shared.same_net import SameNet
from sidestep.update import Dense

BATCH, WIDTH, DEPTH, GROUPS, RATE, TESTED = 16, 64, 6, 3, 1e-3, 200
END, LOCAL, DRAWN = "end to end", "local losses", "to 0.5, z's weights drawn"
WAYS: dict[str, dict[str, Any]] = {
    END: {},
    "end to end, two blocks": {"groups": 1, "depth": 2},
    LOCAL: {},
    "to 0.999": {"largest_alpha_bar": 0.999},
    "to 0.9": {"largest_alpha_bar": 0.9},
    "to 0.5": {"largest_alpha_bar": 0.5},
    DRAWN: {"largest_alpha_bar": 0.5},
    "to 0.1": {"largest_alpha_bar": 0.1},
    "never sees a target": {"smallest_alpha_bar": 1e-6, "largest_alpha_bar": 2e-6},
    "to 0.5, B = 2": {"largest_alpha_bar": 0.5, "groups": 2},
    "to 0.5, B = 6": {"largest_alpha_bar": 0.5, "groups": 6},
    "to 0.999, share 0.25": {"largest_alpha_bar": 0.999, "exact_share": 0.25},
    "to 0.999, share 0.5": {"largest_alpha_bar": 0.999, "exact_share": 0.5},
    "to 0.5, share 0.5": {"largest_alpha_bar": 0.5, "exact_share": 0.5},
    "to 0.999, share 1": {"largest_alpha_bar": 0.999, "exact_share": 1.0},
}


def rule_of(way: str) -> Rule:
    """Return what trains the net in one way."""
    settings: dict[str, Any] = {"groups": GROUPS, "depth": DEPTH, "width": WIDTH, "learning_rate": RATE} | WAYS[way]
    rule = Blockwise(**settings)
    return SameNet(rule) if way.startswith(END) else rule


def local_update(net: GroupChain, batch: Batch) -> Dense:
    """Return the gradients of each group's own loss on what the group before it gives."""
    gradients: dict[str, Tensor] = {}
    for index, outputs in enumerate(local_outputs(net, batch.inputs)):
        named = {f"groups.{index}.{name}": value for name, value in net.group(index).named_parameters()}
        gradients |= gradients_of(batch.objective.mean(outputs, batch.targets), named)
    return Dense(gradients, {}, {})


def answers(way: str, rule: Rule, net: Any, rows: Tensor) -> dict[str, Tensor]:
    """Return every reading's probabilities, (batch, length, vocabulary)."""
    if way != LOCAL:
        return rule.predict(net, rows, Noise(0))
    with torch.no_grad():
        every = [outputs.softmax(dim=-1) for outputs in local_outputs(net.eval(), rows)]
    return {"last head": every[-1], "mean of heads": torch.stack(every).mean(dim=0)}


def bits(probabilities: Tensor, targets: Tensor) -> float:
    """Return the mean of -log2 p(character)."""
    found = probabilities.gather(-1, targets.long().unsqueeze(-1)).clamp_min(1e-30)
    return float(-found.double().log2().mean())


def read(way: str, rule: Rule, net: Any, part: Split) -> dict[str, dict[str, float]]:
    """Return each reading's bits a character and share of right answers, on the first rows of a part."""
    found: dict[str, dict[str, float]] = {}
    for start in range(0, TESTED, 50):
        rows, targets = part.images[start : start + 50], part.targets[start : start + 50]
        for name, given in answers(way, rule, net, rows).items():
            sums = found.setdefault(name, {"bits": 0.0, "right": 0.0})
            sums["bits"] += bits(given, targets) * 50 / TESTED
            sums["right"] += float((given.argmax(dim=-1) == targets).double().mean()) * 50 / TESTED
    return {name: {key: round(value, 4) for key, value in sums.items()} for name, sums in found.items()}


def run(text: DataSet, way: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one net, and return its row."""
    task, rule = Task.of(text), rule_of(way)
    net: Any = rule.build(task, Noise(seed).stream("build"), None, None)
    if way == DRAWN:
        draw_latent_weights(net, seed)
    optimizer = rule.optimizer(net)
    order = Noise(seed).stream("order").integers(BATCH * steps, len(text.train.targets))
    started = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        places = order[step * BATCH : (step + 1) * BATCH]
        batch = Batch(text.train.images[places], text.train.targets[places], task.objective)
        net.train()
        noise = Noise(seed).stream("estimate").at(step)
        rule.apply(net, local_update(net, batch) if way == LOCAL else rule.estimate(net, batch, noise), optimizer)
    row = {"way": way, "seed": seed, "steps": steps, "seconds": round(time.process_time() - started, 1)}
    parts = {"validation": text.validation, "test": text.test}
    return row | {name: read(way, rule, net, part) for name, part in parts.items()}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=a_count, default=300)
    parser.add_argument("--seeds", type=a_count, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--most", type=a_count, default=1000, help="rows to run before it stops")
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row["way"], row["seed"], row["steps"]) for row in kept_rows(given.rows)}
    wanted = [(way, seed, given.steps) for seed in range(given.seeds) for way in WAYS if way in given.ways]
    text = data.load(str(given.text))
    for row in [each for each in wanted if each not in done][: given.most]:
        keep_row(given.rows, run(text, *row))


if __name__ == "__main__":
    main()
