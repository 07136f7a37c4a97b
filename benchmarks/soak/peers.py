"""Kill workers of a run that others may join, at random instants, let new ones in, and compare what the run leaves.

Workers are killed (SIGKILL), or stopped (SIGSTOP, as a laptop that is closed); now and then the host itself is killed,
and its run goes on with `resume`. In the end weights, log and metrics without seconds must be those of a run that one
process takes alone, bit for bit. `--count` is the number of kills; the counts also tell the longest step.

Forked processes do all of it. Needs fork: Linux or macOS.
"""

import json
import mmap
import os
import random  # noqa: TID251
import shutil
import signal
import socket
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sidestep import Options, checkpoint, data, train
from sidestep.errors import SidestepError
from sidestep.rules import SPSA, NoiseStep
from sidestep.training.joining import join_run
from sidestep.world import Guest, Host

DEFAULT = 200
HANG = 30.0  # seconds without a step
PEERS, PAUSE = 3, 0.01  # workers at a time; seconds that a step is made longer by, so that kills meet every part of it
TIMEOUT = 1.2
MOST = 25  # kills of a run
_SEEN = struct.Struct("<QdQ")  # step, longest step in seconds, workers that have parts
RULES: Mapping[str, Any] = {
    "weight probes": NoiseStep(estimator="weight-probes", probes=16, hidden=(8,)),
    "flips": NoiseStep(hidden=(8,)),
    "spsa": SPSA(hidden=(4,), pairs=4, learning_rate=1e-3),
}


def images() -> data.DataSet:
    """Return a few made-up images."""
    pixels = torch.arange(180 * 16, dtype=torch.float32).reshape(180, 1, 4, 4) * 0.37 % 7
    labels = torch.arange(180) % 3
    return data.from_arrays(pixels[:160], labels[:160], pixels[160:], labels[160:], validation=0.2)


def options(out: Path, epochs: int, resume: bool = False) -> Options:
    """Return those of every run: steps of four parts, a checkpoint after every second."""
    return Options(epochs=epochs, batch=64, shares=4, split="batch", precision="float32", out=out, resume=resume)


class Beating:
    """An observer that counts steps in memory that the parent sees, and makes each a little longer."""

    def __init__(self, seen: mmap.mmap, host: Host) -> None:
        self.seen, self.host, self.last = seen, host, time.monotonic()

    def on_step(self, event: Any) -> None:
        """Note the step and the longest time that one took."""
        _, longest, _ = _SEEN.unpack_from(self.seen)
        now = time.monotonic()
        _SEEN.pack_into(self.seen, 0, event.step, max(longest, now - self.last), self.host.workers)
        time.sleep(PAUSE)
        self.last = time.monotonic()


def host_run(rule: str, given: Options, port: int, seen: mmap.mmap) -> None:
    """Train, and let others join."""
    host = Host(str(port), b"a token for all of them", TIMEOUT)
    train(RULES[rule], images(), given, readings=[], host=host, observers=[Beating(seen, host)])


def worker_run(port: int) -> None:
    """Join, and help until the run ends."""
    join_run(Guest(str(port), b"a token for all of them", wait=10.0), lambda config: images())


def forked(work: Callable[[], None], said: Path) -> int:
    """Do some work in a forked process; what it ends with, unless all is well, is written to a file."""
    child = os.fork()
    if child:
        return child
    status = 0
    try:
        warnings.simplefilter("ignore")
        work()
    except SidestepError as error:
        said.write_text(str(error))
        status = 2
    except BaseException:
        said.write_text(traceback.format_exc())
        status = 3
    os._exit(status)


def facts(out: Path) -> dict[str, Any]:
    """Return what must not depend on who took part."""
    tensors, _ = checkpoint.load(out / "model.safetensors")
    weights = {key: tensor.contiguous().view(-1).view(torch.uint8).tolist() for key, tensor in tensors.items()}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    return {"weights": weights, "log": (out / "steps.steplog").read_bytes(), "metrics": metrics}


