"""Several ranks against one process, on this machine: the same bits, what passes between them, and what each holds.

    python -m benchmarks.ranks bits --steps 1000        # 1 to 4 ranks, five ways to divide a step
    python -m benchmarks.ranks bits --steps 1000 --folder runs/bits --for 300       # in pieces: again until it is done
    python -m benchmarks.ranks blocks                   # NoProp's blocks: memory and processor time of a rank

Every line of `bits` comes from processes of its own, which torchrun starts with one thread each. Bytes are those of a
rank's messages in a step, with their headers, and of the run's step log.

`blocks` reads the peak of the resident memory of a whole run, with its checkpoints and its evaluation, over what it was
after the imports and the data, and over what a first run of one block a rank has left: the libraries' own code, which
ranks of one machine share, and their buffers. A step is a longer run less a shorter one, neither of which has a folder.
Processor time is that of the step whatever else a machine does; time by the clock counts only where as many cores are
free as there are ranks.
"""

import argparse
import ctypes
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sidestep import data, rules
from sidestep.training import Options, train
from sidestep.world import world_here

__all__ = ["WAYS", "Way", "leave", "main"]


@dataclass(frozen=True)
class Way:
    """A rule, and how a step of it is divided."""

    rule: Any
    split: str
    shares: int | None


WAYS = {
    "noise-step by probes": Way(rules.NoiseStep(estimator="weight-probes", probes=128, hidden=(16,)), "probes", 4),
    "noise-step by probes, trits alone": Way(
        rules.NoiseStep(estimator="weight-probes", trit_threshold="tracked", probes=128, hidden=(16,)), "probes", 4
    ),
    "noise-step by batch": Way(rules.NoiseStep(estimator="weight-probes", probes=128, hidden=(16,)), "batch", 4),
    "spsa by batch": Way(rules.SPSA(pairs=32, learning_rate=1e-3, hidden=(16,)), "batch", 4),
    "noprop-dt by blocks": Way(rules.NoPropDT(blocks=4), "units", None),
}


def leave(folder: Path, steps: int, way: Way) -> dict[str, Any]:
    """Train in one way, and return the digest of what the run has left, and the bytes of a step."""
    torch.set_num_threads(1)
    world, sent = world_here(), []
    digits = data.load("digits")  # an epoch of which, and so a block of the log, is longer than the counted runs
    given = {"batch": 64, "split": way.split, "shares": way.shares, "precision": "float32"}
    for count, out in ((steps, str(folder)), (2, None), (12, None)):
        before = world.sent_bytes + world.summed_bytes
        options = Options(steps=count, out=out, overwrite=out is not None, **given)
        train(way.rule, digits, options, readings=[])
        sent.append(world.sent_bytes + world.summed_bytes - before)
    log = folder / "steps.steplog"
    digest = hashlib.sha256()
    for file in (folder / "model.safetensors", log):
        digest.update(file.read_bytes() if world.leads and file.exists() else b"")
    for line in (folder / "metrics.jsonl").read_text().splitlines() if world.leads else []:
        digest.update(json.dumps({**json.loads(line), "seconds": 0}, sort_keys=True).encode())
    logged = log.stat().st_size if world.leads and log.exists() else 0
    return {"sha256": digest.hexdigest(), "bytes": (sent[2] - sent[1]) / 10, "log": logged / steps}


def hold(folder: Path, steps: int, blocks: int, batch: int) -> list[dict[str, float]]:
    """Train NoProp's blocks, and return for each rank what it held, worked and sent."""
    torch.set_num_threads(1)
    world = world_here()
    data.load("digits")
    imported = _resident("VmRSS")
    _train(world.size, 2, batch, None)
    _give_back()
    first, more = _resident("VmRSS"), steps - max(1, steps // 4)
    _forget_peak()
    run = _train(blocks, steps, batch, folder)
    peak = _resident("VmHWM")
    longer, shorter = (_train(blocks, count, batch, None) for count in (steps, steps - more))
    own = {
        "over the imports, MiB": (peak - imported) / 1024,
        "over a first small run, MiB": (peak - first) / 1024,
        "processor ms a step": 1000 * (longer.processor - shorter.processor) / more,
        "ms a step by the clock": 1000 * (longer.clock - shorter.clock) / more,
        "s of the run by the clock": run.clock,
        "MB sent": run.sent / 1e6,
    }
    return [json.loads(said) for said in world.gather(json.dumps(own).encode())]


@dataclass(frozen=True)
class _Took:
    processor: float  # seconds
    clock: float
    sent: int  # bytes


def _train(blocks: int, steps: int, batch: int, folder: Path | None) -> _Took:
    world = world_here()
    clock, processor, before = time.perf_counter(), time.process_time(), world.sent_bytes
    out = None if folder is None else str(folder)
    options = Options(batch=batch, steps=steps, split="units", out=out, precision="float32")
    train(rules.NoPropDT(blocks=blocks), data.load("digits"), options, readings=rules.NoPropDT.readings[:1])
    return _Took(time.process_time() - processor, time.perf_counter() - clock, world.sent_bytes - before)


def _give_back() -> None:
    """Give freed memory back to the system, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(entry: str) -> int:
    """Return an entry of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry))


