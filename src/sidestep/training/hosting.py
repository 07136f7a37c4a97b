"""Steps whose parts are estimated by whoever has joined, and by this process: the bits of one that takes them all.

This process alone decides, writes and measures. After each step the others get what was decided, coded as in the step
log, and apply it; so a newcomer needs the log alone, and nobody who goes takes anything along.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sidestep.data import DataSet
from sidestep.data.share import Share
from sidestep.errors import InputError, RankError
from sidestep.measure.processor import processor_name
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Rule
from sidestep.steplog import Recorder
from sidestep.steplog.header import digest_of
from sidestep.training.config import without_none
from sidestep.training.exchange import PartSum
from sidestep.training.loop import Loop
from sidestep.training.options import Compute, Options
from sidestep.training.part_messages import apart, packed, unpacked
from sidestep.training.parts import Parts
from sidestep.training.progress import Progress
from sidestep.training.stopping import StopRequest
from sidestep.update import Seeded, Update
from sidestep.wording import sentence
from sidestep.world import Alone, Host, World
from sidestep.world.roster import Arrived, History

__all__ = ["HostedParts", "hosted_options", "hosting", "welcome_of"]

_PATIENCE = 10  # how much slower than this process a worker may be
_ROOM = 1 << 16  # bytes of a part's message beside its gradients

Estimate = Callable[[int], Update]


class HostedParts(Parts):
    """Gives the parts of steps to those who have joined, and estimates what is left, or comes back."""

    def __init__(self, host: Host, parts: Parts, recorder: Recorder, progress: Progress, steps: int) -> None:
        super().__init__(Alone(), parts.of, parts.count, folder=parts.folder)
        self.signs, self._messages = parts.signs, dict[int, bytes]()  # of the signs that others have sent, by part
        self.host, self._recorder, self._progress, self._steps = host, recorder, progress, steps
        self._examples = 0  # of the step's batch
        self.begun, self._left = -1, list[int]()  # the step whose parts were given, and those left to this process
        self._known: dict[int, bool] = {}  # workers whose first part was right -> whether it was so to the bit
        self.stop: StopRequest | None = None
        recorder.told = self._decided

    def estimate(
        self, rule: Rule, net: nn.Module, batch: Batch, noise: Noise, compute: Compute, stop: StopRequest
    ) -> Update:  # long: what an estimate depends on
        """Return the update of the whole step."""
        self.stop, self._examples = stop, len(batch.targets)
        if self.begun != noise.step:
            if self.begun >= 0:
                raise InputError(
                    f"step {self.begun} of {rule.name} with these options cannot be logged, and who joins follows the "
                    "log: train in one process"
                )
            self._give(noise.step, b"")
        self.tell()

        def one(index: int) -> Update:
            return self.part(index, rule, net, batch, noise, compute)

        started = time.monotonic()
        found = {index: one(index) for index in self._left}
        took = time.monotonic() - started
        self.host.took(took, len(self._left))
        self._gather(found, one, max(self.host.timeout, _PATIENCE * took))
        total = PartSum(self.signs)
        for index in range(self.count):
            total.add(found.pop(index), index, self._messages.pop(index, None))
        update, self.signal = total.exchanged(Alone(), self.count, stop.signal_number)
        return update

    def _gather(self, found: dict[int, Update], one: Estimate, allowed: float) -> None:
        """Wait for the parts of others; estimate those of workers that go, or are late by more than `allowed`."""
        since = time.monotonic()
        while len(found) < self.count:
            arrived, back = self.host.taken(), self.host.adopted()
            for each in arrived:
                self._take(each, found, one)
            for index in back:
                found[index] = one(index)
            if arrived or back:
                since = time.monotonic()
            elif time.monotonic() - since > allowed:
                self.host.drop_late(allowed)
            else:
                self.host.wait(0.05)

    def _take(self, arrived: Arrived, found: dict[int, Update], one: Estimate) -> None:
        """Take the part of a worker; see whether its first is right, and some that nobody knows of before."""
        worker, part, like = arrived.worker, arrived.part, next(iter(found.values()))
        try:
            update, message = unpacked(arrived.data, like, self.signs)
        except (RankError, RuntimeError, ValueError) as error:
            self.host.drop(worker, sentence(str(error)), part)
            return
        if not self._of_own_probes(update, part):
            self.host.drop(worker, "it sent coefficients of other probes than those of its part", part)
            return
        known = worker in self._known
        if known and apart(update, update) is None and not self._drawn():
            found[part] = update
            if self.signs:
                self._messages[part] = message
            return
        found[part] = own = one(part)
        data = packed(own, self.signs, part)
        same = data == arrived.data
        wrong = None if same else apart(update, unpacked(data, like, self.signs)[0])
        if not same and not wrong and self._known.get(worker):
            wrong = "numbers that are not bit for bit those of its part, as they were before"
        if wrong:
            self.host.drop(worker, f"it sent {wrong}, as an estimate here has shown")
        elif not known:
            self._known[worker] = same
            if not same:
                self._tell_of_rounding(worker)

    def _of_own_probes(self, update: Update, part: int) -> bool:
        """Whether a part has taken its own probes: those of others would end the step, if they take them, too."""
        if not isinstance(update, Seeded) or update.taken is None:
            return True
        share, taken = Share(self.of, part, self.count), update.taken
        if self.of == "probes":
            own = taken.new_zeros(len(taken))
            own[[*share.probes(len(taken))]] = True
        else:  # every example has probes of its own, one in each pass
            own = taken.new_zeros(len(taken) // self._examples, self._examples)
            own[:, [*share.examples(self._examples)]] = True
        return torch.equal(taken, own.flatten())

    def _drawn(self) -> bool:
        """Draw whether a part is compared: not from the run's noise, which all workers know."""
        return secrets.randbelow(1 << 30) < self.host.check_share * (1 << 30)

    def _tell_of_rounding(self, worker: int) -> None:
        self._progress.notice(
            f"{self.host.name_of(worker)} rounds otherwise than this machine: the run is as good, but whether it has "
            "the bits of one process cannot be promised"
        )

    def _decided(self, step: int, body: bytes) -> None:
        """Tell all of what a step has decided, and give the parts of the next."""
        self._give(step + 1, body)

    def _give(self, step: int, body: bytes) -> None:
        place = self._recorder.place
        count = self.count if step < self._steps else 0
        self._left = self.host.publish(step, count, body, History(*place) if place else None)
        self.begun = step

    def tell(self) -> None:
        """Tell who has come and gone."""
        for said in self.host.news():
            self._progress.notice(said)


