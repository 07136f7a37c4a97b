"""Kill a tiny run at every file operation, go on with it, and compare its end with that of a run that nobody killed.

Five rules, and three courses: a new run, a finished run that is trained further, and one that is overwritten. At each
operation under the run's folder (open for writing, write, truncate, fsync, rename, unlink, mkdir, rmdir) the process
dies before it, dies after a part of a write, or is told of an error (full disk, bad disk). Then the same command is
given again; in some cases that process is killed too. In the end weights, state, log, metrics without seconds, result
and configuration must be those of the uninterrupted run, bit for bit, and nothing else may be left in the folder.

A forked process takes each course, so a thousand points take minutes. Needs fork: Linux or macOS.
"""

import contextlib
import json
import os
import random  # noqa: TID251
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.soak._operations import KILLED, Fault, Operations
from sidestep import Options, checkpoint, data, load_run, train
from sidestep.errors import SidestepError
from sidestep.rules import SPSA, Backprop, LocalLoss, NoiseStep, NoPropDT
from sidestep.steplog import writer

DEFAULT = 1000
SECONDS = 120  # more is a hang
DONE, REFUSED, FAILED = 0, 2, 3  # exit statuses of a process, beside KILLED
DOUBLE = 0.4  # share of points at which the second process is killed, too


def image_path() -> nn.Module:
    """Return a module that keeps the files small."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))


RULES: Mapping[str, Any] = {
    "noise-step": NoiseStep(hidden=(8,)),
    "spsa": SPSA(hidden=(4,)),
    "noprop-dt": NoPropDT(blocks=2),
    "local-loss": LocalLoss(hidden=(4, 4)),
    "backprop": Backprop(net="mlp", hidden=(4,)),
}


@dataclass(frozen=True)
class Course:
    """One command, given until it succeeds, in a folder that may hold a run before."""

    rule: str
    kind: str  # new, further, over

    def begin(self, out: Path, made: Path) -> None:
        """Put what is there before: nothing, or a finished run of one epoch."""
        if self.kind != "new":
            shutil.copytree(made / self.rule, out)

    def take(self, out: Path) -> None:
        """Give the command."""
        again = {"overwrite": True} if self.kind == "over" else {"resume": True}
        options = Options(epochs=2, batch=12, seed=1 if self.kind == "over" else 0, out=out, **again)
        learn(self.rule, options)


def learn(rule: str, options: Options) -> None:
    """Train on a few made-up images."""
    pixels = torch.arange(64 * 16, dtype=torch.float32).reshape(64, 1, 4, 4) * 0.37 % 7
    labels = torch.arange(64) % 3
    found = data.from_arrays(pixels[:40], labels[:40], pixels[40:], labels[40:], validation=0.25)
    train(RULES[rule], found, options, module=image_path if rule == "noprop-dt" else None)


def in_child(work: Callable[[], None], fault: Fault | None, folder: Path) -> tuple[int, str, list[str]]:
    """Do some work in a forked process; return its exit status, what it says of its end, and its operations."""
    here, there = os.pipe()
    child = os.fork()
    if not child:
        os.close(here)
        signal.alarm(SECONDS)
        status, words, operations = FAILED, "", Operations(folder, fault)
        try:
            warnings.simplefilter("ignore")
            operations.install()
            work()
            status = DONE
        except SidestepError as error:
            status, words = REFUSED, str(error)
        except BaseException:
            words = traceback.format_exc()
        os.write(there, json.dumps([words[-3000:], operations.seen[:1000]]).encode())
        os._exit(status)
    os.close(there)
    with os.fdopen(here, "rb") as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    words, seen = json.loads(text) if text else ("", [])
    return status, words, seen


def facts(out: Path) -> dict[str, Any]:
    """Return all that must be the same at the end, however often a run was killed."""
    found: dict[str, Any] = {"names": sorted(path.name for path in out.iterdir())}
    for name in ("model.safetensors", "state.safetensors"):
        tensors, record = checkpoint.load(out / name)
        found[name] = {key: (str(t.dtype), t.shape, t.contiguous().view(-1).view(torch.uint8).tolist())
                       for key, t in tensors.items()}  # fmt: skip
        own = ("seconds", "metrics_digest", "metrics_bytes")  # the metrics hold seconds
        found[f"record of {name}"] = {key: value for key, value in record.items() if key not in own}
        record.get("optimizer", {}).get("tensors", []).sort()  # come back by their names, in whatever order
    found["metrics"] = [_without_seconds(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((out / "result.json").read_text())
    own = ("seconds", "peak_memory_bytes", "run", "digest")
    found["result"] = {key: value for key, value in result.items() if key not in own}
    log = out / "steps.steplog"
    found["log"] = log.read_bytes() if log.exists() else None
    found["config"] = (out / "config.toml").read_text()
    return found


def _without_seconds(line: str) -> Any:
    """Return a line of the metrics but for its seconds; as it stands if it is torn, which no finished run's may be."""
    try:
        return {key: value for key, value in json.loads(line).items() if key != "seconds"}
    except ValueError:
        return line


