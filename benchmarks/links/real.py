"""Real processes that train over relays, for what the simulation says to be held to."""

import multiprocessing
import socket
import statistics
import time
from typing import Any

import torch

from benchmarks.links.relay import Link, Relays
from benchmarks.links.ring import Ring
from benchmarks.links.ways import WAYS

__all__ = ["free_ports", "real"]


def worker(name: str, source: str, ports: tuple[int, int], place: tuple[int, int], steps: int, out: Any) -> None:
    """Train as one process of several, and put (seconds of each step, bytes sent) into a queue."""
    torch.set_num_threads(1)
    rank, size = place
    world = Ring(rank, size, *ports)
    way = WAYS[name](source, size, 1000, world)
    world.gather(b"ready")
    before, seconds = world.sent_bytes, []
    for step in range(steps):
        start = time.monotonic()
        way.step(step)
        seconds.append(time.monotonic() - start)
    world.gather(b"done")
    out.put((rank, seconds, (world.sent_bytes - before) / steps))
    world.close()


def real(name: str, size: int, link: Link, source: str, steps: int) -> tuple[float, float]:
    """Return the seconds of a step of real processes over relays, and the bytes that one of them sends in it.

    A step counts from the first worker's begin to the last one's end, steps without an exchange with their share. Of
    all steps, but the first, the fastest counts: others are longer by what else the machine does.
    """
    listen, relayed = free_ports(size), free_ports(size)
    ways = [(relayed[rank], ("127.0.0.1", listen[(rank + 1) % size])) for rank in range(size)]
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    with Relays(link, ways):
        processes = [
            context.Process(target=worker, args=(name, source, (listen[r], relayed[r]), (r, size), steps, out))
            for r in range(size)
        ]
        for process in processes:
            process.start()
        found = [out.get(timeout=600) for _ in processes]
        for process in processes:
            process.join(60)
    every = WAYS[name].every
    slowest = [max(step) for step in zip(*(each[1] for each in found), strict=True)]
    periods = [statistics.fmean(slowest[at : at + every]) for at in range(0, steps, every)]
    return min(periods[1:]), found[0][2]


def free_ports(count: int) -> list[int]:
    """Return ports at which nobody listens now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
