"""Training over thin links: a simulation to 1,000 workers from what is measured here, held to real processes.

    python -m benchmarks.links --link 1Mbit,50ms --to 0.97                   # the simulation, and its check
    python -m benchmarks.links --workers 4 --check 2 4 --check-seconds 60

1. Measured in one process: processor seconds of an estimate at several sizes and of what follows, the bytes of a real
   message, the steps to an accuracy on validation images (4 parts of a batch of 128), for each seed.
2. Checked: so many processes train some steps over relays that are such a link (`benchmarks.links.relay`), in a ring;
   printed is the simulated over the real time of a step.
3. Simulated: each line says so. Up to 8 workers share a batch of 128; more have 16 examples each, and the number of
   steps is taken to stay the same, so that larger batches are counted as no help to anybody.
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

import torch

from benchmarks.links.real import real
from benchmarks.links.relay import link_option, parse_link
from benchmarks.links.simulation import Churn, Costs, run
from benchmarks.links.ways import BATCH, WAYS, NoiseStep
from sidestep.noise import Noise

LEAST, CURVE_PARTS = 16, 4


def timed(name: str, given: argparse.Namespace) -> Costs:
    """Measure in this process what a step of one way takes."""
    kind, times, rests = WAYS[name], {}, []
    for parts in (1, 4, 8):
        way, found = kind(given.data, parts, 1000), []
        for step in range(12):
            way.step(step)
            found.append(way.part_seconds)
            rests.append(way.rest_seconds)
        times[BATCH // parts] = statistics.median(found[2:])
    small, large = min(times), max(times)
    each = max(0.0, (times[large] - times[small]) / (large - small))
    seeded = issubclass(kind, NoiseStep)
    return Costs(
        times[small] - each * small,
        each,
        statistics.median(rests),
        way.payload,
        way.every,
        way.rounds_of_sum,
        None,
        0 if seeded else 3 * way.payload,  # weights and two moments
        way.log_bytes,
    )


def reached(name: str, seed: int, given: argparse.Namespace) -> int | None:
    """Return after how many steps validation images are as right as is asked for; looks every 20 steps.

    Of the schedules, the first that gets there counts, so no way has to follow a longer one than it needs. What is
    kept in a file is not measured again.
    """
    key = {"way": name, "seed": seed, "to": given.to, "steps": sorted(given.steps), "data": given.data}
    kept = [json.loads(line) for line in given.keep.read_text().splitlines()] if given.keep.exists() else []
    found = next((each for each in kept if {**each, **key} == each), None)
    if found is None:
        taken, best = _trained(name, seed, given)
        found = {**key, "taken": taken, "best": best}
        with given.keep.open("a") as file:
            file.write(json.dumps(found) + "\n")
    said = f"measured: {name}, seed {seed}: {100 * found['best']:.2f} % of validation images"
    end = f"after {found['taken']} steps" if found["taken"] else f"at best, in {max(given.steps)} steps"
    print(f"{said} {end}", flush=True)
    return found["taken"]


def _trained(name: str, seed: int, given: argparse.Namespace) -> tuple[int | None, float]:
    best = 0.0
    for steps in sorted(given.steps):
        way = WAYS[name](given.data, CURVE_PARTS, steps, seed=seed)
        for step in range(steps):
            way.step(step)
            if (step + 1) % 20 == 0:
                best = max(best, way.right())
            if best >= given.to:
                return step + 1, best
    return None, best


def check(name: str, costs: Costs, size: int, given: argparse.Namespace) -> float:
    """Print the simulated over the real time of a step, and return the real one."""
    expected = costs.step(given.link, size, BATCH // size, ring=True)
    periods = min(30, max(2, int(given.check_seconds / (expected * costs.every))))
    took, sent = real(name, size, given.link, given.data, (periods + 1) * costs.every)
    print(
        f"real: {size} processes, {given.link}: {name} {took:.3f} s a step, {sent:,.0f} B sent a step and worker; "
        f"simulated {expected:.3f} s, simulated over real {expected / took:.2f}",
        flush=True,
    )
    return took


def simulate(costs: dict[str, Costs], steps: dict[str, list[int]], workers: int, given: argparse.Namespace) -> None:
    """Print a line for each way: the mean over the seeds, and the least and most of its ratio to noise-step's time."""
    examples = max(LEAST, BATCH // workers)
    churn = Churn(given.churn)
    ends = {
        name: [
            run(dataclasses.replace(each, steps=taken), given.link, workers, examples, churn,
                Noise(seed).stream(name))
            for seed, taken in zip(given.seeds, steps[name], strict=True)
        ]
        for name, each in costs.items()
        if steps[name]
    }  # fmt: skip
    for name, each in costs.items():
        step = each.step(given.link, workers, examples)
        line = f"simulation: {workers:5,} workers, {given.link}: {name:13} {step:8.3f} s a step"
        if name in ends:
            found = ends[name]
            seconds, sent = (
                statistics.fmean(values) for values in zip(*((e.seconds, e.sent) for e in found), strict=True)
            )
            line += f", {seconds:10,.0f} s and {sent / 1e6:10,.2f} MB sent a worker to {100 * given.to:g} %"
            line += f", {statistics.fmean(each.left for each in found):.0f} left"
            if name != "noise-step" and "noise-step" in ends:
                ratios = [one.seconds / other.seconds for one, other in zip(found, ends["noise-step"], strict=True)]
                line += f", {min(ratios):.1f} to {max(ratios):.1f} times noise-step's"
        print(line, flush=True)


def main() -> None:
    """Measure, check, simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", type=link_option, default=parse_link("1Mbit,50ms"), help="bits a second, round trip")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--to", type=float, default=0.97, help="share of validation images; 0: steps alone")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1200, 2400, 4800], help="schedules, of which the first that gets there"
    )
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs whose steps are counted")
    parser.add_argument("--keep", type=Path, default=Path("links.jsonl"), help="file that keeps these counts")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 64, 256, 1000])
    parser.add_argument("--churn", type=float, default=0.1, help="how often an hour a worker goes")
    parser.add_argument("--check", type=int, nargs="*", default=[2, 4], help="processes to hold the simulation to")
    parser.add_argument("--check-seconds", type=float, default=20, help="of each of them, at least two exchanges")
    given = parser.parse_args()
    torch.set_num_threads(1)
    costs = {name: timed(name, given) for name in given.ways}
    for name, each in costs.items():
        print(
            f"measured: {name}: {1e3 * each.compute(BATCH):.2f} ms a step of {BATCH} examples, of which "
            f"{1e3 * each.rest:.2f} after the exchange; a message of {each.payload:,} B every {each.every} steps",
            flush=True,
        )
    for size in given.check:
        took = {name: check(name, each, size, given) for name, each in costs.items()}
        if {"DDP", "noise-step"} <= took.keys():
            ratio = took["DDP"] / took["noise-step"]
            print(f"real: {size} processes: DDP's step over noise-step's {ratio:.1f}", flush=True)
    taken = {name: [reached(name, seed, given) for seed in given.seeds] if given.to else [] for name in given.ways}
    steps = {name: [each for each in found if each] if None not in found else [] for name, found in taken.items()}
    for workers in given.workers:
        simulate(costs, steps, workers, given)


if __name__ == "__main__":
    main()