def _words(found: Any, whole: Any) -> str:
    """Say where two values differ."""
    if isinstance(found, dict) and isinstance(whole, dict):
        keys = [key for key in sorted(found.keys() | whole.keys()) if found.get(key) != whole.get(key)]
        return "; ".join(f"{key}: {_words(found.get(key), whole.get(key))}" for key in keys[:3])
    return f"{str(found)[:60]} in place of {str(whole)[:60]}"


class Sweep:
    """The points of all courses, tried in a temporary folder."""

    def __init__(self, place: Path, dice: random.Random, rules: Iterable[str]) -> None:
        self.place, self.dice, self.counts = place, dice, Counter[str]()
        self.counts.update(dict.fromkeys(("points", "of", "kills", "torn writes", "faults", "double kills"), 0))
        self.counts.update(dict.fromkeys(("silent differences", "lost runs", "tracebacks", "hangs"), 0))
        for rule in rules:
            learn(rule, Options(epochs=1, batch=12, out=place / "made" / rule))  # here, so that children begin warm
        self.whole: dict[Course, dict[str, Any]] = {}
        self.points: list[tuple[Course, str, int]] = []
        for course in [Course(rule, kind) for rule in rules for kind in ("new", "further", "over")]:
            out = self.fresh(course)
            status, words, seen = in_child(lambda course=course, out=out: course.take(out), None, out)
            if status != DONE:
                raise RuntimeError(f"{course} does not end well by itself: {words}")
            self.whole[course] = facts(out)
            for index, operation in enumerate(seen):
                kinds = ["kill", "error"] + ["torn"] * operation.startswith("write")
                self.points += [(course, kind, index) for kind in kinds]

    def fresh(self, course: Course) -> Path:
        """Return a folder at which a course begins."""
        out = self.place / "run"
        shutil.rmtree(out, ignore_errors=True)
        course.begin(out, self.place / "made")
        return out

    def try_point(self, course: Course, kind: str, index: int) -> str | None:
        """Strike once, or twice, and go on to the end; return what was wrong, if anything was."""
        out, dice = self.fresh(course), self.dice
        self.counts["points"] += 1
        self.counts[{"kill": "kills", "torn": "torn writes", "error": "faults"}[kind]] += 1
        faults: list[Fault | None] = [Fault(index, kind, dice.uniform(0.02, 0.98))]
        if dice.random() < DOUBLE:
            faults.append(Fault(dice.randrange(60), dice.choice(["kill", "torn"]), dice.uniform(0.02, 0.98)))
            self.counts["double kills"] += 1
        for fault in [*faults, None]:
            status, words, _ = in_child(lambda: course.take(out), fault, out)
            if status == -signal.SIGALRM:
                return f"hangs: {fault}"
            if status not in (DONE, REFUSED, KILLED):
                return f"tracebacks: {fault}: {words or status}"
            if status == REFUSED and (fault is None or fault.kind != "error"):
                return f"lost runs: {words}"
            try:
                self.read(course, out)  # what anybody may do in between
            except SidestepError:
                continue
            except Exception:
                return f"tracebacks: reading: {traceback.format_exc()[-3000:]}"
        try:
            found, whole = facts(out), self.whole[course]
        except (OSError, SidestepError) as error:
            return f"lost runs: the end has no {error}"
        different = [key for key in whole if found[key] != whole[key]]
        if not different:
            return None
        return f"silent differences: {', '.join(f'{key} ({_words(found[key], whole[key])})' for key in different)}"

    @staticmethod
    def read(course: Course, out: Path) -> None:
        """Load the run, as eval does."""
        if (out / "config.toml").exists():
            load_run(out, module=image_path if course.rule == "noprop-dt" else None)


def run(
    seed: int, count: int, rules: Sequence[str] = tuple(RULES), report: Callable[[str], None] = print
) -> dict[str, int]:
    """Strike at `count` of all points (0: at each), and return the counts.

    Args:
        seed: of what is drawn: which points, how much of a torn write lands, where the second process dies.
        count: how many points.
        rules: of whose runs.
        report: called with a line about each failure.
    """
    dice, threads, size = random.Random(seed), torch.get_num_threads(), writer.BLOCK_BYTES
    torch.set_num_threads(1)  # a forked process has no threads but its own
    writer.BLOCK_BYTES = 1  # a block of the log for each step: more between two checkpoints
    try:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where waiting for the disk takes no time
        with tempfile.TemporaryDirectory(dir=memory) as place:
            sweep = Sweep(Path(place).resolve(), dice, rules)
            points = sweep.points
            points = dice.sample(points, min(count or len(points), len(points)))
            sweep.counts["of"] = len(sweep.points)
            with contextlib.suppress(KeyboardInterrupt):  # then the counts so far are returned
                for course, kind, index in points:
                    wrong = sweep.try_point(course, kind, index)
                    if wrong:
                        sweep.counts[wrong.partition(":")[0]] += 1
                        report(f"{course.rule}, {course.kind}, {kind} at operation {index}: {wrong}")
            return dict(sweep.counts)
    finally:
        torch.set_num_threads(threads)
        writer.BLOCK_BYTES = size
