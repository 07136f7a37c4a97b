"""Groups of a small ViT on CIFAR-10, trained in several ways at equal steps: accuracy, and memory of a process.

    python -m experiments.blockwise --out runs/blockwise [--seeds 3] [--steps 600] [--patch 8]

Each row is a process of its own and a line of rows.jsonl; rows that stand there are left out, so that a stopped
comparison goes on. All nets have the same blocks, the same batches, AdamW at the same rate with cosine decay.

    end to end       all blocks, one stem, one head; also with the blocks' activations computed again on the way back
    local losses     each group a loss of its own head on what the group before it gives; no derivative between groups
    blockwise        each group denoises its own range of noise levels (readings: walk, group 1 alone, mean of groups)
    ... below 0.5    the ranges end where half of z's variance is noise, from which hardly a class can be read
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from experiments.given import a_count
from sidestep import data
from sidestep.gradients.end_to_end import gradients_of
from sidestep.measure.memory import peak_memory_bytes, restart_peak_memory, return_freed_memory
from sidestep.nets.groups.group import pooled
from sidestep.nets.groups.group_chain import GroupChain, PlainChain
from sidestep.noise import Noise
from sidestep.rules import Batch, Blockwise, Task
from sidestep.rules.protocol import Dense

WIDTH, DEPTH, BATCH, MEMORY_STEPS, MEMORY_BATCH = 64, 12, 64, 2, 128
RATE = 1e-3
WAYS = (
    "end to end", "local losses, B = 3", "local losses, B = 4", "blockwise, B = 3", "blockwise, B = 4",
    "blockwise below 0.5, B = 3", "blockwise below 0.5, B = 4",
)  # fmt: skip


def groups_of(way: str) -> int:
    """Return B, by the end of a way's name; 3 where it does not matter."""
    return int(way[-1]) if way[-1].isdecimal() else 3


def plain_outputs(net: PlainChain, images: Tensor, again: bool) -> Tensor:
    """Return the outputs of the whole net; with `again`, only the blocks' inputs are kept."""
    if not again:
        return net(images)
    hidden = net.stem(images)
    for block in net.blocks:
        hidden = checkpoint(block, hidden, use_reentrant=False)
    return net.head(pooled(net.tail(hidden), net.places))


def local_outputs(net: GroupChain, images: Tensor) -> Iterator[Tensor]:
    """Yield each group's outputs, on what the group before it gives, as data."""
    hidden = net.group(0).features(images)
    for index in range(net.count):
        group = net.group(index)
        for block in group.blocks:
            hidden = block(hidden)
        yield group.head(pooled(group.tail(hidden), group.places))
        hidden = hidden.detach()


def updates(way: str, rule: Blockwise, net: nn.Module, batch: Batch, noise: Noise) -> Iterator[Dense]:
    """Yield what a step asks of the net, a unit at a time where a way has units."""
    if way.startswith("blockwise"):
        for _, update in rule.estimates(net, batch, noise):
            yield update
            del update
    elif way.startswith("local"):
        for index, outputs in enumerate(local_outputs(net, batch.inputs)):
            loss = nn.functional.cross_entropy(outputs, batch.targets)
            del outputs
            wanted = {f"groups.{index}.{name}": value for name, value in net.group(index).named_parameters()}
            yield Dense(gradients_of(loss, wanted), {}, {})
            del loss
    else:
        outputs = plain_outputs(net, batch.inputs, again="checkpointed" in way)
        loss = nn.functional.cross_entropy(outputs, batch.targets)
        del outputs
        yield Dense(gradients_of(loss, dict(net.named_parameters())), {}, {})


def answers(way: str, rule: Blockwise, net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return every reading's answer."""
    if way.startswith("blockwise"):
        return rule.predict(net, images, Noise(0))
    with torch.no_grad():
        if way.startswith("local"):
            every = list(local_outputs(net.eval(), images))
            return {"last head": every[-1], "first head": every[0]}
        return {"forward": net.eval()(images)}


def run(way: str, seed: int, steps: int, patch: int, memory: bool) -> dict[str, object]:
    """Train one net in one way, and return its row."""
    loaded = data.load("cifar10")
    task = Task.of(loaded)
    largest = 0.5 if "below 0.5" in way else 0.999
    size, count = (MEMORY_BATCH, MEMORY_STEPS) if memory else (BATCH, steps)
    rule = Blockwise(
        groups=groups_of(way),
        depth=DEPTH,
        net="vit",
        width=WIDTH,
        patch=patch,
        largest_alpha_bar=largest,
        learning_rate=RATE,
    )
    chain = rule.build(task, Noise(seed).stream("build"), None, None)
    net: nn.Module = PlainChain(chain) if way.startswith("end") else chain
    named = dict(net.named_parameters())
    units = rule.units(chain).values() if net is chain else [list(named)]
    optimizer = torch.optim.AdamW(
        [{"params": [named[name] for name in unit]} for unit in units], lr=RATE, weight_decay=1e-3, fused=True
    )
    images, labels = loaded.train.images, loaded.train.targets
    order = Noise(seed).stream("order").permutation(len(labels))
    order = order.repeat(1 + size * count // len(order))
    return_freed_memory()
    before, started = restart_peak_memory(), time.process_time()
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / count)).item())
        places = order[step * size : (step + 1) * size]
        batch = Batch(task.scaled(images[places]), labels[places])
        net.train()
        for update in updates(way, rule, net, batch, Noise(seed).stream("estimate").at(step)):
            for name in list(update.gradients):
                named[name].grad = update.gradients.pop(name)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del update
    seconds, grown = time.process_time() - started, peak_memory_bytes() - before
    row: dict[str, object] = {"way": way, "seed": seed, "steps": count, "batch": size, "patch": patch,
                              "seconds": round(seconds, 1), "MiB": round(grown / 2**20, 1)}  # fmt: skip
    if memory:
        return row | {"kind": "memory"}
    right: dict[str, int] = {}
    for start in range(0, len(loaded.test.targets), 500):
        wanted = loaded.test.targets[start : start + 500]
        for name, given in answers(way, rule, net, task.scaled(loaded.test.images[start : start + 500])).items():
            right[name] = right.get(name, 0) + int((given.argmax(dim=1) == wanted).sum())
    return row | {"kind": "accuracy", "test": {name: n / len(loaded.test.targets) for name, n in right.items()}}


def main() -> None:
    """Run what is missing, one process a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=a_count, default=3)
    parser.add_argument("--steps", type=a_count, default=600)
    parser.add_argument("--patch", type=a_count, default=8)
    parser.add_argument("--most", type=a_count, default=1000, help="rows to run before it stops")
    parser.add_argument("--row", nargs=3, metavar=("WAY", "SEED", "KIND"), help="run this one, print its line")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.row:
        way, seed, kind = given.row
        print(json.dumps(run(way, int(seed), given.steps, given.patch, kind == "memory")))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["way"], row["seed"], row["kind"], row["patch"]) for row in rows}
    wanted = [(way, 0, "memory") for way in ("end to end", "end to end, checkpointed", *WAYS[1:5])]
    wanted += [(way, seed, "accuracy") for seed in range(given.seeds) for way in WAYS]
    missing = [row for row in wanted if (*row, given.patch) not in done]
    for way, seed, kind in missing[: given.most]:
        command = [sys.executable, "-m", "experiments.blockwise", "--out", str(given.out), "--steps", str(given.steps)]
        command += ["--patch", str(given.patch), "--row", way, str(seed), kind]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        print(line, flush=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")


if __name__ == "__main__":
    main()
