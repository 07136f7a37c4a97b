"""Blocks of real numbers: one float32 per dense probe, and the learning rate that a step was taken with.

The numbers are stored as they are: what a code could save of their 32 bits is their sign and size, a few bits.
"""

import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch

from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.probes import DenseProbes, Distribution
from sidestep.steplog.codecs.codec import Counts
from sidestep.steplog.codecs.schedule import Schedule, followed
from sidestep.steplog.codecs.seeded import SeededCodec, work_of
from sidestep.steplog.format import MOST_COEFS, MOST_WORK, REALS, DamagedLogError, read_varint, varint
from sidestep.steplog.header import Header
from sidestep.update import Seeded, Update

__all__ = ["RealsCodec", "Table", "decode_reals", "encode_reals"]

Table = tuple[tuple[str, tuple[int, ...]], ...]  # name and shape of every parameter
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)  # their places stand in the log
ONE_RATE, A_RATE_EACH, A_SCHEDULE = 0, 1, 2


@dataclass(frozen=True)
class Run:
    """Consecutive steps of a block that share their probes, but for the step."""

    probes: DenseProbes  # of the first of the steps
    rates: tuple[float, ...]  # of every step


class RealsCodec(SeededCodec):
    """One float32 for each dense probe, and the learning rate of the step."""

    kind = REALS
    dtype = torch.float32

    def holds(self, update: Update) -> bool:
        """Say whether an update has numbers along dense probes."""
        return isinstance(update, Seeded) and isinstance(update.probes, DenseProbes)

    def is_logged(self, update: Seeded, header: Header, step: int) -> bool:
        """Say whether the numbers are float32, with a learning rate, of probes that replay can draw."""
        rated = update.rate is not None and math.isfinite(update.rate) and update.rate >= 0
        return (
            super().is_logged(update, header, step)
            and rated
            and update.coefs.dtype == torch.float32
            and _dense(update).parameters == header.shapes
        )

    def about_bytes(self, update: Seeded) -> float:
        """Return four bytes a probe and eight for the learning rate, which a schedule makes fewer."""
        return update.coefs.numel() * 4.0 + 8

    def encode(self, updates: Sequence[Seeded], header: Header) -> bytes:
        """Return the payload of consecutive steps' numbers."""
        return encode_reals(updates, header)

    def decode(self, payload: bytes, steps: int, first: int, header: Header) -> list[Seeded]:
        """Return the updates of a block."""
        return decode_reals(payload, steps, Noise(header.seed).at(first), header.shapes)

    def counts_of(self, payload: bytes, steps: int, first: int, header: Header) -> Counts:
        """Return what a whole block adds to the counts, without making its updates."""
        _, at = _read_runs(payload, steps, Noise(header.seed).at(first), header.shapes)
        coefs = np.frombuffer(payload, "<f4", offset=at)
        return Counts(probes=len(coefs), non_zero=int(np.count_nonzero(coefs)))

    def part(self, update: Seeded, first: int, last: int) -> Seeded:
        """Return the update along directions of the parameters that lie there: whole ones."""
        probes = _dense(update)
        ends = list(itertools.accumulate(math.prod(shape) for _, shape in probes.parameters))
        places = zip([0, *ends], ends, probes.parameters, strict=False)
        inside = tuple(entry[0] for at, end, entry in places if first <= at and end <= last)
        return replace(update, probes=replace(probes, only=inside))


def encode_reals(updates: Sequence[Seeded], header: Header | None = None) -> bytes:
    """Return the payload of consecutive steps' numbers; `decode_reals` gives them back.

    A header says which schedule the rates may follow; where they do, to the bit, that is written in their place.
    """
    runs = [list(run) for _, run in itertools.groupby(updates, key=lambda update: _kind_of(_dense(update)))]
    heads, coefs = [varint(len(runs))], []
    for run in runs:
        heads += [varint(len(run)), _kind_of(_dense(run[0])), _rates_of(run, header)]
        coefs += [update.coefs.to(torch.float32).cpu().numpy().astype("<f4").tobytes() for update in run]
    return b"".join([*heads, *coefs])


