"""Groups of a small ViT on CIFAR-10, trained in several ways at equal steps: accuracy, and memory of a process.

    python -m experiments.blockwise --rows docs/results/blockwise-images.jsonl [--kinds memory search ablation run]

Each row is a process of its own and a line of the file; rows that stand there are left out, so that a stopped
comparison goes on. All nets have the same batches, and AdamW with half a cosine; twelve blocks in all unless it says
otherwise.

    end to end             all blocks, one stem, one head; also with the blocks' activations computed again on the way
                           back, and with as few blocks as one of three groups has
    local losses           each group a loss of its own head on what the group before it gives; no derivative between
    blockwise              each group denoises its own range of noise levels, up to half of z's variance
    never sees a target    the same groups with next to nothing of the target in z: so many small nets and their mean

Kinds: `search`, four learning rates at seed 100 for half the steps, of which validation images take one; `ablation`,
one change of `blockwise, B = 3` each, at its rate, seed and length; `run`, seeds 0 to 2 at that rate, test images;
`memory`, what a process grows by in two steps of 128 images.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from experiments.given import a_count
from experiments.kept_rows import Row, keep_row, kept_rows, row_key
from sidestep import data
from sidestep.data import Split
from sidestep.gradients.end_to_end import gradients_of
from sidestep.measure.memory import peak_memory_bytes, restart_peak_memory, return_freed_memory
from sidestep.nets.groups.group import pooled
from sidestep.nets.groups.group_chain import GroupChain, PlainChain
from sidestep.noise import Noise
from sidestep.rules import Batch, Blockwise, Task
from sidestep.update import Dense

__all__ = ["CHANGES", "WAYS", "chosen_rate", "draw_latent_weights", "local_outputs", "wanted_rows"]

WIDTH, DEPTH, BATCH, MEMORY_STEPS, MEMORY_BATCH = 64, 12, 64, 2, 128
RATES, SEARCH_SEED, SEEDS, KINDS = (2.5e-4, 5e-4, 1e-3, 2e-3), 100, (0, 1, 2), ("memory", "search", "ablation", "run")
KEY = ("way", "rate", "seed", "kind", "steps", "patch")
END, AGAIN, LOCAL, GROUPS = "end to end", "end to end, checkpointed", "local losses, B = 3", "blockwise, B = 3"
BLIND = {"smallest_alpha_bar": 1e-6, "largest_alpha_bar": 2e-6}
WAYS: dict[str, dict[str, Any]] = {
    END: {},
    AGAIN: {},
    "end to end, four blocks": {"groups": 1, "depth": 4},
    LOCAL: {},
    "local losses, B = 4": {"groups": 4},
    GROUPS: {},
    "blockwise, B = 4": {"groups": 4},
    "never sees a target, B = 3": BLIND,
}
CHANGES: dict[str, dict[str, Any]] = {
    "z's weights drawn": {"drawn": True},
    "to 0.999": {"largest_alpha_bar": 0.999},
    "to 0.999, z's weights drawn": {"largest_alpha_bar": 0.999, "drawn": True},
    "to 0.9": {"largest_alpha_bar": 0.9},
    "to 0.1": {"largest_alpha_bar": 0.1},
    "never sees a target": BLIND,
    "never sees a target, z's weights drawn": BLIND | {"drawn": True},
    "B = 2": {"groups": 2},
    "B = 6": {"groups": 6},
    "no overlap": {"overlap": 0.0},
    "a quarter of the steps exact": {"exact_share": 0.25},
}


def searched(way: str) -> str:
    """Return the way whose search a way's rate comes from."""
    return END if way.startswith("end") else LOCAL if way.startswith("local") else GROUPS


def rule_of(row: Row) -> Blockwise:
    """Return what trains, or makes, the net of a row."""
    settings: dict[str, Any] = {"groups": 3, "depth": DEPTH, "net": "vit", "width": WIDTH, "patch": row["patch"],
                                "learning_rate": row["rate"], "largest_alpha_bar": 0.5}  # fmt: skip
    settings |= {**WAYS, **CHANGES}[row["way"]]
    settings.pop("drawn", None)
    return Blockwise(**settings)


