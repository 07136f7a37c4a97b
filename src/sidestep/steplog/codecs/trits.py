"""Blocks of trits: one per probe and step, near their entropy.

A rule that keeps the probes above the median keeps equally many in every step. Then which ones they are is coded
without replacement, log2 C(K, n) bits a step; at K = 128 that is 1.47 bits a probe with the signs, below the 1.5
bits of independent trits. Where the numbers differ, or where so few steps share their probes that it would take long,
trits are coded as independent, by how frequent they are in the run of steps.
"""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.probes import DenseProbes, Probes, RankOneProbes, SparseProbes
from sidestep.steplog.codecs.entropy import TOTAL, AnsReader, AnsWriter, Frequencies, frequencies
from sidestep.steplog.codecs.parts import part_of_probes
from sidestep.steplog.codecs.seeded import SeededCodec, work_of
from sidestep.steplog.format import MOST_COEFS, MOST_WORK, TRITS, DamagedLogError, read_varint, varint
from sidestep.steplog.header import Header
from sidestep.update import Seeded, Update

__all__ = ["TritsCodec", "decode_trits", "encode_trits"]

SPARSE, EXCLUSIVE, RANK_ONE = 0, 1, 2
INDEPENDENT, EQUALLY_MANY = 0, 1
MOST_LAYERS = 1 << 16
MOST_COLUMNS = 1 << 15  # of EQUALLY_MANY in a block: a column is one call of the coder, for all steps of its run
FEW_STEPS = 8

Trits = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Run:
    """Consecutive steps of a block that share their probes, but for the step."""

    probes: Probes  # of the first of the steps
    steps: int
    coding: int  # INDEPENDENT or EQUALLY_MANY
    counts: tuple[int, int]  # of -1 and of 1 in all steps; or non-zeros in every step, and of 1 in all steps

    @property
    def columns(self) -> int:
        """Calls of the coder beyond one or two."""
        return self.probes.count if self.coding == EQUALLY_MANY else 0


class TritsCodec(SeededCodec):
    """-1, 0 or 1 for each sparse or rank-one probe."""

    kind = TRITS
    dtype = torch.int8

    def holds(self, update: Update) -> bool:
        """Say whether an update has numbers along probes of ternary weights."""
        return isinstance(update, Seeded) and not isinstance(update.probes, DenseProbes)

    def is_logged(self, update: Seeded, header: Header, step: int) -> bool:
        """Say whether the numbers are trits, of probes that replay can draw."""
        coefs = update.coefs
        return super().is_logged(update, header, step) and bool(((coefs == 0) | (coefs.abs() == 1)).all())

    def about_bytes(self, update: Seeded) -> float:
        """Return 1.6 bits a probe."""
        return update.coefs.numel() * 0.2

    def encode(self, updates: Sequence[Seeded], header: Header) -> bytes:
        """Return the payload of consecutive steps' trits."""
        return encode_trits(updates)

    def decode(self, payload: bytes, steps: int, first: int, header: Header) -> list[Seeded]:
        """Return the updates of a block."""
        return decode_trits(payload, steps, Noise(header.seed).at(first), header.weights)

    def part(self, update: Seeded, first: int, last: int) -> Seeded:
        """Return the update along the probes' part."""
        return replace(update, probes=part_of_probes(_probes(update), first, last))


def encode_trits(updates: Sequence[Seeded]) -> bytes:
    """Return the payload of consecutive steps' trits; `decode_trits` gives them back."""
    groups = [list(group) for _, group in itertools.groupby(updates, key=lambda update: _alike(_probes(update)))]
    coder, heads, columns = AnsWriter(), [varint(len(groups))], 0
    for group in groups:
        trits = np.stack([update.coefs.to(torch.int8).cpu().numpy() for update in group])
        run = _describe(_probes(group[0]), trits, MOST_COLUMNS - columns)
        columns += run.columns
        heads.append(_run_to_bytes(run))
        if run.coding == EQUALLY_MANY:
            _put_equally_many(coder, trits, run)
        else:
            coder.put(trits.reshape(-1) + np.int32(1), _three(run))
    return b"".join(heads) + coder.to_bytes()


def decode_trits(payload: bytes, steps: int, noise: Noise, weights: int) -> list[Seeded]:
    """Return the updates of a block that begins at `noise.step`.

    Args:
        payload: what `encode_trits` made.
        steps: how many steps the block has.
        noise: of the log's seed, at the block's first step.
        weights: how many weights the net has.

    Raises:
        DamagedLogError: if the payload cannot be what `encode_trits` made.
    """
    number, at = read_varint(payload, 0)
    if not 1 <= number <= steps:
        raise DamagedLogError(f"a block of {steps} steps says that it has {number} runs")
    runs, done, coefs, columns = [], 0, 0, 0
    for _ in range(number):
        run, at = _read_run(payload, at, noise.at(noise.step + done), weights)
        runs.append(run)
        done, coefs, columns = done + run.steps, coefs + run.steps * run.probes.count, columns + run.columns
        if not run.steps or done > steps or coefs > MOST_COEFS or columns > MOST_COLUMNS:
            raise DamagedLogError(f"the runs of a block of {steps} steps have {done} steps and {coefs} coefficients")
    if done != steps:
        raise DamagedLogError(f"a block of {steps} steps has {done}")
    coder, found = AnsReader(payload[at:]), []
    for run in runs:
        trits = torch.from_numpy(_get(coder, run))
        for index, row in enumerate(trits):
            moved = replace(run.probes, noise=run.probes.noise.at(run.probes.noise.step + index))
            found.append(Seeded(row, moved))
    coder.finish()
    return found


