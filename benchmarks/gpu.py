"""Measure all that is wanted from a GPU in one call of under ten minutes, part by part.

    python -m benchmarks.gpu --out runs/gpu [--data-dir FOLDER] [--only together paper ...]
    python -m benchmarks.gpu --out /tmp/gpu --device cpu --tiny         the same code in seconds, without a GPU

Each part is a process of its own with its own time limit, and writes one JSON line to OUT/results.jsonl as soon as it
is done; a part that fails or runs out of time is written down as that, and the others go on. `to 93` needs the real
CIFAR-10 (`cifar10.npz` in the folder given, or the network) and takes what time is left; a second call takes it up
where it was stopped. Everything else runs on made-up images of the same shape, on which a step costs the same.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import DTYPES, Roof, count_flops, finish, made_up, ready
from sidestep.errors import InputError
from sidestep.measure import peak_memory_bytes
from sidestep.nets.dropout_masks import dropout_mask
from sidestep.noise import Noise
from sidestep.presets.catalogue import find_preset
from sidestep.rules import RULES, NoPropDT
from sidestep.training.options import Compute

TOTAL = 590.0  # seconds for all parts
IMAGES, EPOCHS = 50_000, 150  # CIFAR-10's training split, and the paper's epochs
PRESET, WANTED = "noprop-best-cifar10-dt", 0.93


@dataclass(frozen=True)
class Setting:
    """What all parts are told."""

    device: str
    tiny: bool
    seconds: float  # to spend on timing
    out: Path
    data_dir: Path | None

    @property
    def shapes(self) -> tuple[str, int, int]:
        """The shapes' name, blocks and batch."""
        return ("digits", 2, 16) if self.tiny else ("cifar10", 10, 128)

    @property
    def compute(self) -> Compute:
        """The device and its own precision."""
        return Compute.find(self.device, "auto")


Part = Callable[[Setting], dict[str, Any]]


def noise_is_equal(given: Setting) -> dict[str, Any]:
    """Compare what the device draws with what the CPU draws: exact, but for the last bits of normal values."""
    noise, count, device = Noise(7).stream("gpu").at(3), 1000 if given.tiny else 1_000_003, given.device
    exact = {
        "words": lambda where: noise.words(count, 5, where),
        "signs": lambda where: noise.signs(count, 5, where),
        "sparse signs": lambda where: noise.sparse_signs(count, 0.01, 5, where),
        "uniform": lambda where: noise.uniform(count, 5, where),
        "integers": lambda where: noise.integers(count, 1000, 5, where),
        "permutation": lambda where: noise.permutation(count, where),
    }
    found = {name: bool(torch.equal(draw("cpu"), draw(device).cpu())) for name, draw in exact.items()}
    apart = (noise.normal(count) - noise.normal(count, device=device).cpu()).abs().max()
    kept = dropout_mask((count,), 0.2, noise.generator(device)).gt(0).double().mean()
    return {"equal": found, "normal, largest difference": float(apart), "dropout, share kept": float(kept)}


def machine(given: Setting) -> dict[str, Any]:
    """Measure matrix products in both precisions, and the bandwidth."""
    size = 128 if given.tiny else 8192
    found = {name: Roof.measure(dtype, given.device, size) for name, dtype in DTYPES.items()}
    rates = {f"{name}, TFLOP/s": roof.flops / 1e12 for name, roof in found.items()}
    name = torch.cuda.get_device_name() if torch.device(given.device).type == "cuda" else "cpu"
    return {"device": name, **rates, "copies, GB/s": found["float32"].bandwidth / 1e9}


def timed(step: Callable[[], object], seconds: float, device: torch.device) -> dict[str, Any]:
    """Return the seconds of a step, after three that warm up, and the peak of memory."""
    started = time.perf_counter()
    for _ in range(3):
        step()
    finish(device)
    warm = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or not steps:
        step()
        steps += 1
        if steps % 20 == 0:
            finish(device)  # or the clock would be that of the launches
    finish(device)
    taken = (time.perf_counter() - started) / steps
    memory = peak_memory_bytes(device) / 2**20
    return {"seconds a step": taken, "steps timed": steps, "first three steps, s": warm, "peak MiB": memory}


def engine(way: str) -> Part:
    """Return the part that times one way to compute the blocks."""

    def run(given: Setting) -> dict[str, Any]:
        name, blocks, batch = given.shapes
        loop, state = ready(NoPropDT(blocks=blocks), made_up(name), given.compute, batch=batch)
        roof = Roof.measure(DTYPES[given.compute.precision], given.device, 128 if given.tiny else 8192)
        flops, batches = count_flops(loop, state), [loop.batch(0)]
        found = []
        for each in ("per block", way):
            state.net.set_execution(each)
            with given.compute.autocast():
                found.append(loop.rule.estimate(state.net, batches[0], loop.noise.stream("estimate")).losses)
        apart = max(abs(float(found[1][key] / found[0][key]) - 1) for key in found[0])
        result = timed(lambda: loop.take_step(state), given.seconds, given.compute.device)
        share = flops / result["seconds a step"] / roof.flops
        return {**result, "share of the matrix rate": share, "losses apart from per block": apart}

    return run


