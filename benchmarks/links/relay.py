"""A relay between two TCP ports that is a thin link: it limits bandwidth and delays what it passes on. Needs no root.

    python -m benchmarks.links.relay 7001 127.0.0.1:7000 --link 1Mbit,50ms

What comes in at port 7001 goes to 127.0.0.1:7000 and back, each way at the link's bits a second and half of its round
trip later. A byte leaves when all before it have left, so nothing overtakes; what the sender has ahead of the link is
held to a fifth of a second. Headers of TCP and IP are not counted, and nothing is lost.
"""

import argparse
import asyncio
import contextlib
import threading
from collections.abc import Sequence

from sidestep.bench.link.rate import Link, parse_link
from sidestep.errors import InputError

__all__ = ["Link", "Relays", "link_option", "parse_link"]

_PIECE = 1460  # bytes, as a packet of Ethernet has them
_AHEAD = 0.2  # seconds of backlog that the relay takes from a sender


def link_option(text: str) -> Link:
    """Return the link that an option such as `1Mbit,50ms` describes."""
    try:
        return parse_link(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Relays:
    """Relays in a thread of this process, one for each pair of a port to listen at and one to pass on to."""

    def __init__(self, link: Link, ways: Sequence[tuple[int, tuple[str, int]]]) -> None:
        self._link, self._ways, self._ready = link, ways, threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Relays":
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        for port, target in self._ways:
            self._loop.run_until_complete(serve(self._link, port, target))
        self._ready.set()
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))


async def serve(link: Link, port: int, target: tuple[str, int]) -> asyncio.Server:
    """Listen at a port of this machine, and pass each connection on to the target."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await _reached(target)
        except OSError:  # as if nobody listened here
            writer.close()
            return
        await asyncio.gather(_pass(link, reader, there_writer), _pass(link, there_reader, writer))

    return await asyncio.start_server(connected, "127.0.0.1", port)


async def _reached(target: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the target, which may begin to listen a moment later."""
    for _ in range(300):
        with contextlib.suppress(ConnectionError):
            return await asyncio.open_connection(*target)
        await asyncio.sleep(0.1)
    raise ConnectionError(f"nobody listens at {target[0]}:{target[1]}")


async def _pass(link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass one direction on: what was read at t leaves once the link is free, and arrives half a round trip later."""
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

    async def deliver() -> None:
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
        writer.close()

    delivery, free = asyncio.ensure_future(deliver()), 0.0
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_PIECE):
            free = max(loop.time(), free) + 8 * len(data) / link.bits
            waiting.put_nowait((free + link.round_trip / 2, data))
            await asyncio.sleep(max(0.0, free - loop.time() - _AHEAD))
    waiting.put_nowait((free + link.round_trip / 2, b""))
    with contextlib.suppress(ConnectionError):
        await delivery


def main() -> None:
    """Relay until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--link", type=link_option, default=parse_link("1Mbit,50ms"))
    given = parser.parse_args()
    host, _, port = given.target.rpartition(":")
    with Relays(given.link, [(given.port, (host or "127.0.0.1", int(port)))]) as relays:
        print(f"relay {given.port} -> {given.target}: {given.link}", flush=True)
        relays._thread.join()


if __name__ == "__main__":
    main()