def draw_latent_weights(net: GroupChain, seed: int) -> None:
    """Draw the weights that z and l pass through as torch draws those of a linear layer, in place of 0."""
    with Noise(seed).stream("drawn").torch_seeded():
        for index in range(net.count):
            net.group(index).latent.reset_parameters()
            net.group(index).level.reset_parameters()


def net_of(row: Row, rule: Blockwise, task: Task) -> nn.Module:
    """Return the net of a row; without its groups where it is trained end to end."""
    chain = rule.build(task, Noise(row["seed"]).stream("build"), None, None)
    if "drawn" in CHANGES.get(row["way"], {}):
        draw_latent_weights(chain, row["seed"])
    return PlainChain(chain) if row["way"].startswith("end") else chain


def plain_outputs(net: PlainChain, images: Tensor, again: bool) -> Tensor:
    """Return the outputs of the whole net; with `again`, only the blocks' inputs are kept."""
    if not again:
        found: Tensor = net(images)
        return found
    hidden = net.stem(images)
    for block in net.blocks:
        hidden = checkpoint(block, hidden, use_reentrant=False)
    outputs: Tensor = net.head(pooled(net.tail(hidden), net.places))
    return outputs


def local_outputs(net: GroupChain, images: Tensor) -> Iterator[Tensor]:
    """Yield each group's outputs, on what the group before it gives, as data."""
    hidden = net.group(0).features(images)
    for index in range(net.count):
        group = net.group(index)
        for block in group.blocks:
            hidden = block(hidden)
        yield group.head(pooled(group.tail(hidden), group.places))
        hidden = hidden.detach()


def updates(way: str, rule: Blockwise, net: Any, batch: Batch, noise: Noise) -> Iterator[Any]:
    """Yield what a step asks of the net, a unit at a time where a way has units."""
    if way.startswith("end"):
        outputs = plain_outputs(net, batch.inputs, again=way == AGAIN)
        loss = nn.functional.cross_entropy(outputs, batch.targets)
        del outputs
        yield Dense(gradients_of(loss, dict(net.named_parameters())), {}, {})
    elif way.startswith("local"):
        for index, outputs in enumerate(local_outputs(net, batch.inputs)):
            loss = nn.functional.cross_entropy(outputs, batch.targets)
            del outputs
            wanted = {f"groups.{index}.{name}": value for name, value in net.group(index).named_parameters()}
            yield Dense(gradients_of(loss, wanted), {}, {})
            del loss
    elif rule.exact_share:
        yield rule.estimate(net, batch, noise)
    else:
        for _, update in rule.estimates(net, batch, noise):
            yield update
            del update


def answers(way: str, rule: Blockwise, net: Any, images: Tensor) -> dict[str, Tensor]:
    """Return every reading's answer."""
    net.eval()
    with torch.no_grad():
        if way.startswith("local"):
            every = list(local_outputs(net, images))
            mean = torch.stack(every).softmax(dim=-1).mean(dim=0)
            return {"last head": every[-1], "first head": every[0], "mean of heads": mean}
        return {"forward": net(images)} if way.startswith("end") else rule.predict(net, images, Noise(0))


def read(row: Row, rule: Blockwise, net: nn.Module, part: Split, task: Task) -> dict[str, float]:
    """Return each reading's share of right answers."""
    right: dict[str, int] = {}
    for start in range(0, len(part.targets), 500):
        images, wanted = task.scaled(part.images[start : start + 500]), part.targets[start : start + 500]
        for name, given in answers(row["way"], rule, net, images).items():
            right[name] = right.get(name, 0) + int((given.argmax(dim=1) == wanted).sum())
    return {name: count / len(part.targets) for name, count in right.items()}


