"""Seconds and bytes of a training step of several ranks over a link, and of the link itself."""

import socket
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sidestep.bench.comparison.one_run import RunPlan
from sidestep.bench.link.network import Network, address
from sidestep.bench.link.processes import Meet, run_over_link
from sidestep.bench.link.rate import Link
from sidestep.bench.process import FAILED
from sidestep.data import load
from sidestep.data.notices import DataNotice
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Rule
from sidestep.training.begin import begin
from sidestep.training.options import Compute
from sidestep.training.parts import Parts, parts_of, with_parts
from sidestep.training.ranks import spread_units
from sidestep.training.single import check_single
from sidestep.training.stopping import StopRequest
from sidestep.update import Dense, Update
from sidestep.world.distributed import join
from sidestep.world.world import World

__all__ = ["measure_link", "measure_steps"]

_LEAST_STEPS, _MOST_STEPS = 3, 50
_PORT, _ECHOES, _FILL = 5001, 5, 2.0  # of the measurement of a link; seconds that it is filled for


@dataclass(frozen=True)
class _Given:
    plan: RunPlan
    ranks: int
    meet_at: str


def measure_steps(
    link: Link, plan: RunPlan, ranks: int, seconds: float, steps: int | None, stop: StopRequest
) -> dict[str, Any]:
    """Train some steps with so many ranks over a link; return what a step takes.

    The first step is not counted. A step's seconds are the median of one rank's, the slowest. Bytes are those that its
    device has sent, with the headers of IP and TCP, acknowledgements and what was sent again.

    Args:
        link: of every rank.
        plan: what is trained. Back-propagation on the net of a rule (`Entry.same_net`) exchanges as data-parallel
            training does: the mean of float32 gradients, by all_reduce.
        ranks: how many.
        seconds: of steps, about; at least 3 and at most 50 of them are taken.
        steps: in place of it.
        stop: asked while waiting.

    Returns:
        The record, or `{"failed": {"kind": ..., "why": ...}}`.
    """
    sent: list[list[int]] = []
    taken: list[int] = []

    def answer(network: Network, said: list[Any]) -> int:
        sent.append(list(network.sent))
        slowest = max(said)
        taken.append(steps or max(_LEAST_STEPS, min(_MOST_STEPS, int(seconds / max(slowest, 1e-3)))))
        return taken[-1]

    with tempfile.TemporaryDirectory(prefix="sidestep-link-") as folder:
        given = _Given(plan, ranks, str(Path(folder) / "store"))
        found = run_over_link(link, _train, given, ranks, answer, stop)
    if FAILED in found[0]:
        return found[0]
    return {
        "seconds": max(each["seconds"] for each in found),
        "compute_seconds": max(each["compute"] for each in found),
        "bytes": max(after - before for before, after in zip(sent[0], sent[1], strict=True)) / taken[0],
        "steps": taken[0],
        "split": found[0]["split"],
    }


def measure_link(link: Link, stop: StopRequest) -> dict[str, Any]:
    """Return the round trip (seconds) and the bits a second that one connection gets over a link, as measured."""
    found = run_over_link(link, _probe, link, 2, lambda network, said: None, stop)
    return found[0]


def _train(given: _Given, rank: int, meet: Meet) -> dict[str, Any]:
    """Train as one of the ranks."""
    warnings.simplefilter("ignore", DataNotice)  # whoever has started this has loaded the same data
    world = join(lambda: _store(given), rank, given.ranks, 0)
    plan, entry = given.plan, given.plan.entry
    data = load(plan.data, data_dir=plan.data_dir, validation=plan.validation, size=plan.image_size)
    options, rule = entry.training(plan.common, seed=plan.seed, device=plan.device), entry.make()
    if entry.same_net:  # of which no more than the examples is divided
        options = replace(options, split="batch", shares=None, exchange_share=None, exchange_window=None)
    options = with_parts(options, rule, world, min(options.batch, len(data.train)))
    state, loop = begin(rule, data, options, plan.module)
    loop.parts = _MeanGradient(world, options.shares or 1) if entry.same_net else parts_of(options, rule, world)
    check_single(rule, state.net, loop.task, min(options.batch, len(data.train)))
    spread_units(loop.parts, rule, state)

    def step() -> float:
        started = time.monotonic()
        loop.take_step(state)
        return time.monotonic() - started

    count = meet(step())
    spent = time.thread_time()
    took = [step() for _ in range(count)]
    spent = time.thread_time() - spent
    meet(0.0)  # so that the bytes are of these steps
    world.leave()
    return {"seconds": statistics.median(took), "compute": spent / count, "split": options.split or "batch"}


def _store(given: _Given) -> Any:
    """Return where the ranks find each other: a file, so that it takes nothing of the link."""
    return dist.FileStore(given.meet_at, given.ranks)  # type: ignore[attr-defined]


class _MeanGradient(Parts):
    """The mean of the ranks' gradients in float32 by all_reduce, as DistributedDataParallel exchanges them."""

    def __init__(self, world: World, count: int) -> None:
        super().__init__(world, "batch", count)

    def estimate(  # long: what an estimate depends on
        self, rule: Rule, net: nn.Module, batch: Batch, noise: Noise, compute: Compute, stop: StopRequest
    ) -> Update:
        """Return the update of the whole step."""
        found = [self.part(index, rule, net, batch, noise, compute) for index in self.own]
        own = [each for each in found if isinstance(each, Dense)]
        if not own:
            raise InputError(f"an estimate of {rule.name} has no gradient that could be summed")
        flat = torch.stack([torch.cat([each.float().reshape(-1) for each in part.gradients.values()]) for part in own])
        total = flat.sum(0)
        dist.all_reduce(total)
        pieces = (total / self.count).split([each.numel() for each in own[0].gradients.values()])
        named = zip(own[0].gradients.items(), pieces, strict=True)
        gradients = {name: piece.view(like.shape).to(like) for (name, like), piece in named}
        return Dense(gradients, own[0].statistics, own[0].losses, own[0].combination)


def _probe(link: Link, place: int, meet: Meet) -> dict[str, Any]:
    """Return how long a byte takes to come back, and at what rate many arrive."""
    size = max(1 << 14, int(_FILL * link.bits / 8))
    server = socket.create_server((address(place), _PORT))
    meet(0)
    if place:
        there, _ = server.accept()
        for _ in range(_ECHOES):
            there.sendall(there.recv(1))
        left = size
        while left:
            left -= len(there.recv(min(left, 1 << 16)))
        there.sendall(b"1")
        meet(0)
        return {}
    with socket.create_connection((address(1), _PORT)) as here:
        here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trip = min(_answered(here, b"1") for _ in range(_ECHOES))
        took = _answered(here, bytes(size))
    meet(0)
    return {"round_trip": trip, "bits": 8 * size / max(took - trip, 1e-9)}


def _answered(connection: socket.socket, data: bytes) -> float:
    """Return the seconds from the first byte that is sent to the answer of one."""
    started = time.monotonic()
    connection.sendall(data)
    connection.recv(1)
    return time.monotonic() - started
