"""Taking part in a run that another process hosts: the steps so far from its log, then a share of every further one."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sidestep.data import DataSet
from sidestep.errors import InputError, RankError, SidestepError
from sidestep.measure.processor import processor_name
from sidestep.nets.user_modules import ImagePath
from sidestep.rules import rule_from_record
from sidestep.rules.protocol import Task
from sidestep.rules.shared.whole_model import on_whole_model
from sidestep.steplog import Header, LogReader, check_net, replay
from sidestep.steplog.header import digest_of
from sidestep.steplog.single import update_from_bytes
from sidestep.training.begin import begin
from sidestep.training.compatibility import difference, in_units_of
from sidestep.training.loop import Loop
from sidestep.training.options import Options
from sidestep.training.part_messages import packed
from sidestep.training.parts import Parts
from sidestep.training.progress import Progress, Silent
from sidestep.training.resume import log_identity
from sidestep.training.state import State
from sidestep.wording import counted
from sidestep.world import Alone, Guest
from sidestep.world.roster import parts_in
from sidestep.world.sealed import Kind, Message

__all__ = ["Joined", "join_run", "read_welcome"]

_OURS = {field.name for field in dataclasses.fields(Options)} - {"out", "resume", "overwrite", "device"}


@dataclass(frozen=True)
class Joined:
    """What a worker has done by the time that training ended.

    said: how it ended, in the host's words.
    parts: how many parts it has estimated.
    replayed: how many steps it took from the log, in so many `seconds`.
    sent_bytes: what it has sent.
    """

    said: str
    parts: int
    replayed: int
    seconds: float
    sent_bytes: int


def read_welcome(guest: Guest) -> dict[str, Any]:
    """Return the configuration and the rest of what a host says of its run; raises RankError for anything else."""
    try:
        found: dict[str, Any] = json.loads(guest.welcome)
        tables = all(isinstance(found["config"][name], dict) for name in ("rule", "task", "train", "data", "versions"))
        if tables and all(isinstance(found[name], str) for name in ("net", "data", "processor")):
            return found
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise RankError(f"the run at {guest.where} does not say what is trained")


def join_run(  # long: what a worker is made from, and what it is told
    guest: Guest,
    data: Callable[[Mapping[str, Any]], DataSet],
    *,
    module: ImagePath | None = None,
    model: ImagePath | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Joined:
    """Take part in a run until it ends.

    This sets torch's number of threads to the host's, on which the bits of floats depend.

    Args:
        guest: the connection.
        data: makes the data set, from the host's configuration.
        module: the image path that the run is trained with, if it has one of its own.
        model: the same of a whole model.
        device: where to compute; by default on a device of the host's kind.
        progress: told in sentences.

    Raises:
        InputError: if this worker would train on other data, another net or by other steps; the host is told.
        RankError: if the host goes, ends with an error, or sends what is no step.
    """
    progress = progress or Silent()
    try:
        with ExitStack() as stack:
            worker = _made(guest, data, module, model, device)
            guest.send(Kind.ACCEPT, worker.doubt().encode())
            if worker.doubt():
                progress.notice(worker.doubt())
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidestep-join-")))
            worker.take_history(folder / "steps.steplog")
            progress.notice(
                f"joined {guest.where}: {worker.loop.rule.name} on {worker.loop.data.name}; took "
                f"{counted(worker.replayed, 'step')} from its log in {worker.seconds:.1f} s"
            )
            said = worker.follow()
    except RankError:
        guest.close()
        raise
    except BaseException as error:
        guest.close("it was stopped" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__)
        raise
    guest.close()
    return Joined(said, worker.parts_done, worker.replayed, worker.seconds, guest.sent_bytes)


def _made(guest: Guest, *given: Any) -> "_Worker":
    """Return a worker at the first step of what a host says of its run."""
    try:
        return _Worker(guest, *given)
    except SidestepError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise RankError(
            f"the run at {guest.where} does not say what is trained ({type(error).__name__}: {error})"
        ) from error


class _Worker:
    """The net of one who has joined, and where it stands."""

    def __init__(
        self,
        guest: Guest,
        data: Callable[[Mapping[str, Any]], DataSet],
        module: ImagePath | None,
        model: ImagePath | None,
        device: str | None,
    ) -> None:
        self.guest, self.parts_done, self.replayed, self.seconds = guest, 0, 0, 0.0
        self._host = read_welcome(guest)
        config = self._host["config"]
        found = in_units_of(config, data(config))
        other = difference(config, found)
        if other:
            raise InputError(f"this machine has other data than the run at {guest.where} ({other}): give its own")
        kind = str(config["train"].get("device", "cpu")).partition(":")[0]
        torch.set_num_threads(max(1, int(config["versions"].get("threads", 1))))
        options = Options(**{key: value for key, value in config["train"].items() if key in _OURS},
                          device=device or ("cpu" if kind == "cpu" else "auto"))  # fmt: skip
        rule = rule_from_record(config["rule"])
        if model is not None:
            rule, module = on_whole_model(rule, module), model
        self.state: State
        self.loop: Loop
        self.state, self.loop = begin(rule, found, options, module)
        if options.split is None or options.shares is None or options.split == "units":
            raise RankError(f"the run at {guest.where} does not say into which parts its steps are divided")
        self.parts = Parts(Alone(), options.split, options.shares, options.exchange_share,
                           exchange_window=options.exchange_window)  # fmt: skip
        if digest_of(self.state.net) != self._host["net"]:
            raise InputError(
                f"this machine makes another untrained net than the run at {guest.where}: "
                + ("--module is not the same there" if module or config.get("module") else "its torch differs")
            )
        name = (config.get("module") or {}).get("name")
        same = log_identity(options, len(found.train))
        self.header = Header.of(self.state.net, rule, Task.of(found), self._host["data"], options.seed, name, same)

    def doubt(self) -> str:
        """Return a sentence where this machine may round otherwise than the host; else nothing."""
        config = self._host["config"]
        device = str(config["train"].get("device", "cpu")).partition(":")[0]
        both = {
            "torch": (config["versions"].get("torch"), torch.__version__),
            "number of threads": (config["versions"].get("threads"), torch.get_num_threads()),
            "processor": (self._host["processor"], processor_name()),
            "device": (device, self.loop.compute.device.type),
        }
        other = [f"{what} ({there} there, {here} here)" for what, (there, here) in both.items() if there != here]
        if not other:
            return ""
        return (
            f"the worker computes with another {' and another '.join(other)}: the run is as good, but whether it has "
            "the bits of one process cannot be promised"
        )

    def take_history(self, path: Path) -> None:
        """Write down the log that the host sends, and replay it; then it is removed."""
        with path.open("wb") as file:
            while (message := self._next(Kind.HISTORY)).data:
                file.write(message.data)
        if not message.step and not path.stat().st_size:
            return
        started = time.perf_counter()
        reader = LogReader(path)
        check_net(reader.header, self.state.net)
        for name, _, _ in self.header.differences(reader.header):
            raise InputError(f"the log of the run at {self.guest.where} begins with another {name} than here")
        self.header = reader.header
        self.state.step = replay(self.state.net, self.loop.rule, self.state.optimizer, reader)
        if self.state.step != message.step:
            raise RankError(f"the log of the run at {self.guest.where} is damaged: {reader.damage}")
        self.replayed, self.seconds = self.state.step, time.perf_counter() - started

    def follow(self) -> str:
        """Take every step that the host decides, and estimate the parts that it gives; return how it has ended."""
        ready = False
        while True:
            if not ready and self.state.step >= self.guest.newest:  # before, the others would wait for its part
                self.guest.send(Kind.READY, step=self.state.step)
                ready = True
            message = self._next(Kind.STEP, Kind.MORE, Kind.END)
            if message.kind is Kind.END:
                return message.data.decode(errors="replace")[:4000]
            own, body = parts_in(message.data)
            if message.kind is Kind.STEP:
                self._apply(message.step, body)
            for index in own:
                if message.step == self.guest.newest:  # else the host has gone on without them
                    self._estimate(index)

    def _apply(self, step: int, body: bytes) -> None:
        if step != self.state.step + bool(body):
            raise RankError(f"the run at {self.guest.where} went from step {self.state.step} to {step}")
        if body:
            try:
                update = update_from_bytes(body, self.header, self.state.step)
            except SidestepError as error:
                raise RankError(f"the run at {self.guest.where} sent a step that is none: {error}") from error
            self.loop.rule.apply(self.state.net, update.to(self.loop.compute.device), self.state.optimizer)
            self.state.step = step

    def _estimate(self, index: int) -> None:
        step, loop = self.state.step, self.loop
        if index >= self.parts.count:
            raise RankError(f"the run at {self.guest.where} asks for part {index} of {self.parts.count}")
        noise = loop.noise.stream("estimate").at(step)
        update = self.parts.part(index, loop.rule, self.state.net, loop.batch(step), noise, loop.compute)
        self.guest.send(Kind.PART, bytes([index]) + packed(update, self.parts.signs, index), step)
        self.parts_done += 1

    def _next(self, *kinds: Kind) -> Message:
        message = self.guest.receive()
        if message.kind is Kind.REFUSED or (message.kind is Kind.END and Kind.END not in kinds):
            raise RankError(f"the run at {self.guest.where}: {message.data.decode(errors='replace')[:4000]}")
        if message.kind not in kinds:
            raise RankError(f"the run at {self.guest.where} sent {message.kind.name} where it was not due")
        return message
