"""A message between a host and a worker that has joined it, sealed with a key that both have made from one token.

    2 bytes   the letters SJ
    1         version of this format
    1         kind
    4         generation: how often the workers had changed
    8         step
    4         turn: the messages that this side has sent before
    4         length of the message
    16        HMAC-SHA256, its first half, of the side that sends, all before, and the message

The key is HMAC-SHA256 of the token and of two numbers, which either side draws for this connection. So a message that
was recorded elsewhere, or earlier, or comes back from where it went, fits nowhere. Nothing is hidden: whoever sees the
network can read what is sent, and not change it. Without a token the key is public, and finds damage alone.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

from sidestep.errors import RankError

__all__ = ["HEADER_BYTES", "LEAST_TOKEN", "MOST_BEFORE", "Channel", "Kind", "Message"]

_MAGIC, _VERSION = b"SJ", 1
_HEAD = struct.Struct("<2sBBIQII")
_MAC = 16
HEADER_BYTES = _HEAD.size + _MAC
MOST_BEFORE = 1 << 12  # bytes of a message of somebody who has not shown yet that they know the token
LEAST_TOKEN = 16  # letters


class Kind(IntEnum):
    """What a message is."""

    HELLO = 1  # worker: a number drawn for this connection, and its version
    CHALLENGE = 2  # host: the same of its own
    PROOF = 3  # worker: the first sealed one, with what it calls itself
    WELCOME = 4  # host: what is trained
    ACCEPT = 5  # worker: has the same, and what cannot be promised
    HISTORY = 6  # host: a piece of the steps so far
    READY = 7  # worker: has taken them
    STEP = 8  # host: which parts of a step are whose, and what the step before has decided
    MORE = 9  # host: further parts of the same step
    PART = 10  # worker: the update of a part
    BEAT = 11  # both: nothing to say, and there
    END = 12  # host: training has ended, in a sentence
    REFUSED = 13  # both: why it cannot go on together, in a sentence


@dataclass(frozen=True)
class Message:
    """One message, whose seal was right."""

    kind: Kind
    generation: int
    step: int
    data: bytes


class Channel:
    """Both directions of one connection: seals what is sent, and opens what comes.

    Args:
        hosts: whether this side is the host.
    """

    def __init__(self, hosts: bool) -> None:
        self._own, self._other = (b"host", b"worker") if hosts else (b"worker", b"host")
        self._key, self._sent, self._heard = b"no token yet", 0, 0
        self._buffer = bytearray()
        self.most = MOST_BEFORE  # bytes of a message that is taken
        self.sent_bytes = 0

    def agree(self, token: bytes, worker: bytes, host: bytes) -> None:
        """Seal all further messages with the key of this connection, from the token and both sides' numbers."""
        self._key = hmac.digest(token, b"sidestep join\0" + worker + host, "sha256")

    def sealed(self, kind: Kind, data: bytes = b"", step: int = 0, generation: int = 0) -> bytes:
        """Return a message as it is sent."""
        head = _HEAD.pack(_MAGIC, _VERSION, kind, generation, step, self._sent % (1 << 32), len(data))
        self._sent += 1
        self.sent_bytes += HEADER_BYTES + len(data)
        return head + self._mac(self._own, head, data) + data

    def feed(self, data: bytes) -> None:
        """Take bytes that have come."""
        self._buffer += data

    def next(self) -> Message | None:
        """Return the next message that is whole, or None where more bytes are needed.

        Raises:
            RankError: for what is no message of ours, too long, damaged, repeated, or sealed with another key.
        """
        if bytes(self._buffer[:2]) != _MAGIC[: len(self._buffer)]:
            raise RankError(f"it sent what is no message of Sidestep's ({_shown(self._buffer)})")
        if len(self._buffer) < HEADER_BYTES:
            return None
        head, mac = bytes(self._buffer[: _HEAD.size]), bytes(self._buffer[_HEAD.size : HEADER_BYTES])
        _, version, kind, generation, step, turn, length = _HEAD.unpack(head)
        if version != _VERSION:
            raise RankError(
                f"it sends messages of format {version}, and this side of format {_VERSION}: install the same version "
                "of sidestep on both"
            )
        if kind not in set(Kind) or length > self.most:
            raise RankError(
                f"it sent what is no message of Sidestep's (kind {kind}, {length:,} bytes; up to {self.most:,} are "
                "taken here)"
            )
        if len(self._buffer) < HEADER_BYTES + length:
            return None
        data = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + length])
        del self._buffer[: HEADER_BYTES + length]
        if not hmac.compare_digest(mac, self._mac(self._other, head, data)):
            raise RankError("it sent a message whose seal is wrong: damaged on its way, or made with another token")
        if turn != self._heard % (1 << 32):
            raise RankError(f"it sent message {turn} where {self._heard} was due: repeated, or one is missing")
        self._heard += 1
        return Message(Kind(kind), generation, step, data)

    def _mac(self, side: bytes, head: bytes, data: bytes) -> bytes:
        found = hmac.new(self._key, side + b"\0" + head, hashlib.sha256)
        found.update(data)
        return found.digest()[:_MAC]


def _shown(data: bytearray) -> str:
    """The first bytes of something foreign, as text where they are text."""
    first = bytes(data[:12])
    return repr(first.decode()) if first.isascii() and first.decode().isprintable() else first.hex(" ")