def paper(given: Setting) -> dict[str, Any]:
    """Project the paper's CIFAR-10 run, 10 blocks x 150 epochs at batch 128, from what is measured."""
    name, blocks, batch = given.shapes
    loop, state = ready(NoPropDT(blocks=blocks), made_up(name), given.compute, batch=batch)
    result = timed(lambda: loop.take_step(state), given.seconds, given.compute.device)
    steps = IMAGES // batch * EPOCHS
    minutes = steps * result["seconds a step"] / 60
    return {**result, "way": state.net.execution(given.compute.device), "steps": steps, "projected minutes": minutes}


def preset(key: str) -> Part:
    """Return the part that times the epoch of one of our presets."""

    def run(given: Setting) -> dict[str, Any]:
        one = find_preset(f"noprop-best-cifar10-{key}")
        train = {**one.train, **({"batch": 16} if given.tiny else {})}
        options = {**one.options, **({"path": "auto"} if given.tiny else {})}
        data = made_up(given.shapes[0], max(2048, train["batch"]))
        loop, state = ready(RULES[one.rule](**options), data, given.compute, **train)
        result = timed(lambda: loop.take_step(state), given.seconds, given.compute.device)
        epoch = IMAGES // train["batch"] * result["seconds a step"]
        return {**result, "seconds an epoch": epoch, "epochs": train["epochs"], "minutes": epoch * train["epochs"] / 60}

    return run


def said_until_the_end(process: "subprocess.Popen[str]", seconds: float, patience: float = 20) -> str:
    """Return what a process writes to standard error; it is asked to end after `seconds`, and then made to."""
    # asked, a run finishes the step under way and writes a checkpoint
    for limit, end in ((seconds, process.terminate), (patience, process.kill)):
        try:
            return process.communicate(timeout=limit)[1]
        except subprocess.TimeoutExpired:
            end()
    return process.communicate()[1]


def to_93(given: Setting) -> dict[str, Any]:
    """Train our preset on CIFAR-10 until the time is up; say when validation first passed 93 %."""
    one, folder = find_preset(PRESET), given.out / "to-93"
    recipe = ["--data", "digits", "--blocks", "2", "--epochs", "2"] if given.tiny else ["--preset", PRESET]
    again = ["--resume"] if (folder / "config.toml").exists() else []
    where = ["--data-dir", str(given.data_dir)] if given.data_dir else []
    command = [sys.executable, "-m", "sidestep", "train", one.rule, *recipe, *where,
               "--device", given.device, "--checkpoint-seconds", "20", "--out", str(folder), *again]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = said_until_the_end(process, given.seconds)
        finally:
            process.kill()
    if not (folder / "metrics.jsonl").exists():
        return {"failed": said[-800:]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["seconds"], line["value"]) for line in lines if line["split"] == "validation"]
    first = next((seconds for seconds, value in seen if value >= WANTED), None)
    best = max((value for _, value in seen), default=None)
    return {"seconds to 93 %": first, "best validation accuracy": best, "epochs": len(seen), "said": said[-300:]}


PARTS: dict[str, tuple[Part, float]] = {  # name -> what it does, and its time limit in seconds
    "noise": (noise_is_equal, 30),
    "machine": (machine, 30),
    "per block": (engine("per block"), 40),
    "together": (engine("together"), 40),
    "graph": (engine("graph"), 60),
    "compiled": (engine("compiled"), 120),
    "paper": (paper, 75),
    "preset dt": (preset("dt"), 45),
    "preset ct": (preset("ct"), 45),
    "to 93": (to_93, TOTAL),
}


def run_with_all_it_starts(command: list[str], limit: float) -> "subprocess.CompletedProcess[str]":
    """As `subprocess.run` with a time limit, but nothing that the command has started outlives it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            said, errors = process.communicate(timeout=limit)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, said, errors)


def run_in_process(name: str, limit: float, given: argparse.Namespace) -> dict[str, Any]:
    """Run a part in a process of its own; return its result, or what became of it."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(given.out), "--device", given.device,
               "--one", name, "--limit", str(limit)]  # fmt: skip
    command += ["--data-dir", str(given.data_dir)] if given.data_dir else []
    try:
        done = run_with_all_it_starts(command, limit + 30)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit + 30:.0f} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"failed": done.stderr[-800:]}


def run_here(name: str, limit: float, given: argparse.Namespace) -> dict[str, Any]:
    """Run a part in this process."""
    timing = limit if name == "to 93" else (0.05 if given.tiny else max(5.0, limit - 25))
    return PARTS[name][0](Setting(given.device, given.tiny, timing, given.out, given.data_dir))


def main(arguments: list[str] | None = None) -> None:
    """Run the parts, one after another, and write a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small sizes, in one process: to see that it works")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=30, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(run_here(given.one, given.limit, given)))
        return
    try:
        Compute.find(given.device, "auto")
    except InputError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with (given.out / "results.jsonl").open("a") as file:
        for name in given.only:
            left = TOTAL - (time.perf_counter() - started)
            limit = min(PARTS[name][1], left - 40)
            started = time.perf_counter()
            if limit < 10:
                result: dict[str, Any] = {"failed": "no time was left"}
            else:
                result = (run_here if given.tiny else run_in_process)(name, limit, given)
            line = json.dumps({"part": name, "took": round(time.perf_counter() - started, 1), **result})
            file.write(line + "\n")
            file.flush()
            print(line, flush=True)


if __name__ == "__main__":
    main()