class Siege:
    """One run, and the workers that are killed while it trains.

    workers: processes -> from when on they are killed if they still live; 0 of those that run.
    """

    def __init__(self, place: Path, rule: str, epochs: int, dice: random.Random, counts: Counter[str]) -> None:
        self.place, self.rule, self.epochs, self.dice, self.counts = place, rule, epochs, dice, counts
        self.out, self.seen = place / "run", mmap.mmap(-1, _SEEN.size)
        self.workers: dict[int, float] = {}
        self.host = 0

    def begin(self) -> None:
        """Start the host, at a port that is free."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        given = options(self.out, self.epochs, resume=(self.out / "config.toml").exists())
        self.host = forked(lambda: host_run(self.rule, given, self.port, self.seen), self.place / "host")

    def take(self, kills: int) -> str | None:
        """Train to the end, with up to so many kills on the way; return what was wrong, if anything was."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.begin()
        step, since, next_kill = 0, time.monotonic(), time.monotonic() + 1
        try:
            while True:
                done, status = os.waitpid(self.host, os.WNOHANG)
                if done:
                    self.host = 0
                    status = os.waitstatus_to_exitcode(status)
                    return None if status == 0 else f"lost runs: the host ended with {status}: {self.words('host')}"
                now, (found, _, ready) = time.monotonic(), _SEEN.unpack_from(self.seen)
                if found != step:
                    step, since = found, now
                if now - since > HANG:
                    return f"hangs: no step after step {step} within {HANG:.0f} s"
                wrong = self.tend(now)
                if wrong:
                    return wrong
                if now > next_kill and kills > 0 and ready:
                    kills -= self.strike(now)
                    next_kill = now + self.dice.expovariate(3.0)
                time.sleep(0.005)
        finally:
            self.end()

    def tend(self, now: float) -> str | None:
        """Start new workers for those that have gone; return what one has said that died of itself."""
        for worker, due in list(self.workers.items()):
            if due and now > due:
                os.kill(worker, signal.SIGKILL)
            if os.waitpid(worker, os.WNOHANG)[0]:
                del self.workers[worker]
                said = self.place / f"worker {worker}"
                if said.exists() and "Traceback" in said.read_text():
                    return f"tracebacks: {said.read_text()}"
        while len(self.workers) < PEERS:
            self.counts["joins"] += 1
            self.workers[self.worker()] = 0.0
        return None

    def worker(self) -> int:
        """Start a worker; its words go into a file of its number."""
        port, place = self.port, self.place

        def work() -> None:
            try:
                worker_run(port)
            except SidestepError:
                return  # its host has gone, or has dropped it
            except BaseException:
                (place / f"worker {os.getpid()}").write_text(traceback.format_exc())

        return forked(work, place / "worker")

    def strike(self, now: float) -> int:
        """Kill a worker, stop one and kill it later, or kill the host; return how many that were: 1, or nobody."""
        drawn = self.dice.random()
        running = [worker for worker, due in self.workers.items() if not due]
        if drawn < 0.03:
            self.counts["hosts killed"] += 1
            os.kill(self.host, signal.SIGKILL)
            os.waitpid(self.host, 0)
            self.begin()
        elif drawn < 0.12 and running:
            worker = self.dice.choice(running)
            os.kill(worker, signal.SIGSTOP)
            self.workers[worker] = now + self.dice.uniform(0.1, 3 * TIMEOUT)
            self.counts["stopped"] += 1
        elif running:
            worker = self.dice.choice(running)
            os.kill(worker, signal.SIGKILL)
            self.workers[worker] = now
        else:
            return 0
        self.counts["kills"] += 1
        return 1

    def end(self) -> None:
        """End every process that is left."""
        for process in [*self.workers, *([self.host] if self.host else [])]:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        self.workers.clear()
        longest = int(1000 * _SEEN.unpack_from(self.seen)[1])
        self.counts["longest step, ms"] = max(self.counts["longest step, ms"], longest)

    def words(self, name: str) -> str:
        """Return what a process has left."""
        file = self.place / name
        return file.read_text()[-2000:] if file.exists() else "no word"


def run(
    seed: int,
    count: int,
    rules: Sequence[str] = tuple(RULES),
    epochs: int = 60,
    report: Callable[[str], None] = print,
) -> dict[str, int]:
    """Kill `count` workers or hosts (0: 1,000), over as many runs as that takes, and return the counts.

    Args:
        seed: of what is drawn: who is killed, and when, as far as that follows from it.
        count: how many are killed.
        rules: of whose runs, one after another.
        epochs: of a run, two steps each.
        report: called with a line about each failure.
    """
    dice, threads = random.Random(seed), torch.get_num_threads()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter(dict.fromkeys(("kills", "stopped", "hosts killed", "joins", "runs"), 0))
    counts.update(dict.fromkeys(("silent differences", "lost runs", "tracebacks", "hangs"), 0))
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        with tempfile.TemporaryDirectory(dir=memory) as name:
            place, whole = Path(name).resolve(), {}
            for rule in rules:
                train(RULES[rule], images(), options(place / "alone" / rule, epochs), readings=[])
                whole[rule] = facts(place / "alone" / rule)
            while counts["kills"] < (count or 1000):
                rule = rules[counts["runs"] % len(rules)]
                wrong = Siege(place, rule, epochs, dice, counts).take(min(MOST, (count or 1000) - counts["kills"]))
                counts["runs"] += 1
                found = {} if wrong else facts(place / "run")
                different = [key for key in found if found[key] != whole[rule][key]]
                wrong = wrong or (f"silent differences: {', '.join(different)}" if different else None)
                if wrong:
                    counts[wrong.partition(":")[0]] += 1
                    report(f"{rule}, run {counts['runs']}: {wrong}")
        return dict(counts)
    finally:
        torch.set_num_threads(threads)
