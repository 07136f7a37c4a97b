"""What long runs cost as they go on: resident memory, files, and a log of very many steps.

    OMP_NUM_THREADS=1 python -m benchmarks.long_runs [--steps 50000] [--logged 1000000] [--out long_runs.json]

For each rule a run in a process of its own on the embedded digits; after every hundredth of its steps the resident
memory and the bytes of its files. The slope of memory is that of the straight line by least squares over the last half.

Then a log of very many steps of a small net is written: processor seconds to open it (`inspect` reads it through once),
and resident memory while it is replayed, with the slope over the last half.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidestep import Options, train
from sidestep.noise import Noise
from sidestep.rules import SPSA, Backprop, NoiseStep
from sidestep.rules.protocol import Rule
from sidestep.steplog import LogReader, LogWriter, summary
from sidestep.steplog.untrained import start_of
from sidestep.training.observers import StepEnd
from sidestep.update import Seeded

__all__ = ["RULES", "Samples", "long_log", "resident", "slope"]

RULES: dict[str, Rule[Any]] = {
    "backprop": Backprop(net="mlp", hidden=(64,)),
    "noise-step": NoiseStep(hidden=(32,)),
    "noise-step, weight probes": NoiseStep(hidden=(16,), estimator="weight-probes", schedule="constant", probes=32),
    "spsa": SPSA(hidden=(16,), learning_rate=1e-3),
}


def resident() -> int:
    """Return the bytes of this process that are in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(steps: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of the straight line through points, by least squares; over the last half of them."""
    steps, values = steps[len(steps) // 2 :], values[len(values) // 2 :]
    middle, height = sum(steps) / len(steps), sum(values) / len(values)
    spread = sum((step - middle) ** 2 for step in steps)
    return sum((step - middle) * (value - height) for step, value in zip(steps, values, strict=True)) / spread


class Samples:
    """Resident memory and the bytes of a run's files at every `every`-th step; an observer."""

    def __init__(self, every: int, folder: Path) -> None:
        self.every, self.folder = every, folder
        self.steps: list[float] = []
        self.memory: list[float] = []
        self.files: list[float] = []

    def on_step(self, end: StepEnd) -> None:
        """Take a sample."""
        if end.step % self.every == 0:
            self.steps.append(end.step)
            self.memory.append(resident())
            self.files.append(sum(file.stat().st_size for file in self.folder.glob("*") if file.is_file()))

    def figures(self) -> dict[str, Any]:
        """Return the samples and their slopes, bytes a step."""
        return {
            "steps": self.steps, "resident": self.memory, "files": self.files,
            "resident_slope": slope(self.steps, self.memory), "files_slope": slope(self.steps, self.files),
        }  # fmt: skip


def long_run(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """Train a rule of `RULES` on digits for as many steps, here; return samples and processor seconds."""
    samples = Samples(max(1, steps // 100), folder)
    before = time.process_time()
    train(RULES[name], "digits", Options(steps=steps, out=folder), observers=[samples])
    return {"seconds": time.process_time() - before, **samples.figures()}


def long_log(folder: Path, steps: int) -> Path:
    """Write a log of as many steps of a small net: those of one real step, with other coefficients."""
    train(SPSA(hidden=(4,), pairs=1, learning_rate=1e-3), "digits", Options(steps=1, out=folder))
    (source,) = folder.glob("*.steplog")
    reader = LogReader(source)
    ((_, first),) = reader.records()
    assert isinstance(first, Seeded)
    path = folder / "long.steplog"
    log = LogWriter.create(path, reader.header)
    signs = Noise(0).stream("coefficients").signs(steps)
    for step in range(steps):
        probes = replace(first.probes, noise=first.probes.noise.at(step))
        log.append(replace(first, coefs=first.coefs.abs() * signs[step], probes=probes))
    log.commit()
    log.close()
    return path


def opened(path: Path, every: int) -> dict[str, Any]:
    """Open a log and replay it, here; return processor seconds and memory."""
    started = time.process_time()
    steps = summary(LogReader(path))["steps"]
    open_seconds = time.process_time() - started
    reader = LogReader(path)
    rule, net = start_of(reader.header, None)
    optimizer, at, memory = rule.optimizer(net), [], []
    started = time.process_time()
    for step, update in reader.records():
        rule.apply(net, update, optimizer)
        if step % every == 0:
            at.append(float(step))
            memory.append(float(resident()))
    return {
        "steps": steps, "bytes": path.stat().st_size, "open_seconds": open_seconds,
        "replay_seconds": time.process_time() - started, "resident_slope": slope(at, memory),
        "resident_first": memory[0], "resident_last": memory[-1],
    }  # fmt: skip


def _apart(task: str, steps: int, folder: Path) -> dict[str, Any]:
    """Do one part in a fresh process, and return its figures."""
    command = [sys.executable, "-m", "benchmarks.long_runs", "--part", task, "--steps", str(steps), "--in", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Print one line for each rule, and one for the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--logged", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part, folder = given.part, given.folder
        found = opened(folder / "long.steplog", max(1, given.steps // 100)) if part == "log" else (
            long_run(part, given.steps, folder))  # fmt: skip
        print(json.dumps(found))
        return
    every: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as holder:
        for index, name in enumerate(RULES):
            every[name] = found = _apart(name, given.steps, Path(holder) / str(index))
            memory, files = found["resident_slope"], found["files_slope"]
            spent = f"{given.steps:,} steps, {found['seconds']:.0f} s"
            print(f"{name:28} {spent}: resident memory {memory:+.0f} bytes a step, files {files:+.1f}", flush=True)
        long_log(Path(holder) / "log", given.logged)
        every["log"] = found = _apart("log", given.logged, Path(holder) / "log")
    size = f"a log of {found['steps']:,} steps, {found['bytes']:,} bytes"
    times = f"read through in {found['open_seconds']:.2f} s, replayed in {found['replay_seconds']:.0f} s"
    print(f"{size}: {times}, resident memory {found['resident_slope']:+.2f} bytes a step")
    if given.out:
        given.out.write_text(json.dumps(every, indent=1))


if __name__ == "__main__":
    main()
