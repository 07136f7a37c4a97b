"""Work in several fresh processes at once, each in a network of its own, which meet now and then beside the link."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch import set_num_threads

from sidestep.bench.link.network import Network, enter
from sidestep.bench.link.rate import Link
from sidestep.bench.process import FAILED, failure
from sidestep.errors import RankError
from sidestep.training import Stopped
from sidestep.training.stopping import StopRequest

__all__ = ["Answer", "LinkedWork", "Meet", "run_over_link"]

_LOOK = 0.2  # seconds between two looks whether to stop
_REST = 5.0  # seconds for the others to say why, once one has failed

Meet = Callable[[Any], Any]
"""Sends a value to whoever started the processes, and returns the one answer to those of all."""
LinkedWork = Callable[[Any, int, Meet], dict[str, Any]]
Answer = Callable[[Network, list[Any]], Any]


@dataclass
class _Process:
    """One of the processes, and what it has said last."""

    process: BaseProcess
    pipe: Connection
    said: tuple[str, Any] | None = None


def run_over_link(
    link: Link, work: LinkedWork, given: Any, count: int, answer: Answer, stop: StopRequest
) -> list[dict[str, Any]]:
    """Call `work(given, place, meet)` in `count` fresh processes over a link, and return their records.

    Args:
        link: of each process.
        work: a function of a module; `address(place)` is where a process is reached.
        given: what all get: plain values or dataclasses.
        count: of processes, 2 to 64.
        answer: called here with the network and the values of all, when each has called `meet`.
        stop: asked while waiting.

    Returns:
        The records, or one that says how the first process that failed did: `{"failed": {"kind": ..., "why": ...}}`.

    Raises:
        Stopped: if a stop was requested. However this ends, the processes and their networks are gone after it.
    """
    context = multiprocessing.get_context("spawn")
    running: list[_Process] = []
    try:
        for place in range(count):
            here, there = context.Pipe(duplex=True)
            process = context.Process(target=_in_there, args=(there, work, given, place), daemon=True)
            process.start()
            there.close()
            running.append(_Process(process, here))
        failed = _heard(running, stop)
        if failed:
            return [failed]
        devices = [reduction.recv_handle(each.pipe) for each in running]
        with Network(link, devices) as network:
            return _led(running, network, answer, stop)
    finally:
        for each in running:
            each.process.kill()
            each.process.join()
            each.pipe.close()


def _led(running: list[_Process], network: Network, answer: Answer, stop: StopRequest) -> list[dict[str, Any]]:
    """Answer the processes until each has a record."""
    reply: Any = None
    while True:
        for each in running:
            with suppress(OSError):  # of a process that has ended, which is heard next
                each.pipe.send(reply)
        failed = _heard(running, stop)
        if failed:
            return [failed]
        said = [each.said for each in running if each.said]
        if all(kind == "record" for kind, _ in said):
            return [value for _, value in said]
        reply = answer(network, [value for _, value in said])


def _heard(running: list[_Process], stop: StopRequest) -> dict[str, Any] | None:
    """Wait until every process has said something; return the record of one that has failed."""
    for each in running:
        each.said = None
    until = float("inf")
    while any(each.said is None for each in running) and time.monotonic() < until:
        if stop.requested:
            raise Stopped("stopped", 0, stop.signal_number)
        silent = {each.pipe: each for each in running if each.said is None}
        for pipe in wait(list(silent), _LOOK):
            each = silent[pipe]  # type: ignore[index]  # of what was given to `wait`
            try:
                each.said = each.pipe.recv()
            except (EOFError, OSError):
                each.said = FAILED, {"kind": "error", "why": "a process ended without a result"}
        if any(each.said and each.said[0] == FAILED for each in running):
            until = min(until, time.monotonic() + _REST)
    failures = [each.said[1] for each in running if each.said and each.said[0] == FAILED]
    own = [each for each in failures if each.get("kind") != "lost"]  # those whose others are gone know less
    return {FAILED: (own or failures)[0]} if failures else None


def _in_there(pipe: Connection, work: LinkedWork, given: Any, place: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_num_threads(1)

    def meet(value: Any) -> Any:
        pipe.send(("meet", value))
        return pipe.recv()

    try:
        device = enter(place)
        pipe.send(("device", None))
        reduction.send_handle(pipe, device, os.getppid())
        os.close(device)
        pipe.recv()
        said = "record", work(given, place, meet)
    except (EOFError, BrokenPipeError):  # nobody waits any more
        return
    except RankError as error:
        said = FAILED, {"kind": "lost" if "has lost" in str(error) else "refused", "why": str(error)}
    except Exception as error:  # whatever a rule, a module or torch may raise
        said = FAILED, failure(error)
    pipe.send(said)
    pipe.recv()  # until all have ended: a network goes with its process
