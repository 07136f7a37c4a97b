"""Networks of one machine whose links are as thin as one says: a namespace a process, and packets that pass by here.

    process 0 -- device 0 --+
    process 1 -- device 1 --+-- this process: rate, delay and queue of every device's link, both ways
    process 2 -- device 2 --+

Every process enters a network namespace of its own (`enter`), where a TUN device is the only way out, and passes the
device's file here. A packet of n bytes leaves its device when all before it have left, 8n/B seconds later is on its
way, arrives half a round trip later, and waits again for what the receiver's link is taking. What waits for longer than
a fifth of a second (or 16 packets) is dropped, as routers do.

Namespaces and devices have no names outside, and go with the last process that has them: nothing is left behind,
however the processes end. Linux alone has them, and asks for root.
"""

import ctypes
import fcntl
import heapq
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from sidestep.bench.link.rate import Link
from sidestep.errors import InputError
from sidestep.wording import sentence

__all__ = ["Network", "address", "check_possible", "enter"]

_DEVICE, _TUN = b"link0", "/dev/net/tun"
_NEW_NETWORK, _NEW_HOST_NAME, _DEATH_SIGNAL = 0x40000000, 0x04000000, 1  # of linux/sched.h and linux/prctl.h
_SET_DEVICE, _TUN_WITHOUT_HEADER = 0x400454CA, 0x1001  # of linux/if_tun.h
_SET_ADDRESS, _SET_MASK, _SET_FLAGS, _SET_LENGTH = 0x8916, 0x891C, 0x8914, 0x8922  # of linux/sockios.h
_UP = 0x41  # and running
_PACKET, _QUEUE_SECONDS, _QUEUE_PACKETS = 1500, 0.2, 16
_WITHOUT = "`python -m benchmarks.links`, in a copy of the sources, needs neither, and simulates more workers"


def check_possible() -> None:
    """Raise InputError, in a sentence, where namespaces cannot be made."""
    if not sys.platform.startswith("linux"):
        raise InputError(f"--link needs Linux, whose network namespaces it uses, and root; {_WITHOUT}")
    if os.geteuid() != 0:
        raise InputError(f"--link needs root, to make network namespaces: run the same command with sudo; {_WITHOUT}")
    if not os.path.exists(_TUN):
        raise InputError(f"--link needs {_TUN}, which is not here: `modprobe tun` may bring it; {_WITHOUT}")


def address(place: int) -> str:
    """Return the address of a process in such a network.

    >>> address(0)
    '10.77.0.1'
    """
    return f"10.77.0.{place + 1}"


def enter(place: int) -> int:
    """Move the calling thread, and those that it starts, into a new network; return the file of its one device.

    This process ends when the one that started it does. Its host's name there is its address, by which libraries that
    ask for the name find the device.

    Raises:
        InputError: if the system does not let it.
    """
    system = ctypes.CDLL(None, use_errno=True)
    system.prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if system.unshare(_NEW_NETWORK | _NEW_HOST_NAME):
        raise InputError(f"no network namespace can be made here: {os.strerror(ctypes.get_errno())}; {_WITHOUT}")
    try:
        device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _SET_DEVICE, struct.pack("16sH22x", _DEVICE, _TUN_WITHOUT_HEADER))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for request, value in ((_SET_ADDRESS, address(place)), (_SET_MASK, "255.255.255.0")):
                given = struct.pack("16sH2x4s8x", _DEVICE, socket.AF_INET, socket.inet_aton(value))
                fcntl.ioctl(control, request, given)
            fcntl.ioctl(control, _SET_LENGTH, struct.pack("16si20x", _DEVICE, _PACKET))
            for name in (_DEVICE, b"lo"):
                fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH22x", name, _UP))
        socket.sethostname(address(place))
    except OSError as error:
        raise InputError(f"no network device can be made here: {sentence(error.strerror or str(error))}") from error
    return device


class Network:
    """Passes packets between devices, in a thread, until the end of the block.

    sent: bytes that each device has sent so far, with the headers of IP and TCP.
    dropped: packets that found a queue full.

    Args:
        link: of every device, each way.
        devices: their files, which are closed at the end; device i has `address(i)`.
    """

    def __init__(self, link: Link, devices: Sequence[int]) -> None:
        self.sent, self.dropped = [0] * len(devices), 0
        self._link, self._devices = link, list(devices)
        self._alive = list(devices)  # those whose processes have not ended
        self._backlog = max(_QUEUE_SECONDS, _QUEUE_PACKETS * 8 * _PACKET / link.bits)
        self._up, self._down = [0.0] * len(devices), [0.0] * len(devices)  # when the link is free again
        self._waiting: list[tuple[float, int, bool, int, bytes]] = []  # when, in turn, whether it is through, to, what
        self._turn, self._stop = 0, False
        self._thread = threading.Thread(target=self._pass, daemon=True)

    def __enter__(self) -> "Network":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop = True
        self._thread.join(10)
        for each in self._devices:
            os.close(each)

    def _pass(self) -> None:
        while not self._stop:
            rest = self._waiting[0][0] - time.monotonic() if self._waiting else 0.05
            ready, _, _ = select.select(self._alive, [], [], min(max(rest, 0.0), 0.05))
            now = time.monotonic()
            for device in ready:
                self._read(self._devices.index(device), now)
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                self._move(*heapq.heappop(self._waiting))

    def _read(self, place: int, now: float) -> None:
        """Take what a device sends, and put it behind what its link is still taking."""
        with suppress(BlockingIOError):
            while data := self._packet(place):
                to = data[19] - 1 if data[0] >> 4 == 4 and len(data) >= 20 else -1  # the last byte of where it goes
                if not 0 <= to < len(self._devices):  # such as what IPv6 says to all of a network
                    continue
                self.sent[place] += len(data)
                if self._up[place] - now > self._backlog:
                    self.dropped += 1
                    continue
                begun = max(self._up[place], now)
                self._up[place] = begun + 8 * len(data) / self._link.bits
                self._wait(begun + self._link.round_trip / 2, False, to, data)

    def _packet(self, place: int) -> bytes:
        """Return the next packet of a device; nothing, from now on, of one whose network has gone with its process."""
        try:
            return os.read(self._devices[place], 1 << 16)
        except BlockingIOError:
            raise
        except OSError:
            self._alive.remove(self._devices[place])
            return b""

    def _move(self, due: float, turn: int, through: bool, to: int, data: bytes) -> None:
        """Hand a packet to its device, or, of which the first bit has just arrived, to the device's link."""
        if through:
            with suppress(OSError):  # of a process that has ended
                os.write(self._devices[to], data)
        elif self._down[to] - due > self._backlog:
            self.dropped += 1
        else:
            self._down[to] = max(self._down[to], due) + 8 * len(data) / self._link.bits
            self._wait(self._down[to], True, to, data)

    def _wait(self, until: float, through: bool, to: int, data: bytes) -> None:
        self._turn += 1
        heapq.heappush(self._waiting, (until, self._turn, through, to, data))