@contextmanager
def hosting(host: Host, loop: Loop, progress: Progress, welcome: bytes, net: nn.Module) -> Iterator[HostedParts]:
    """Let workers in, and tell all of them at the end how training has ended.

    Args:
        host: listens already.
        loop: whose steps are divided, and logged.
        progress: told in a sentence who comes and goes.
        welcome: what each is told of the run.
        net: that is trained, whose size limits what a worker may send.
    """
    if loop.recorder is None or not isinstance(loop.parts, Parts):
        raise InputError("who joins follows the step log, which is in the run's folder: give out")
    parts = HostedParts(host, loop.parts, loop.recorder, progress, loop.total_steps)
    host.begin(welcome, _ROOM + 8 * sum(each.numel() for each in (*net.parameters(), *net.buffers())))
    try:
        parts.tell()
        yield parts
    except BaseException as error:
        host.end(f"its run has failed: {sentence(str(error)) or type(error).__name__}", failed=True)
        raise
    else:
        stopped = parts.stop is not None and parts.stop.requested
        again = ", before its end: when it goes on, with --resume, join again" if stopped else ""
        host.end(f"training has ended, at step {parts.begun} of {loop.total_steps}{again}", failed=stopped)
    finally:
        parts.tell()


def welcome_of(config: Mapping[str, Any], net: nn.Module, data: DataSet) -> bytes:
    """Return what a newcomer is told of a run: its configuration, and by what the same net and machine are known."""
    found = {"config": without_none(config), "net": digest_of(net), "data": data.name, "processor": processor_name()}
    return json.dumps(found, default=str).encode()


def hosted_options(options: Options, rule: Rule, data: DataSet, world: World, own_optimizer: bool) -> Options:
    """Return the options of a run that others may join, with what of a step is divided.

    Raises:
        InputError: if its steps cannot be followed by their log, or are not divided.
    """
    if world.size > 1:
        raise InputError("--listen is for one process, which others join: start it without torchrun")
    if rule.takes.log != "yes" or own_optimizer:
        raise InputError(
            f"who joins follows the step log, and {rule.name} with these options leaves none; start all processes at "
            "once, with torchrun (docs/several-machines.md)"
        )
    if options.average:
        raise InputError(f"average = {options.average} cannot be followed by those who join: leave it out, or --listen")
    if options.exchange_share and options.exchange_window != 1:
        raise InputError(
            f"exchange_share = {options.exchange_share:g} leaves the rest of a part's gradient with whoever has "
            "estimated it, and would lose it with a worker that goes: give --exchange-window 1, by which nothing "
            "waits, and a larger share, such as 0.1; without both each part is its whole gradient, four bytes a weight"
        )
    if data.feed:
        raise InputError(f"{data.name} gives its batches to one process alone: leave --listen out, or give arrays")
    divides = [each for each in rule.divides if each != "units"]
    if options.split == "units" or not divides:
        raise InputError(f"steps of {rule.name} are not divided into parts that anybody can take: leave --listen out")
    return options if options.split else replace(options, split=divides[0])