def _forget_peak() -> None:
    """Let VmHWM begin at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def _on_ranks(ranks: int, *arguments: str) -> Any:
    """Return what this module's `worker` prints, started by torchrun."""
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launched, "-m", "benchmarks.ranks", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("{", "["))]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(lines[-1])


def _measure(folder: Path, steps: int, most: int, seconds: float) -> bool:
    """Write what each way leaves with each number of ranks to a file of its own; return whether all of them are there.

    What is there already is not done again, and nothing is begun after so many seconds.
    """
    started = time.monotonic()
    for ranks in range(1, most + 1):
        for number, name in enumerate(WAYS):
            done = folder / f"{steps}-{ranks}-{number}.json"
            if done.exists():
                continue
            if time.monotonic() - started > seconds:
                return False
            given = ("--folder", str(folder / "run"), "--steps", str(steps), "--way", name)
            found = _on_ranks(ranks, "worker-bits", *given)
            done.write_text(json.dumps(found))
    return True


def _bits(folder: Path, steps: int, most: int, seconds: float) -> None:
    if not _measure(folder, steps, most, seconds):
        print(f"not yet done; run it again, with --folder {folder}")
        return
    found: dict[int, dict[str, dict[str, Any]]] = {}
    print(f"{steps:,} steps, 64 digits each, one thread a rank\n")
    print("| way | ranks | bytes a step and rank | of the log | wire over log | sha256 of model, metrics and log |")
    print("|---|---|---|---|---|---|")
    for ranks in range(1, most + 1):
        files = [folder / f"{steps}-{ranks}-{number}.json" for number in range(len(WAYS))]
        found[ranks] = {name: json.loads(file.read_text()) for name, file in zip(WAYS, files, strict=True)}
        for name, each in found[ranks].items():
            over = f"{each['bytes'] / each['log']:.2f}" if each["log"] and ranks > 1 else "-"
            print(f"| {name} | {ranks} | {each['bytes']:.0f} | {each['log']:.1f} | {over} | {each['sha256'][:16]} |")
    wrong = [f"{n}, {r} ranks" for r in found for n in WAYS if found[r][n]["sha256"] != found[1][n]["sha256"]]
    print(
        "\n" + (f"NOT the same: {'; '.join(wrong)}" if wrong else f"the same bits for 1 to {most} ranks, in every way")
    )
    if wrong:
        sys.exit(1)


def _blocks(steps: int, blocks: int, batch: int) -> None:
    print(f"noprop-dt, {blocks} blocks, {steps} steps of {batch} digits, one thread a rank\n")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            given = ("--steps", str(steps), "--blocks", str(blocks), "--batch", str(batch))
            found = _on_ranks(ranks, "worker-blocks", "--folder", f"{folder}/{ranks}", *given)
            if ranks == 1:
                print("| ranks | rank | " + " | ".join(found[0]) + " |\n" + "|---" * (2 + len(found[0])) + "|")
            for rank, each in enumerate(found):
                print(f"| {ranks} | {rank} | " + " | ".join(f"{value:,.1f}" for value in each.values()) + " |")


def main(arguments: list[str] | None = None) -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["bits", "blocks", "worker-bits", "worker-blocks"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--most", type=int, default=4, help="ranks")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--for", type=float, default=math.inf, dest="seconds", help="seconds; then go on another time")
    parser.add_argument("--way", choices=WAYS)
    given = parser.parse_args(arguments)
    if given.what == "bits":
        with tempfile.TemporaryDirectory() as folder:
            place = given.folder or Path(folder)
            place.mkdir(parents=True, exist_ok=True)
            _bits(place, given.steps, given.most, given.seconds)
    elif given.what == "blocks":
        _blocks(given.steps, given.blocks, given.batch)
    else:
        bits = given.what == "worker-bits"
        found: Any = (
            leave(given.folder, given.steps, WAYS[given.way])
            if bits
            else hold(given.folder, given.steps, given.blocks, given.batch)
        )
        if world_here().leads:
            print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
