"""Who takes part in a run that others may join: which parts of a step are whose, and what has come of them.

Everything here is done with the roster's lock held; what a message holds, whoever asked for it reads.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sidestep.errors import RankError
from sidestep.version import __version__
from sidestep.wording import counted, sentence
from sidestep.world.pace import Pace, given_out
from sidestep.world.peer import Peer, Stage
from sidestep.world.sealed import Kind, Message

__all__ = ["MOST_NAME", "NUMBER_BYTES", "Arrived", "History", "Roster", "mask_of", "parts_in"]

NUMBER_BYTES = 16  # of what either side draws for a connection
MASK_BYTES = 8
MOST_NAME = 64  # letters of what a worker calls itself
_PIECE = 1 << 20
_FOREIGN = 20  # that are named; then no more lines are made of what anybody can send


@dataclass(frozen=True)
class History:
    """The beginning of the step log that is on the disk: its first `size` bytes hold the steps below `step`."""

    path: Path
    size: int
    step: int


@dataclass(frozen=True)
class Arrived:
    """The update of a part, as a worker has sent it."""

    worker: int
    part: int
    data: bytes


class Roster:
    """The workers of a host, what each has been given, and the steps that a newcomer has to be sent."""

    def __init__(self, token: bytes) -> None:
        self.changed = threading.Condition()  # and the lock
        self.peers: dict[int, Peer] = {}
        self.generation = self.step = 0
        self.welcome, self.most_bytes = b"", 0
        self.arrived: list[Arrived] = []
        self.news: list[str] = []
        self._token, self._foreign, self._spare = token, 0, 0
        self._history: History | None = None
        self._recent: list[tuple[int, bytes]] = []  # steps that the history on the disk does not hold
        self._owners: dict[int, int] = {}  # parts that have not come -> the worker they were given to
        self.pace, self._begun_at, self._given = Pace(), 0.0, dict[int, int]()  # the host's own; parts by member
        self._called: list[str] = []  # worker 1, 2, ...: also of those who have gone
        self._been_here: set[int] = set()

    @property
    def ready(self) -> list[Peer]:
        """The workers that can be given parts."""
        return [peer for peer in self.peers.values() if peer.stage is Stage.READY]

    def publish(self, step: int, count: int, body: bytes, history: History | None) -> list[int]:
        """Begin a step of so many parts: tell what the one before has decided, and give every worker its parts.

        Returns the parts that are left to the host: the first always. Each worker has one, too, by which it stays known
        how fast it is; the others go to the fastest.
        """
        self.step, self._history = step, history
        kept = history.step if history else 0
        self._recent += [(step, body)] if body else []
        self._recent = [each for each in self._recent if each[0] > kept]  # a step's body is what the one before decided
        self.arrived.clear()
        paces = {0: self.pace, **{peer.number: peer.pace for peer in self.ready}}
        given = given_out(count, paces)
        self._given, self._begun_at = dict(Counter(given.values())), time.monotonic()
        self._owners = {part: number for part, number in given.items() if number}
        self._tell_of_reserve(len(paces) - count if count else 0, count)
        for peer in list(self.peers.values()):
            if peer.stage >= Stage.REPLAYING:
                peer.due = {part for part, number in given.items() if number == peer.number}
                self._send(peer, Kind.STEP, mask_of(peer.due) + body)
        return [part for part, number in given.items() if not number]

    def adopted(self) -> list[int]:
        """Give the parts of workers that have gone to those who have done theirs; return those left to the host."""
        lost = sorted(part for part, number in self._owners.items() if number not in self.peers)
        if not lost:
            return []
        free = [peer for peer in self.ready if not peer.due]
        own = lost[:: len(free) + 1]
        for part in own:
            del self._owners[part]
        for place, peer in enumerate(free, 1):
            peer.due = set(lost[place :: len(free) + 1])
            self._owners |= dict.fromkeys(peer.due, peer.number)
            if peer.due:
                self._send(peer, Kind.MORE, mask_of(peer.due))
        return own

    def taken(self) -> list[Arrived]:
        """Return what has come since the last time."""
        found, self.arrived = self.arrived, []
        return found

    def returned(self, part: int) -> None:
        """Give a part back that has come and cannot be used; whoever sent it has been dropped."""
        self._owners[part] = 0

    @property
    def late(self) -> list[Peer]:
        """The workers that still have parts of this step to send."""
        return [peer for peer in self.ready if peer.due]

    def lose(self, peer: Peer, why: str) -> None:
        """Drop a worker, or somebody who never was one."""
        if self.peers.pop(peer.number, None) is None:
            return
        peer.close()
        if peer.stage is Stage.READY:
            self.generation += 1
            self.news.append(f"{peer.name} has gone, at step {self.step}: {why}; the others take its parts")
        elif peer.stage > Stage.PROVING:
            self.news.append(f"{peer.name} did not join: {why}")
        else:
            self._foreign += 1
            last = "; further ones are not named" if self._foreign == _FOREIGN else ""
            if self._foreign <= _FOREIGN:
                self.news.append(f"{peer.name} was refused: {why}{last}")
        self.changed.notify_all()

    def refuse(self, peer: Peer, why: str) -> None:
        """Tell somebody why they are dropped, and drop them."""
        with suppress(RankError):
            peer.send(Kind.REFUSED, why.encode())
        self.lose(peer, why)

    def hear(self, peer: Peer, message: Message) -> None:
        """Take a message, according to how far its sender has come; raises RankError for one that is not due."""
        wanted = (Kind.HELLO, Kind.PROOF, Kind.ACCEPT, Kind.READY, Kind.PART)[peer.stage]
        if message.kind is Kind.BEAT and peer.stage > Stage.PROVING:
            return
        if message.kind is Kind.REFUSED and peer.stage > Stage.PROVING:
            self.lose(peer, sentence(message.data.decode(errors="replace"))[:2000])
            return
        if message.kind is not wanted:
            raise RankError(f"it sent a message of kind {message.kind.name}, where {wanted.name} was due")
        (self._greeted, self._proven, self._accepted, self._begun, self._came)[peer.stage](peer, message)

    def _greeted(self, peer: Peer, message: Message) -> None:
        number, version = message.data[:NUMBER_BYTES], message.data[NUMBER_BYTES:].decode(errors="replace")
        own = os.urandom(NUMBER_BYTES)
        peer.send(Kind.CHALLENGE, own + __version__.encode())
        if version != __version__:
            raise RankError(f"it has sidestep {sentence(version)[:40]}, and this run {__version__}: install the same")
        peer.channel.agree(self._token, number, own)
        peer.stage = Stage.PROVING

    def _proven(self, peer: Peer, message: Message) -> None:
        peer.called = sentence(message.data.decode(errors="replace"))[:MOST_NAME]
        peer.worker = self._worker(peer.called)
        peer.stage = Stage.CHECKING
        peer.channel.most = self.most_bytes
        peer.send(Kind.WELCOME, self.welcome)

    def _accepted(self, peer: Peer, message: Message) -> None:
        if message.data:
            self.news.append(f"{peer.name}: {sentence(message.data.decode(errors='replace'))[:2000]}")
        peer.stage, past = Stage.REPLAYING, self._history
        if past:
            peer.most_waiting += past.size  # a long log takes its time
            try:
                with past.path.open("rb") as file:
                    for at in range(0, past.size, _PIECE):
                        peer.send(Kind.HISTORY, file.read(min(_PIECE, past.size - at)), past.step)
            except OSError as error:
                raise RankError(f"the step log cannot be read for it ({error.strerror})") from error
        peer.send(Kind.HISTORY, b"", past.step if past else 0)
        for step, body in self._recent:
            peer.send(Kind.STEP, mask_of([]) + body, step, self.generation)

    def _begun(self, peer: Peer, message: Message) -> None:
        peer.stage = Stage.READY
        self.generation += 1
        workers = counted(len(self.ready) + 1, "worker")
        come = "come back" if peer.worker in self._been_here else "joined"
        self._been_here.add(peer.worker)
        self.news.append(f"{peer.name} has {come}, at step {self.step}: {workers} with this one")

    def _worker(self, called: str) -> int:
        """Return the number of somebody new, or of one of that name who had gone and comes back."""
        here = {peer.worker for peer in self.peers.values()}
        known = [number for number, name in enumerate(self._called, 1) if called and name == called]
        free = [number for number in known if number not in here]
        if free:
            return free[0]
        self._called.append(called)
        return len(self._called)

    def _came(self, peer: Peer, message: Message) -> None:
        part = message.data[0] if message.data else 255
        if message.step != self.step or part not in peer.due:
            raise RankError(f"it sent part {part} of step {message.step}, which it was not given")
        peer.due.discard(part)
        if not peer.due and self._given.get(peer.number):
            peer.pace.took(time.monotonic() - self._begun_at, self._given.pop(peer.number))
        self._owners.pop(part, None)
        self.arrived.append(Arrived(peer.number, part, message.data[1:]))
        self.changed.notify_all()

    def _tell_of_reserve(self, spare: int, count: int) -> None:
        if spare > self._spare:
            self.news.append(
                f"a step has {counted(count, 'part')}, so {counted(spare, 'worker')} in reserve until another goes: "
                "a run with more --shares has parts for all"
            )
        self._spare = max(spare, 0)

    def _send(self, peer: Peer, kind: Kind, data: bytes) -> None:
        try:
            peer.send(kind, data, self.step, self.generation)
        except RankError as error:
            self.lose(peer, str(error))


def mask_of(parts: Iterable[int]) -> bytes:
    """Return a bit for each part, up to 64.

    >>> mask_of([0, 9]).hex()
    '0102000000000000'
    """
    return sum(1 << part for part in parts).to_bytes(MASK_BYTES, "little")


def parts_in(data: bytes) -> tuple[list[int], bytes]:
    """Return the parts of a mask, and what follows it; raises RankError where there is none."""
    if len(data) < MASK_BYTES:
        raise RankError("it sent a step without the parts that are to be estimated")
    mask = int.from_bytes(data[:MASK_BYTES], "little")
    return [part for part in range(8 * MASK_BYTES) if mask >> part & 1], data[MASK_BYTES:]