def _rates_of(run: Sequence[Seeded], header: Header | None) -> bytes:
    rates = [float(update.rate or 0) for update in run]
    if all(rate == rates[0] for rate in rates):
        return bytes([ONE_RATE]) + struct.pack("<d", rates[0])
    schedule = followed(rates, _dense(run[0]).noise.step, header) if header else None
    if schedule is None:
        return bytes([A_RATE_EACH]) + np.array(rates, dtype="<f8").tobytes()
    return bytes([A_SCHEDULE]) + schedule.to_bytes()


def decode_reals(payload: bytes, steps: int, noise: Noise, parameters: Table) -> list[Seeded]:
    """Return the updates of a block that begins at `noise.step`.

    Args:
        payload: what `encode_reals` made.
        steps: how many steps the block has.
        noise: of the log's seed, at the block's first step.
        parameters: name and shape of every parameter of the net.

    Raises:
        DamagedLogError: if the payload cannot be what `encode_reals` made.
    """
    runs, at = _read_runs(payload, steps, noise, parameters)
    found = []
    for run in runs:
        probes = run.probes
        for index, rate in enumerate(run.rates):
            numbers = torch.from_numpy(np.frombuffer(payload, "<f4", probes.count, at).astype(np.float32))
            moved = DenseProbes(
                probes.noise.at(probes.noise.step + index), parameters, probes.count, probes.distribution
            )
            found.append(Seeded(numbers, moved, rate=rate))
            at += 4 * probes.count
    return found


def _read_runs(payload: bytes, steps: int, noise: Noise, parameters: Table) -> tuple[list[Run], int]:
    """Return a block's runs, and where its numbers begin, which go to its end."""
    number, at = read_varint(payload, 0)
    if not 1 <= number <= steps:
        raise DamagedLogError(f"a block of {steps} steps says that it has {number} runs")
    runs, done, coefs = [], 0, 0
    for _ in range(number):
        run, at = _read_run(payload, at, noise.at(noise.step + done), parameters, steps - done)
        runs.append(run)
        done, coefs = done + len(run.rates), coefs + len(run.rates) * run.probes.count
    if done != steps or coefs > MOST_COEFS or len(payload) - at != 4 * coefs:
        raise DamagedLogError(f"a block of {steps} steps has {done}, with {coefs} numbers in {len(payload) - at} bytes")
    return runs, at


def _dense(update: Seeded) -> DenseProbes:
    if not isinstance(update.probes, DenseProbes):
        raise InputError(f"real numbers are logged along dense probes, got {type(update.probes).__name__}")
    return update.probes


def _kind_of(probes: DenseProbes) -> bytes:
    """What a run says of its probes."""
    place = DISTRIBUTIONS.index(probes.distribution)
    return struct.pack("<BI", place, probes.noise.stream_id) + varint(probes.count)


def _read_run(payload: bytes, at: int, noise: Noise, parameters: Table, steps_left: int) -> tuple[Run, int]:
    steps, at = read_varint(payload, at)
    if not 1 <= steps <= steps_left:
        raise DamagedLogError(f"a run says that it has {steps} steps, where {steps_left} are left")
    try:
        place, stream_id = struct.unpack_from("<BI", payload, at)
        count, at = read_varint(payload, at + 5)
        if place >= len(DISTRIBUTIONS) or not 1 <= count <= MOST_COEFS:
            raise DamagedLogError(f"there are no {count} probes of distribution {place}")
        each, at = payload[at], at + 1
        if each == A_SCHEDULE:
            schedule, at = Schedule.parse(payload, at)
            rates = schedule.rates(noise.step, steps)
        elif each in (ONE_RATE, A_RATE_EACH):
            rates = struct.unpack_from(f"<{steps if each else 1}d", payload, at)
            at += 8 * len(rates)
        else:
            raise DamagedLogError(f"there is no kind of learning rates {each}")
    except (struct.error, IndexError) as error:
        raise DamagedLogError(f"a run of a block is cut: {error}") from error
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise DamagedLogError("a learning rate of a block is no number from 0 on")
    probes = DenseProbes(Noise(noise.seed, stream_id, 0, noise.step), parameters, count, DISTRIBUTIONS[place])
    if work_of(probes) > MOST_WORK:
        raise DamagedLogError(f"a step of a block would take more than {MOST_WORK:,} operations")
    return Run(probes, rates if each else rates * steps), at
