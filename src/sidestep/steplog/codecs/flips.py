"""Blocks of flips: which weights of a step move, and up or down.

    gap = q 2^k + r between one position and the next        k such that q has a mean of 8 to 16

q goes through the entropy coder with the frequencies of a geometric distribution, which follow from the number of
flips n among d weights in whole numbers; r and the sign are plain bits. Together they come near the least that n
places among d and n signs can take, log2 C(d, n) + n bits.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sidestep.errors import InputError
from sidestep.steplog.codecs.codec import Codec, Counts
from sidestep.steplog.codecs.entropy import AnsReader, AnsWriter, Frequencies, frequencies
from sidestep.steplog.format import FLIPS, MOST_FLIPS, DamagedLogError, read_varint, varint
from sidestep.steplog.header import Header
from sidestep.update import Flips, Update

__all__ = ["FlipsCodec", "decode_flips", "encode_flips", "least_bits"]

MORE = 255  # the symbol for q >= 255: 255 of it, and a further symbol says how much more
ONE = 1 << 48  # fixed point

Bits = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int64]


class Step(NamedTuple):
    """One step's flips as arrays."""

    gaps: Whole  # weights between one flip and the next
    up: npt.NDArray[np.bool_]


class FlipsCodec(Codec[Flips]):
    """Places of single weights, and for each whether it moves up or down."""

    kind = FLIPS
    most = MOST_FLIPS

    def holds(self, update: Update) -> bool:
        """Say whether an update has flips that no seeded sets tell."""
        return isinstance(update, Flips) and update.sets is None

    def is_logged(self, update: Flips, header: Header, step: int) -> bool:
        """Say whether there are few enough flips for a block."""
        return update.positions.numel() <= MOST_FLIPS

    def numbers(self, update: Flips) -> int:
        """Return the number of flips."""
        return update.positions.numel()

    def about_bytes(self, update: Flips) -> float:
        """Return 13 bits a flip."""
        return update.positions.numel() * 1.6

    def kept(self, update: Flips) -> Flips:
        """Return positions and moves."""
        return Flips(update.positions.to("cpu", torch.int64, copy=True), update.moves.to("cpu", torch.int8, copy=True))

    def encode(self, updates: Sequence[Flips], header: Header) -> bytes:
        """Return the payload of consecutive steps' flips."""
        return encode_flips(updates, header.weights)

    def decode(self, payload: bytes, steps: int, first: int, header: Header) -> list[Flips]:
        """Return the updates of a block."""
        return decode_flips(payload, steps, header.weights)

    def part(self, update: Flips, first: int, last: int) -> Flips:
        """Return the flips in a range of positions.

        >>> update = Flips(torch.tensor([1, 4, 7]), torch.tensor([1, -1, 1], dtype=torch.int8))
        >>> FlipsCodec().part(update, 2, 6).positions.tolist()
        [4]
        """
        inside = (update.positions >= first) & (update.positions < last)
        return replace(update, positions=update.positions[inside], moves=update.moves[inside], sets=None)

    def counts(self, update: Flips, weights: int) -> Counts:
        """Return the number of flips, and the least bits that they could take."""
        flips = update.positions.numel()
        return Counts(flips=flips, flip_steps=1, least_bits=least_bits(flips, weights))


