"""How long a step takes over a link, and a run of many workers that come and go: arithmetic, not a measurement.

    gather of b bytes a worker     the less of  (n - 1) (d + 8b/B)                        a ring
                                                d ceil(log2 n) + (n - 1) 8b/B             recursive doubling
    sum of b bytes                 the less of  2 (n - 1) (d + 8b/(nB))                   a ring
                                                2 d ceil(log2 n) + 2 (n - 1)/n 8b/B       halving and doubling

d is half a round trip, B the bits a second of a worker's link, each way. Every worker has such a link, and nothing else
is slow.
"""

import math
from dataclasses import dataclass

from benchmarks.links.relay import Link
from sidestep.noise import Noise

__all__ = ["Churn", "Costs", "Run", "gather_seconds", "run", "sum_seconds"]


def gather_seconds(link: Link, workers: int, payload: float, ring: bool = False) -> float:
    """Return how long all workers take to hear the messages of all."""
    if workers == 1:
        return 0.0
    by_ring = (workers - 1) * link.seconds(payload)
    hops = math.ceil(math.log2(workers)) * link.round_trip / 2
    return by_ring if ring else min(by_ring, hops + (workers - 1) * 8 * payload / link.bits)


def sum_seconds(link: Link, workers: int, payload: float, ring: bool = False) -> float:
    """Return how long all workers take to sum up tensors of one size."""
    if workers == 1:
        return 0.0
    by_ring = 2 * (workers - 1) * link.seconds(payload / workers)
    hops = 2 * math.ceil(math.log2(workers)) * link.round_trip / 2
    return by_ring if ring else min(by_ring, hops + 2 * (workers - 1) / workers * 8 * payload / link.bits)


@dataclass(frozen=True)
class Costs:
    """What was measured of one way, in one process.

    part_fixed, part_each: processor seconds of an estimate, and for each of its examples.
    rest: seconds that every worker takes after an exchange.
    payload: bytes of a worker's message.
    every: steps between exchanges.
    sums: whether messages are summed; otherwise all hear all.
    steps: to the accuracy; None if it was not reached.
    state: bytes that a new worker has to get before the others can go on; of a log, none: it replays beside them.
    log: bytes of a step in the log.
    """

    part_fixed: float
    part_each: float
    rest: float
    payload: int
    every: int
    sums: bool
    steps: int | None
    state: int
    log: int = 0

    def compute(self, examples: int) -> float:
        """Return the seconds of a step without the exchange."""
        return self.part_fixed + self.part_each * examples + self.rest

    def exchange(self, link: Link, workers: int, ring: bool = False) -> float:
        """Return the seconds of one exchange."""
        return (sum_seconds if self.sums else gather_seconds)(link, workers, self.payload, ring)

    def sent(self, workers: int) -> float:
        """Return the bytes that a worker sends in one exchange."""
        return 2 * (workers - 1) / workers * self.payload if self.sums else (workers - 1) * self.payload

    def step(self, link: Link, workers: int, examples: int, ring: bool = False) -> float:
        """Return the mean seconds of a step."""
        return self.compute(examples) + self.exchange(link, workers, ring) / self.every


@dataclass(frozen=True)
class Churn:
    """a worker goes `leaves` times an hour, and another takes its place; the others notice it, and meet again."""

    leaves: float = 0.0
    notice: float = 5.0
    meet: float = 1.5


@dataclass(frozen=True)
class Run:
    """A simulated run: seconds to the accuracy, bytes that one worker sends, how often one went."""

    seconds: float
    sent: float
    left: int


def run(costs: Costs, link: Link, workers: int, examples: int, churn: Churn, noise: Noise) -> Run:
    """Take all steps one after another; in each a worker goes with the chance that its length gives."""
    if costs.steps is None:
        raise ValueError("the accuracy was not reached, so there is nothing to simulate")
    seconds = sent = 0.0
    left = 0
    chances = noise.uniform(costs.steps)
    for step in range(costs.steps):
        took = costs.compute(examples)
        if (step + 1) % costs.every == 0:
            took += costs.exchange(link, workers)
            sent += costs.sent(workers)
        gone = 1 - math.exp(-churn.leaves / 3600 * workers * took)
        if float(chances[step]) < gone:  # one at a time: at most once a step
            left += 1
            took = 2 * took + churn.notice + churn.meet + (link.seconds(costs.state) if costs.state else 0.0)
            sent += (costs.state or costs.log * step) / workers  # to the new one, from any of the others
        seconds += took
    return Run(seconds, sent, left)
