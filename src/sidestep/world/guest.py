"""The side that joins: one connection, read by a thread, so that signs of life go on while another computes."""

import os
import queue
import select
import socket
import threading
import time
from contextlib import suppress

from sidestep.errors import InputError, RankError
from sidestep.version import __version__
from sidestep.wording import sentence
from sidestep.world.address import is_loopback, split_address
from sidestep.world.host import BEAT
from sidestep.world.roster import MOST_NAME, NUMBER_BYTES
from sidestep.world.sealed import Channel, Kind, Message

__all__ = ["Guest"]

_SILENCE = 20.0  # seconds without a sign of life of the host
_GREETING = 60.0  # seconds for the host to let somebody in: it may be loading its data still
_MOST = 1 << 27  # bytes of a message that a host is trusted with
_CHUNK = 1 << 18


class Guest:
    """A connection to a host that has let this worker in.

    welcome: what the host has said of the run.
    newest: the latest step that the host has begun.

    Args:
        where: HOST:PORT, or PORT on this machine.
        token: that of the host.
        wait: seconds for which to try again where nobody listens.
        name: by which the host knows this worker when it comes back.

    Raises:
        InputError: if nobody listens there, what answers is no host, or it does not know the token.
        RankError: if the host refuses this worker, in its words.
    """

    def __init__(self, where: str, token: bytes | None = None, wait: float = 0.0, name: str = "") -> None:
        host, port = split_address(where)
        if token is None and not is_loopback(host):
            raise InputError(f"a run at {where} has a token: give --token-file FILE, copied from that machine")
        self.where, self.newest, self._channel, self._token = where, 0, Channel(hosts=False), token or b""
        self._sending, self._inbox, self._closed = threading.Lock(), queue.Queue[Message | RankError](), False
        self._name = name
        self._socket = _connected(where, host, port, wait)
        self._told = time.monotonic()
        try:
            self.welcome = self._let_in()
        except BaseException:
            self._socket.close()
            raise
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def sent_bytes(self) -> int:
        """What has been sent, with headers."""
        return self._channel.sent_bytes

    def send(self, kind: Kind, data: bytes = b"", step: int = 0) -> None:
        """Send a message; raises RankError if the host has gone."""
        with self._sending:
            try:
                self._socket.sendall(self._channel.sealed(kind, data, step))
            except OSError as error:
                raise self._lost(error.strerror or str(error)) from error
            self._told = time.monotonic()

    def receive(self) -> Message:
        """Return the next message, when it comes.

        Raises:
            RankError: if the host has gone, or has sent what is no message of its.
        """
        found = self._inbox.get()
        if isinstance(found, RankError):
            self._inbox.put(found)
            raise found
        return found

    def close(self, why: str = "") -> None:
        """Close the connection, and tell the host why, in a sentence."""
        self._closed = True
        if why:
            with suppress(RankError):
                self.send(Kind.REFUSED, why.encode(errors="replace")[:2000])
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _let_in(self) -> bytes:
        """Show that both sides know the token, and return the host's welcome."""
        self._socket.settimeout(_GREETING)
        own = os.urandom(NUMBER_BYTES)
        self.send(Kind.HELLO, own + __version__.encode())
        answer = self._next()
        version = answer.data[NUMBER_BYTES:].decode(errors="replace")
        if answer.kind is not Kind.CHALLENGE:
            raise self._refused(answer)
        if version != __version__:
            raise InputError(
                f"the run at {self.where} has sidestep {sentence(version)[:40]}, and this machine {__version__}: "
                "install the same version"
            )
        self._channel.agree(self._token, own, answer.data[:NUMBER_BYTES])
        self._channel.most = _MOST
        self.send(Kind.PROOF, self._name.encode()[:MOST_NAME])
        try:
            answer = self._next()
        except RankError as error:
            if "seal" not in str(error):
                raise
            raise InputError(
                f"the run at {self.where} has another token: give --token-file with a copy of the file that the "
                "machine that listens has"
            ) from error
        if answer.kind is not Kind.WELCOME:
            raise self._refused(answer)
        return answer.data

    def _next(self) -> Message:
        """Return the next message, read here: while no thread reads yet."""
        until = time.monotonic() + _GREETING
        while True:
            found = self._opened()
            if found and found.kind is not Kind.BEAT:
                return found
            if found is None:
                self._fill(until)

    def _opened(self) -> Message | None:
        try:
            return self._channel.next()
        except RankError as error:
            raise RankError(f"what answers at {self.where} cannot be trained with: {error}") from error

    def _fill(self, until: float) -> None:
        try:
            if time.monotonic() > until:
                raise TimeoutError
            data = self._socket.recv(_CHUNK)
        except TimeoutError as error:
            raise RankError(f"the run at {self.where} has not answered within {_GREETING:.0f} s") from error
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error
        if not data:
            raise self._lost("it has closed the connection")
        self._channel.feed(data)

    def _read(self) -> None:
        """Read what comes, and give signs of life; a thread does."""
        heard = time.monotonic()
        try:
            while not self._closed:
                if select.select([self._socket], [], [], BEAT / 4)[0]:
                    self._fill(time.monotonic() + _GREETING)
                    heard = time.monotonic()
                    while found := self._opened():
                        self.newest = max(self.newest, found.step if found.kind is Kind.STEP else 0)
                        if found.kind is not Kind.BEAT:
                            self._inbox.put(found)
                now = time.monotonic()
                if now - heard > _SILENCE:
                    raise self._lost(f"it has been silent for {_SILENCE:.0f} s")
                if now - self._told > BEAT and self._sending.acquire(blocking=False):
                    self._sending.release()
                    self.send(Kind.BEAT)
        except RankError as error:
            self._inbox.put(error)
        except (OSError, ValueError) as error:  # of a socket that is closed meanwhile
            self._inbox.put(self._lost(str(error)))

    def _refused(self, answer: Message) -> RankError:
        said = (
            sentence(answer.data.decode(errors="replace"))[:2000] if answer.kind is Kind.REFUSED else answer.kind.name
        )
        return RankError(f"the run at {self.where} does not take this worker: {said}")

    def _lost(self, why: str) -> RankError:
        return RankError(
            f"who listens at {self.where} has gone ({why}): when its run goes on, with --resume, join again"
        )


def _connected(where: str, name: str, port: int, wait: float) -> socket.socket:
    until = time.monotonic() + wait
    while True:
        try:
            found = socket.create_connection((name, port), timeout=max(5.0, min(wait, 30.0)))
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
        except OSError as error:
            if time.monotonic() > until:
                raise InputError(
                    f"nobody listens at {where} ({error.strerror or error}): start the run there first, with "
                    "--listen, or give --wait SECONDS"
                ) from error
        time.sleep(0.2)
