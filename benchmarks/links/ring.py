"""A world of ranks in a ring of TCP connections: each sends to the next, over a relay where there is one."""

import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from sidestep.world.world import World, check_summable

__all__ = ["Ring"]

_LENGTH = struct.Struct("<I")


class Ring(World):
    """Rank r listens at a port of its own, and sends to the port that leads to rank r + 1.

    gather    n - 1 rounds, in each of which every rank passes on what it got in the last
    sum       n - 1 rounds that add up a part each, and n - 1 that hand the parts round
    """

    def __init__(self, rank: int, size: int, listen: int, onward: int) -> None:
        self.rank, self.size = rank, size
        server = socket.create_server(("127.0.0.1", listen))
        self._out = _connected(onward)
        self._in, _ = server.accept()
        server.close()
        for each in (self._out, self._in):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sender = ThreadPoolExecutor(1)  # or all would wait for each other with long messages

    def gather(self, message: bytes, known: bytes | None = None) -> list[bytes]:
        """Return the messages of all ranks, in their order."""
        found = {self.rank: message}
        for hop in range(1, self.size):
            message = self._exchanged(message)
            found[(self.rank - hop) % self.size] = message
        return [found[rank] for rank in range(self.size)]

    def broadcast(self, message: bytes) -> bytes:
        """Return the message of rank 0."""
        return self.gather(message if self.leads else b"")[0]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        check_summable(values)
        return self.summed(values)

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks in the values' own dtype."""
        size = self.size
        width = -(-values.numel() // size)
        padded = torch.zeros(size, width, dtype=values.dtype)
        padded.view(-1)[: values.numel()] = values.reshape(-1)
        for hop in range(size - 1):
            self._pass(padded, (self.rank - hop) % size, (self.rank - hop - 1) % size, add=True)
        for hop in range(size - 1):
            self._pass(padded, (self.rank + 1 - hop) % size, (self.rank - hop) % size, add=False)
        return padded.view(-1)[: values.numel()].view(values.shape)

    def close(self) -> None:
        """End the connections."""
        self._sender.shutdown()
        self._out.close()
        self._in.close()

    def _pass(self, parts: Tensor, give: int, take: int, add: bool) -> None:
        got = torch.frombuffer(bytearray(self._exchanged(parts[give].numpy().tobytes())), dtype=parts.dtype)
        parts[take] = parts[take] + got if add else got

    def _exchanged(self, message: bytes) -> bytes:
        data = _LENGTH.pack(len(message)) + message
        self.sent_bytes += len(data)
        sending = self._sender.submit(self._out.sendall, data)
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        found = self._read(length)
        sending.result()
        return found

    def _read(self, length: int) -> bytes:
        found = bytearray()
        while len(found) < length:
            piece = self._in.recv(min(1 << 16, length - len(found)))
            if not piece:
                raise ConnectionError("a worker of the ring has gone")
            found += piece
        return bytes(found)

    def _tell(self, said: str) -> None:
        """Say nothing: a worker that ends closes its connections, which the others hear."""


def _connected(port: int) -> socket.socket:
    for _ in range(300):  # until the other has begun to listen
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=120)
        except ConnectionError:
            time.sleep(0.1)
    raise ConnectionError(f"nobody listens at port {port}")
