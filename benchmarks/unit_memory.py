"""Memory of a NoProp-DT step whose units run together, in turn, or one resident, beside backprop over the same blocks.

Figure 6's blocks, CIFAR-10 shapes, float32 on the CPU, one thread; every line in a process of its own. `tensors` is the
most that tensors took in a step, over the net and its optimiser, counted to the byte (`measure.peak_allocation`).
`process` is what the process grew by, from before the net was made on (VmHWM), with all that torch takes beside them.

OMP_NUM_THREADS=1 python benchmarks/unit_memory.py --plot docs/results/unit-memory.png
"""

import argparse
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sidestep.bench.memory.step_cost import Work, in_fresh_process, started, warm_up
from sidestep.bench.report import new_figure
from sidestep.measure import memory_growth, peak_allocation
from sidestep.rules import Backprop, NoPropDT
from sidestep.training import Compute
from sidestep.training.unit_modes import check_units

SHAPE, CLASSES = (3, 32, 32), 10
MIB = 1 << 20


class Memory(NamedTuple):
    """Bytes of one line."""

    tensors: int
    process: int


def measured(work: Work) -> Memory:
    """Take two steps, the second with its tensors counted."""
    torch.set_num_threads(1)
    check_units(work.rule, work.units, torch.device("cpu"))
    with peak_allocation():
        warm_up(Compute.find("cpu", "float32"))
    with memory_growth() as growth:
        loop, state = started(work)
        loop.take_step(state)  # makes the optimiser's moments
        with peak_allocation() as peak:
            loop.take_step(state)
        if state.files:
            state.files.close()
    return Memory(peak.bytes, growth.bytes)


def works(batch: int, counts: list[int]) -> dict[tuple[str, int], Work]:
    """Return what is measured, by way and number of blocks."""
    found = {}
    for blocks in counts:
        for units in ("together", "in-turn", "one-resident"):
            if units != "together" or blocks <= 20:
                found[units, blocks] = Work(NoPropDT(blocks=blocks), SHAPE, CLASSES, batch, units)
        if 1 < blocks <= 20:
            plain, checkpointed = (Backprop(blocks=blocks, activation_checkpointing=on) for on in (False, True))
            found["backprop", blocks] = Work(plain, SHAPE, CLASSES, batch)
            found["backprop, checkpointed", blocks] = Work(checkpointed, SHAPE, CLASSES, batch)
    return found


def slope(values: dict[int, int]) -> float:
    """Return the least-squares slope of values over their keys."""
    keys = list(values)
    middle, mean = sum(keys) / len(keys), sum(values.values()) / len(keys)
    return sum((k - middle) * (values[k] - mean) for k in keys) / sum((k - middle) ** 2 for k in keys)


def report(found: dict[tuple[str, int], Memory], blocks: int) -> None:
    """Print the ratios that the modes are held to."""
    alone = found["in-turn", 1]
    ratio = found["in-turn", blocks].tensors / found["backprop", blocks].tensors
    checked = found["in-turn", blocks].tensors / found["backprop, checkpointed", blocks].tensors
    print(f"in-turn / backprop, {blocks} blocks, tensors over net and optimiser: {ratio:.3f} (to reach: at most 0.2)")
    print(f"in-turn / checkpointed backprop, {blocks} blocks, likewise: {checked:.3f}")
    for way in ("in-turn", "one-resident"):
        over = {count: memory.tensors for (name, count), memory in found.items() if name == way and count > 1}
        share = slope(over) / alone.tensors
        print(f"{way}, slope over {', '.join(map(str, over))} blocks: {share:.3%} of a block per block (at most 1%)")
    for count in [count for name, count in found if name == "one-resident" and count > 1]:
        grown = found["one-resident", count].process / alone.process
        print(f"one-resident, {count} blocks / one block alone, growth of the process: {grown:.2f} (at most 1.5)")


def draw(found: dict[tuple[str, int], Memory], path: Path) -> None:
    """Draw both quantities over the number of blocks."""
    figure: Any = new_figure(10, 4.5)
    titles = {"tensors": "tensors in a step, over net and optimiser", "process": "growth of the process"}
    for (quantity, title), axes in zip(titles.items(), figure.subplots(1, 2), strict=True):
        for way, marker in zip(dict.fromkeys(name for name, _ in found), cycle("osvD^"), strict=False):
            line = {count: getattr(memory, quantity) / MIB for (name, count), memory in found.items() if name == way}
            of_rule = way if way.startswith("backprop") else f"noprop-dt, units {way}"
            axes.plot(
                list(line), list(line.values()), marker=marker, markersize=8, markerfacecolor="none", label=of_rule
            )
        axes.set(
            title=title, xlabel="blocks", ylabel="MiB", ylim=(0, None), xticks=sorted({count for _, count in found})
        )
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 5, 10, 20, 40], help="1 and two more at least")
    parser.add_argument("--plot", type=Path, default=None)
    given = parser.parse_args()
    found = {}
    print(f"{'units':24}{'blocks':>7}{'tensors, MiB':>14}{'process, MiB':>14}", flush=True)
    for (way, blocks), work in works(given.batch, given.blocks).items():
        memory, failed = in_fresh_process(measured, work)
        if memory is None:
            print(f"{way:24}{blocks:7} failed: {failed}", flush=True)
            continue
        found[way, blocks] = memory
        print(f"{way:24}{blocks:7}{memory.tensors / MIB:14.1f}{memory.process / MIB:14.1f}", flush=True)
    report(found, 10 if 10 in given.blocks else given.blocks[-1])
    if given.plot:
        draw(found, given.plot)


if __name__ == "__main__":
    main()