def encode_flips(updates: Sequence[Flips], weights: int) -> bytes:
    """Return the payload of consecutive steps' flips; `decode_flips` gives them back."""
    coder, heads, bits = AnsWriter(), [], []
    for update in updates:
        positions = update.positions.cpu().numpy()
        step = Step(np.diff(positions, prepend=-1) - 1, update.moves.cpu().numpy() > 0)
        if len(step.up) != len(positions) or (step.gaps < 0).any() or positions[-1:].sum() >= weights:
            raise InputError(
                f"flips are ascending places among {weights} weights with a move each, got {positions[:8].tolist()}"
            )
        heads.append(varint(len(positions)))
        if len(positions):
            bits += _put(coder, step, weights)
    words = coder.to_bytes()
    plain = np.packbits(np.concatenate(bits), bitorder="little").tobytes() if bits else b""
    return b"".join([*heads, varint(len(words) // 4), words, plain])


def decode_flips(payload: bytes, steps: int, weights: int) -> list[Flips]:
    """Return the flips of a block of `steps` steps.

    Raises:
        DamagedLogError: if the payload cannot be what `encode_flips` made.
    """
    counts, at = [], 0
    for _ in range(steps):
        count, at = read_varint(payload, at)
        counts.append(count)
    words, at = read_varint(payload, at)
    plain = at + 4 * words
    if sum(counts) > min(MOST_FLIPS, 8 * len(payload)) or max(counts) > weights or plain > len(payload):
        raise DamagedLogError("a block says that it has more flips than fit into it")
    needed = sum(count * (_low_bits(weights, count) + 1) for count in counts)
    if -(-needed // 8) != len(payload) - plain:
        raise DamagedLogError(f"a block has {len(payload) - plain} bytes for {needed} plain bits")
    coder = AnsReader(payload[at:plain])
    source, found, bit = np.frombuffer(payload, np.uint8, offset=plain), [], 0
    for count in counts:
        taken = count * (_low_bits(weights, count) + 1)
        found.append(_get(coder, _slice(source, bit, taken), count, weights))
        bit += taken
    coder.finish()
    return found


def least_bits(count: int, weights: int) -> float:
    """Return log2 C(d, n) + n: no code for n places among d and n signs can always take less."""
    ways = math.lgamma(weights + 1) - math.lgamma(count + 1) - math.lgamma(weights - count + 1)
    return ways / math.log(2) + count


def _low_bits(weights: int, count: int) -> int:
    """k: d // n has k + 4 bits, unless it has fewer than 4."""
    return max(0, (weights // count).bit_length() - 4) if count else 0


@functools.lru_cache(maxsize=1024)
def _table(weights: int, count: int) -> Frequencies:
    """Frequencies of q = 0 .. 254 and of more: `a^q` with `a = (1 - n/d)^(2^k)`, in fixed point."""
    ratio = (weights - count) * ONE // weights
    for _ in range(_low_bits(weights, count)):
        ratio = ratio * ratio // ONE
    masses, mass = [], ONE
    for _ in range(MORE):
        masses.append(mass)
        mass = mass * ratio // ONE
    return frequencies([*masses, mass * ONE // (ONE - ratio)])


def _put(coder: AnsWriter, step: Step, weights: int) -> list[Bits]:
    count = len(step.gaps)
    low, table = _low_bits(weights, count), _table(weights, count)
    quotients = step.gaps >> low
    while len(quotients):
        coder.put(np.minimum(quotients, MORE), table)
        quotients = quotients[quotients >= MORE] - MORE
    rest = (step.gaps[:, None] >> np.arange(low)) & 1
    return [rest.astype(np.uint8).reshape(-1), step.up.astype(np.uint8)]


def _get(coder: AnsReader, bits: Bits, count: int, weights: int) -> Flips:
    if not count:
        return Flips(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int8))
    low, table = _low_bits(weights, count), _table(weights, count)
    quotients = np.zeros(count, dtype=np.int64)
    going = np.arange(count)
    while len(going):
        symbols = coder.get(len(going), table)
        quotients[going] += symbols
        going = going[symbols == MORE]
        if len(going) and int(quotients[going].min()) << low > weights:
            break
    if int(quotients.max()) << low > weights:
        raise DamagedLogError("a flip lies beyond the net's weights")
    rest = bits[: count * low].reshape(count, low) @ (np.int64(1) << np.arange(low, dtype=np.int64))
    positions = np.cumsum((quotients << low) + rest + 1) - 1
    if positions[0] < 0 or positions[-1] >= weights or (np.diff(positions) <= 0).any():
        raise DamagedLogError("a flip lies beyond the net's weights")
    moves = bits[count * low :].astype(np.int8) * 2 - 1
    return Flips(torch.from_numpy(positions), torch.from_numpy(moves))


def _slice(source: Bits, bit: int, count: int) -> Bits:
    """Return `count` bits from `bit` on, unpacking only the bytes around them."""
    first = bit // 8
    found = np.unpackbits(source[first : -(-(bit + count) // 8)], bitorder="little")
    return found[bit - 8 * first :][:count]
