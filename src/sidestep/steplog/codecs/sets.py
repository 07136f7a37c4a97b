"""Blocks of seeded sets of moves: for each chosen set the byte that says which of 256 it is.

Moves are drawn again in decoding, so what a block gives back are flips like any others.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from sidestep.seeded_sets import MOST_DRAWN, ChosenSets, moves_of_sets
from sidestep.steplog.codecs.codec import Codec, Counts
from sidestep.steplog.format import MOST_FLIPS, SETS, DamagedLogError, read_varint, varint
from sidestep.steplog.header import Header
from sidestep.update import Flips, Update

__all__ = ["SetsCodec"]

_MOST_MEMBERS = 256
_STEPS = 1 << 32  # of a point of noise


class SetsCodec(Codec[Flips]):
    """Which of 256 seeded sets of moves each choice of a step fell on."""

    kind = SETS
    most = MOST_FLIPS

    def holds(self, update: Update) -> bool:
        """Say whether an update has flips that seeded sets tell."""
        return isinstance(update, Flips) and update.sets is not None

    def is_logged(self, update: Flips, header: Header, step: int) -> bool:
        """Say whether the sets are those of this net, and few enough."""
        sets = _sets(update)
        few = sets.drawn <= MOST_DRAWN and sets.numbers.numel() <= MOST_FLIPS and 1 <= sets.members <= _MOST_MEMBERS
        return few and len(sets.counts) == len(header.parameters) and sum(sets.counts) == sets.numbers.numel()

    def numbers(self, update: Flips) -> int:
        """Return the number of moves."""
        return update.positions.numel()

    def about_bytes(self, update: Flips) -> float:
        """Return a byte for each set, and half a one for each parameter."""
        return _sets(update).numbers.numel() + len(_sets(update).counts) / 2

    def kept(self, update: Flips) -> Flips:
        """Return moves, and the sets that they are of."""
        sets = replace(_sets(update), numbers=_sets(update).numbers.to("cpu", torch.uint8, copy=True))
        positions, moves = (
            update.positions.to("cpu", torch.int64, copy=True),
            update.moves.to("cpu", torch.int8, copy=True),
        )
        return Flips(positions, moves, sets=sets)

    def encode(self, updates: Sequence[Flips], header: Header) -> bytes:
        """Return the payload of consecutive steps' sets."""
        heads, chosen, expected = [], [], 0
        for update in updates:
            sets = _sets(update)
            heads += [varint(number) for number in (sets.members, (sets.step - expected) % _STEPS, *sets.counts)]
            chosen.append(sets.numbers.cpu().numpy().tobytes())
            expected = sets.step + 1
        packed = zlib.compress(b"".join(heads), 9)
        return b"".join([varint(len(packed)), packed, *chosen])

    def decode(self, payload: bytes, steps: int, first: int, header: Header) -> list[Flips]:
        """Return the updates of a block."""
        length, at = read_varint(payload, 0)
        heads = _read_heads(payload[at : at + length], steps, len(header.parameters))
        at += length
        if sum(sum(counts) for _, _, counts in heads) != len(payload) - at:
            raise DamagedLogError("a block says that it has other sets than fit into it")
        sizes, found, expected = [math.prod(shape) for _, shape in header.shapes], [], 0
        left = MOST_FLIPS  # of a block, as in writing: what a byte says can be 256 moves
        for members, more, counts in heads:
            chosen = torch.from_numpy(np.frombuffer(payload, np.uint8, sum(counts), at).copy())
            at += sum(counts)
            sets = ChosenSets(members, (expected + more) % _STEPS, tuple(counts), chosen)
            if not 1 <= members <= _MOST_MEMBERS or more >= _STEPS or sets.drawn > MOST_DRAWN:
                raise DamagedLogError(f"a step of a block says that its sets have {members} moves each")
            if any(count and not 1 <= size <= 1 << 31 for count, size in zip(counts, sizes, strict=True)):
                raise DamagedLogError("a block says that it has sets of a parameter too large for them")
            found.append(Flips(*moves_of_sets(sets, sizes), sets=sets))
            left -= found[-1].positions.numel()
            if left < 0:
                raise DamagedLogError(f"a block says that it has more than {MOST_FLIPS:,} moves")
            expected = sets.step + 1
        return found

    def part(self, update: Flips, first: int, last: int) -> Flips:
        """Return the moves in a range of positions."""
        inside = (update.positions >= first) & (update.positions < last)
        return replace(update, positions=update.positions[inside], moves=update.moves[inside], sets=None)

    def counts(self, update: Flips, weights: int) -> Counts:
        """Return the number of moves; what no code for them could go below is not known."""
        return Counts(flips=update.positions.numel(), flip_steps=1)


def _read_heads(packed: bytes, steps: int, parameters: int) -> list[tuple[int, int, list[int]]]:
    """Return of each step the moves of a set, how far its noise is from what was expected, and the counts."""
    most = 10 * steps * (2 + parameters)  # bytes: ten of each number at most
    inflating = zlib.decompressobj()
    try:
        heads = inflating.decompress(packed, most)
    except zlib.error as error:
        raise DamagedLogError(f"the numbers of sets in a block cannot be read: {error}") from error
    if not inflating.eof or inflating.unused_data:
        raise DamagedLogError("the numbers of sets in a block do not end where they should")
    found, at = [], 0
    for _ in range(steps):
        numbers = []
        for _ in range(2 + parameters):
            number, at = read_varint(heads, at)
            numbers.append(number)
        found.append((numbers[0], numbers[1], numbers[2:]))
    if at != len(heads):
        raise DamagedLogError("a block has sets of more steps than it says")
    return found


def _sets(update: Flips) -> ChosenSets:
    if update.sets is None:
        raise DamagedLogError("these flips are of no seeded sets")
    return update.sets