def _probes(update: Seeded) -> Probes:
    if isinstance(update.probes, DenseProbes):
        raise InputError("dense probes have real numbers, no trits")
    return update.probes


def _alike(probes: Probes) -> Probes:
    return replace(probes, noise=probes.noise.at(0))


def _describe(probes: Probes, trits: Trits, columns_left: int) -> Run:
    kept, plus = np.count_nonzero(trits, axis=1), int((trits == 1).sum())
    if (kept == kept[0]).all() and len(trits) >= FEW_STEPS and probes.count <= columns_left:
        return Run(probes, len(trits), EQUALLY_MANY, (int(kept[0]), plus))
    return Run(probes, len(trits), INDEPENDENT, (int(kept.sum()) - plus, plus))


def _three(run: Run) -> Frequencies:
    minus, plus = run.counts
    return frequencies([minus, run.steps * run.probes.count - minus - plus, plus])


def _two(run: Run) -> Frequencies:
    kept, plus = run.counts
    return frequencies([run.steps * kept - plus, plus])


def _chance(kept: npt.NDArray[np.int64], places: int) -> Frequencies:
    """Return, for every step, the frequencies of a zero and of a non-zero, with `kept` to come in `places` places."""
    chance = (np.clip(kept, 0, places) * TOTAL // places).clip(1, TOTAL - 1)
    return np.stack([TOTAL - chance, chance], axis=1)


def _put_equally_many(coder: AnsWriter, trits: Trits, run: Run) -> None:
    kept = np.full(run.steps, run.counts[0], dtype=np.int64)
    for column in range(run.probes.count):  # of all steps at once: a column's chances follow from those before it
        mask = (trits[:, column] != 0).astype(np.int32)
        coder.put(mask, _chance(kept, run.probes.count - column))
        kept -= mask
    if run.counts[0]:
        coder.put(trits[trits != 0] > 0, _two(run))


def _get(coder: AnsReader, run: Run) -> Trits:
    count = run.probes.count
    if run.coding == INDEPENDENT:
        symbols = coder.get(run.steps * count, _three(run))
        return (symbols - 1).astype(np.int8).reshape(run.steps, count)
    trits = np.zeros((run.steps, count), dtype=np.int8)
    kept = np.full(run.steps, run.counts[0], dtype=np.int64)
    for column in range(count):
        mask = coder.get(run.steps, _chance(kept, count - column))
        trits[:, column] = mask
        kept -= mask
    if kept.any():
        raise DamagedLogError("a step has another number of non-zero trits than its block says")
    if run.counts[0]:
        trits[trits != 0] = coder.get(run.steps * run.counts[0], _two(run)) * 2 - 1
    return trits


def _run_to_bytes(run: Run) -> bytes:
    probes = run.probes
    parts = [varint(run.steps)]
    if isinstance(probes, SparseProbes):
        parts.append(bytes([EXCLUSIVE if probes.exclusive else SPARSE]))
        kind = struct.pack("<d", probes.density)
    else:
        parts.append(bytes([RANK_ONE]))
        sides = [side for shape in probes.shapes for side in shape]
        kind = b"".join(map(varint, [len(probes.shapes), *sides]))
    parts += [struct.pack("<I", probes.noise.stream_id), varint(probes.count), kind, bytes([run.coding])]
    return b"".join([*parts, *map(varint, run.counts)])


def _read_run(payload: bytes, at: int, noise: Noise, weights: int) -> tuple[Run, int]:
    try:
        steps, at = read_varint(payload, at)
        kind, stream_id = struct.unpack_from("<BI", payload, at)
        count, at = read_varint(payload, at + 5)
        if count > MOST_COEFS:
            raise DamagedLogError(f"a run says that it has {count} probes")
        noise = replace(noise, stream_id=stream_id)
        probes: Probes
        if kind in (SPARSE, EXCLUSIVE):
            probes = SparseProbes(noise, weights, count, struct.unpack_from("<d", payload, at)[0], kind == EXCLUSIVE)
            at += 8
        elif kind == RANK_ONE:
            shapes, at = _read_shapes(payload, at, weights)
            probes = RankOneProbes(noise, shapes, count)
        else:
            raise DamagedLogError(f"there is no kind of probes {kind}")
        coding = payload[at]
        first, at = read_varint(payload, at + 1)
        plus, at = read_varint(payload, at)
    except (struct.error, IndexError, InputError) as error:
        raise DamagedLogError(f"the probes of a block cannot be read: {error}") from error
    if not work_of(probes) <= MOST_WORK:
        raise DamagedLogError(f"a step of a block would take more than {MOST_WORK:,} operations")
    most = steps * first if coding == EQUALLY_MANY else steps * count - first
    if coding > EQUALLY_MANY or plus > most or (coding == EQUALLY_MANY and first > count):
        raise DamagedLogError("the trits of a block are counted wrongly")
    return Run(probes, steps, coding, (first, plus)), at


def _read_shapes(payload: bytes, at: int, weights: int) -> tuple[tuple[tuple[int, int], ...], int]:
    layers, at = read_varint(payload, at)
    if layers > min(MOST_LAYERS, len(payload)):
        raise DamagedLogError(f"a run says that it has {layers} layers")
    shapes = []
    for _ in range(layers):
        rows, at = read_varint(payload, at)
        columns, at = read_varint(payload, at)
        shapes.append((rows, columns))
    if min(map(min, shapes), default=0) < 1 or sum(rows * columns for rows, columns in shapes) != weights:
        raise DamagedLogError(f"the matrices of rank-one probes do not have the net's {weights} weights")
    return tuple(shapes), at