def run(row: Row) -> Row:
    """Train the net of a row, and return the row with what it reaches; a search reads validation images alone."""
    loaded = data.load("cifar10")
    task, rule, memory = Task.of(loaded), rule_of(row), row["kind"] == "memory"
    size, count, seed = (MEMORY_BATCH if memory else BATCH), row["steps"], row["seed"]
    net = net_of(row, rule, task)
    named = dict(net.named_parameters())
    units = rule.units(net).values() if isinstance(net, GroupChain) else [list(named)]
    optimizer = torch.optim.AdamW(
        [{"params": [named[name] for name in unit]} for unit in units], lr=row["rate"], weight_decay=1e-3, fused=True
    )
    order = Noise(seed).stream("order").permutation(len(loaded.train.targets))
    order = order.repeat(1 + size * count // len(order))
    return_freed_memory()
    before, started = restart_peak_memory(), time.process_time()
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = row["rate"] * 0.5 * (1 + math.cos(math.pi * step / count))
        places = order[step * size : (step + 1) * size]
        batch = Batch(task.scaled(loaded.train.images[places]), loaded.train.targets[places])
        net.train()
        for update in updates(row["way"], rule, net, batch, Noise(seed).stream("estimate").at(step)):
            for name in list(update.gradients):
                named[name].grad = update.gradients.pop(name)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del update
    filled = row | {"seconds": round(time.process_time() - started, 1)}
    if memory:
        return filled | {"MiB": round((peak_memory_bytes() - before) / 2**20, 1)}
    part = "test" if row["kind"] == "run" else "validation"
    return filled | {part: read(row, rule, net, getattr(loaded, part), task)}


def chosen_rate(rows: list[Row], way: str, steps: int) -> float | None:
    """Return the rate that validation takes of a finished search, or None before its end."""
    mine = [row for row in rows if (row["way"], row["kind"], row["steps"]) == (searched(way), "search", steps // 2)]
    if len(mine) < len(RATES):
        return None
    return float(max(mine, key=lambda row: max(row["validation"].values()))["rate"])


def wanted_rows(rows: list[Row], kinds: list[str], steps: int, patch: int) -> list[Row]:
    """Return the rows that are still missing, as far as searches have ended, the first seed of all ways first."""
    found: list[Row] = []
    if "memory" in kinds:
        short = {"rate": 1e-3, "seed": 0, "kind": "memory", "steps": MEMORY_STEPS}
        found += [{"way": way} | short for way in WAYS if way not in ("end to end, four blocks", *list(WAYS)[-1:])]
    if "search" in kinds:
        half = {"seed": SEARCH_SEED, "kind": "search", "steps": steps // 2}
        found += [{"way": way, "rate": rate} | half for way in (GROUPS, END, LOCAL) for rate in RATES]
    rates = {way: chosen_rate(rows, way, steps) for way in (*WAYS, *CHANGES)}
    if "ablation" in kinds:
        half = {"seed": SEARCH_SEED, "kind": "ablation", "steps": steps // 2}
        found += [{"way": way, "rate": rates[way]} | half for way in CHANGES]
    if "run" in kinds:
        ways = [way for way in WAYS if way != AGAIN]  # the same weights as end to end
        found += [
            {"way": way, "rate": rates[way], "seed": seed, "kind": "run", "steps": steps}
            for seed in SEEDS
            for way in ways
        ]
    done = {row_key(row, KEY) for row in rows}
    whole = [row | {"patch": patch} for row in found if row["rate"] is not None]
    return [row for row in whole if row_key(row, KEY) not in done]


def main() -> None:
    """Run what is missing, one process a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--ways", nargs="+", default=[*WAYS, *CHANGES], choices=[*WAYS, *CHANGES])
    parser.add_argument("--steps", type=a_count, default=600)
    parser.add_argument("--patch", type=a_count, default=8)
    parser.add_argument("--most", type=a_count, default=1000, help="rows to run before it stops")
    parser.add_argument("--row", help="train the net of this row, a JSON object, and print its line")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.row:
        print(json.dumps(run(json.loads(given.row))))
        return
    if given.rows is None:
        parser.error("--rows FILE.jsonl is needed")
    for _ in range(given.most):
        missing = wanted_rows(kept_rows(given.rows), given.kinds, given.steps, given.patch)
        row = next((row for row in missing if row["way"] in given.ways), None)
        if row is None:
            break
        command = [sys.executable, "-m", "experiments.blockwise", "--row", json.dumps(row)]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        keep_row(given.rows, json.loads(line))


if __name__ == "__main__":
    main()
