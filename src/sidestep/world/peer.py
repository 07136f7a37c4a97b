"""One connection of a host: how far whoever is at the other end has come, and what is still to be sent to them."""

import socket
import time
from contextlib import suppress
from enum import IntEnum

from sidestep.errors import RankError
from sidestep.world.pace import Pace
from sidestep.world.sealed import Channel, Kind

__all__ = ["Peer", "Stage"]

_MOST_WAITING = 1 << 28  # bytes that somebody may leave unread
_AT_ONCE = 1 << 18


class Stage(IntEnum):
    """How far a connection has come."""

    NEW = 0  # has to say who it is
    PROVING = 1  # has to show that it knows the token
    CHECKING = 2  # sees whether it has the same data and versions
    REPLAYING = 3  # takes the steps so far; is sent every further one
    READY = 4  # is given parts


class Peer:
    """A worker, or whoever has connected.

    number: counts connections, from 1.
    worker, called: what it is known by once it has shown that it knows the token: a number, and a name of its own.
    pace: seconds that a part takes it, with the way there and back.
    due: parts of the current step that it has been given and has not sent yet.
    heard: when something came last, in seconds of `time.monotonic`.
    most_waiting: bytes that it may leave unread.
    """

    def __init__(self, connection: socket.socket, address: str, number: int) -> None:
        connection.setblocking(False)
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.address, self.number = connection, address, number
        self.channel, self.stage, self.due = Channel(hosts=True), Stage.NEW, set[int]()
        self.worker, self.called, self.pace = 0, "", Pace()
        self.begun = self.heard = self.told = time.monotonic()
        self.most_waiting, self._waiting = _MOST_WAITING, bytearray()

    @property
    def name(self) -> str:
        """What it is called in sentences."""
        called = f"{self.called}, " if self.called else ""
        return f"worker {self.worker} ({called}{self.address})" if self.stage > Stage.PROVING else self.address

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._waiting)

    def send(self, kind: Kind, data: bytes = b"", step: int = 0, generation: int = 0) -> None:
        """Send a message, or what of it the connection takes now; raises RankError if the other end has gone."""
        self._waiting += self.channel.sealed(kind, data, step, generation)
        self.told = time.monotonic()
        self.flush()
        if len(self._waiting) > self.most_waiting:
            raise RankError("it does not take what it is sent")

    def flush(self) -> None:
        """Send what waits, as much as the connection takes now; raises RankError if the other end has gone."""
        try:
            while self._waiting:
                sent = self.socket.send(memoryview(self._waiting)[:_AT_ONCE])
                del self._waiting[:sent]
        except BlockingIOError:
            return
        except OSError as error:
            raise RankError(f"the connection was lost ({error.strerror or error})") from error

    def read(self) -> None:
        """Take the bytes that have come; raises RankError at the end of the connection."""
        try:
            data = self.socket.recv(_AT_ONCE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise RankError(f"the connection was lost ({error.strerror or error})") from error
        if not data:
            raise RankError("it has closed the connection")
        self.channel.feed(data)
        self.heard = time.monotonic()

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
