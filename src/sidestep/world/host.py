"""The side that listens: a thread that talks with all who have joined, while another computes."""

import errno
import selectors
import socket
import threading
import time
from contextlib import suppress

from sidestep.errors import InputError, RankError
from sidestep.wording import sentence
from sidestep.world.address import is_loopback, split_address
from sidestep.world.peer import Peer, Stage
from sidestep.world.roster import Arrived, History, Roster
from sidestep.world.sealed import Kind

__all__ = ["BEAT", "Host"]

BEAT = 0.4  # seconds between two signs of life
_LEAST, _LONGEST = 1.2, 86_400
_FIRST = 5.0  # seconds for somebody to show that they know the token
_MOST_STRANGERS = 32  # connections that have not shown it yet
_FAREWELL = 2.0  # seconds for a last message to leave
_SPENT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # of what a connection takes, nothing is left
_PAUSE = 1.0  # seconds until the next try


class Host:
    """Listens at an address, and gives parts of steps to whoever has joined; the host itself takes what is left.

    Nothing is read from a connection before `begin`. A worker that closes its connection, sends what is not due, or is
    silent for `timeout` seconds is dropped.

    Args:
        where: HOST:PORT, or PORT for this machine alone.
        token: what those who join have to know; needed unless only this machine can reach the address.
        timeout: seconds without a sign of life after which a worker is dropped.
        check_share: of the parts that come, drawn where nobody can know it before, which the host estimates as well.

    Raises:
        InputError: for an address that cannot be listened at, or is open to others without a token.
    """

    def __init__(self, where: str, token: bytes | None = None, timeout: float = 2.0, check_share: float = 0.02) -> None:
        name, port = split_address(where)
        if token is None and not is_loopback(name):
            raise InputError(
                f"whoever reaches {where} could take part in the run: give --token-file FILE, a file whose token those "
                "who join have, too; without one only this machine is listened to (--listen PORT)"
            )
        if not _LEAST <= timeout <= _LONGEST:
            raise InputError(
                f"--peer-timeout must be from {_LEAST} s, since a worker gives a sign of life every {BEAT} s, to "
                f"{_LONGEST:,} s; got {timeout}"
            )
        if not 0 <= check_share <= 1:
            raise InputError(f"--check-share is a share of the parts that come, from 0 to 1, got {check_share:g}")
        self.check_share = check_share
        self.timeout, self._thread, self._stop, self._accepted = timeout, threading.Thread(target=self._serve), False, 0
        self._roster, self._said = Roster(token or b""), ""
        self._listening, self._paused_until, self._news_of_pause = _listening(where, name, port), 0.0, True
        self._wake, self._woken = socket.socketpair()
        for each in (self._wake, self._woken):
            each.setblocking(False)  # what waits to be read wakes the thread as well, however little of it

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system has chosen for port 0."""
        name, port = self._listening.getsockname()[:2]
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"

    def announce(self, said: str) -> None:
        """Have a sentence among the news as soon as workers are let in."""
        self._said = said

    def begin(self, welcome: bytes, most_bytes: int) -> None:
        """Let workers in from now on: each is sent a welcome, and may send messages of so many bytes."""
        self._roster.welcome, self._roster.most_bytes = welcome, most_bytes
        self._roster.news += [self._said] if self._said else []
        self._thread.daemon = True
        self._thread.start()

    def publish(self, step: int, count: int, body: bytes = b"", history: History | None = None) -> list[int]:
        """Begin a step, see `Roster.publish`; return the parts that are left to the host."""
        with self._roster.changed:
            return self._waking(self._roster.publish(step, count, body, history))

    def took(self, seconds: float, parts: int) -> None:
        """Take note of how long the host's own parts have taken, by which the next are given out."""
        with self._roster.changed:
            self._roster.pace.took(seconds, parts)

    def adopted(self) -> list[int]:
        """Return the parts of workers that have gone, but for those that other workers have been given."""
        with self._roster.changed:
            return self._waking(self._roster.adopted())

    def taken(self) -> list[Arrived]:
        """Return the parts that have come since the last time."""
        with self._roster.changed:
            return self._roster.taken()

    def wait(self, seconds: float) -> None:
        """Return when something has come, or somebody has gone, or after so many seconds."""
        with self._roster.changed:
            if not self._roster.arrived:
                self._roster.changed.wait(seconds)

    def drop(self, worker: int, why: str, part: int | None = None) -> None:
        """Drop a worker; the part that it has sent, if one is given, has to be estimated again."""
        with self._roster.changed:
            if part is not None:
                self._roster.returned(part)
            if worker in self._roster.peers:
                self._roster.refuse(self._roster.peers[worker], why)

    def drop_late(self, seconds: float) -> None:
        """Drop the workers that have not sent all of their parts."""
        with self._roster.changed:
            for peer in self._roster.late:
                self._roster.refuse(
                    peer, f"it has not sent its part of step {self._roster.step} within {seconds:.1f} s"
                )

    def news(self) -> list[str]:
        """Return a sentence for each worker that has come or gone since the last time."""
        with self._roster.changed:
            found, self._roster.news = self._roster.news, []
            return found

    @property
    def workers(self) -> int:
        """How many workers can be given parts, beside the host."""
        with self._roster.changed:
            return len(self._roster.ready)

    def name_of(self, worker: int) -> str:
        """Return what a worker is called in sentences."""
        with self._roster.changed:
            peer = self._roster.peers.get(worker)
            return peer.name if peer else f"worker {worker}"

    def end(self, said: str, failed: bool = False) -> None:
        """Tell all workers in a sentence that training has ended, or failed, and stop listening.

        Whoever has not shown that they know the token is told nothing: the sentence may name files of this machine.
        """
        self._stop = True
        self._waking(None)
        if self._thread.ident is not None:
            self._thread.join(_FAREWELL)
        with self._roster.changed:
            peers = [peer for peer in self._roster.peers.values() if peer.stage > Stage.PROVING]
            for peer in peers:
                with suppress(RankError):
                    peer.send(Kind.REFUSED if failed else Kind.END, said.encode(errors="replace")[:4000])
            until = time.monotonic() + _FAREWELL
            while any(peer.wants_to_write for peer in peers) and time.monotonic() < until:
                peers = [peer for peer in peers if _flushed(peer)]
                time.sleep(0.01)
            for peer in self._roster.peers.values():
                peer.close()
            self._roster.peers.clear()
        for each in (self._listening, self._wake, self._woken):
            each.close()

    def _waking(self, found: list[int] | None) -> list[int]:
        """Have the thread look at what waits to be sent."""
        with suppress(OSError):
            self._wake.send(b"w")
        return found or []

    def _serve(self) -> None:
        """Talk with all connections, in a thread of its own."""
        last = time.monotonic()
        with selectors.DefaultSelector() as ready:
            ready.register(self._listening, selectors.EVENT_READ)
            ready.register(self._woken, selectors.EVENT_READ)
            while not self._stop:
                events = ready.select(BEAT / 4)
                with self._roster.changed:
                    for key, mask in events:
                        self._serve_one(key.fileobj, key.data, mask)
                    now = time.monotonic()
                    if now - last < BEAT:  # else this process was held up, and what has come is not read yet
                        self._tick(now)
                    last = time.monotonic()
                    self._watch(ready)

    def _serve_one(self, place: object, peer: Peer | None, mask: int) -> None:
        if place is self._woken:
            with suppress(OSError):
                self._woken.recv(4096)
        elif place is self._listening:
            self._accept()
        elif peer is not None and peer.number in self._roster.peers:
            self._talk(peer, mask)

    def _talk(self, peer: Peer, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                peer.flush()
            if mask & selectors.EVENT_READ:
                peer.read()
                while peer.number in self._roster.peers and (message := peer.channel.next()):
                    self._roster.hear(peer, message)
        except RankError as error:
            self._roster.refuse(peer, str(error))

    def _accept(self) -> None:
        try:
            connection, address = self._listening.accept()
        except OSError as error:  # mostly of somebody who has gone again
            if error.errno in _SPENT:  # they stay in the queue, and would wake this thread at once, again and again
                self._pause(sentence(error.strerror or str(error)))
            return
        self._accepted, self._news_of_pause = self._accepted + 1, True
        peer = Peer(connection, f"{address[0]}:{address[1]}", self._accepted)
        self._roster.peers[peer.number] = peer
        strangers = [each for each in self._roster.peers.values() if each.stage < Stage.CHECKING]
        if len(strangers) > _MOST_STRANGERS:
            self._roster.lose(strangers[0], "too many have connected and not said who they are")

    def _pause(self, why: str) -> None:
        """Let nobody in for a moment; it is said once, until somebody has been let in again."""
        self._paused_until = time.monotonic() + _PAUSE
        if self._news_of_pause:
            self._roster.news.append(
                f"nobody else can join for now ({why}): this machine tries again every {_PAUSE:g} s; `ulimit -n` says "
                "how many files and connections a process may have open"
            )
        self._news_of_pause = False

    def _tick(self, now: float) -> None:
        """Drop who is silent, and give the others a sign of life."""
        for peer in list(self._roster.peers.values()):
            if peer.stage < Stage.CHECKING:
                if now - peer.begun > _FIRST:
                    self._roster.refuse(peer, f"it has not shown within {_FIRST:.0f} s that it knows the token")
            elif now - peer.heard > self.timeout:
                self._roster.lose(peer, f"it has been silent for {self.timeout:g} s")
            elif now - peer.told > BEAT:
                try:
                    peer.send(Kind.BEAT)
                except RankError as error:
                    self._roster.lose(peer, str(error))

    def _watch(self, ready: selectors.BaseSelector) -> None:
        """Watch the connections there are, for writing where something waits, and who wants to join, if they can."""
        paused, watched = time.monotonic() < self._paused_until, self._listening in ready.get_map()
        if paused and watched:
            ready.unregister(self._listening)
        elif not paused and not watched:
            ready.register(self._listening, selectors.EVENT_READ)
        known = {key.data.number: key for key in ready.get_map().values() if key.data is not None}
        for number, key in known.items():
            if number not in self._roster.peers:
                ready.unregister(key.fileobj)
        for number, peer in self._roster.peers.items():
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.wants_to_write else 0)
            if number not in known:
                ready.register(peer.socket, wanted, peer)
            elif known[number].events != wanted:
                ready.modify(peer.socket, wanted, peer)


def _listening(where: str, name: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.create_server((name, port), family=family, backlog=_MOST_STRANGERS)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} is in use: give another with --listen") from error
        raise InputError(f"{where} cannot be listened at ({sentence(error.strerror or str(error))})") from error
    found.setblocking(False)
    return found


def _flushed(peer: Peer) -> bool:
    """Say whether a peer still has something to be sent, after sending what its connection takes."""
    with suppress(RankError):
        peer.flush()
        return peer.wants_to_write
    return False
