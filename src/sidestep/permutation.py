"""Keyed permutations of any size, of which single places are computed without the others."""

import math

from torch import Tensor

from sidestep.noise import Noise

__all__ = ["permuted"]

MASK = 0xFFFFFFFF
ROUNDS = 8
MIXERS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)  # odd constants that spread the bits of a product


def permuted(index: Tensor, lap: Tensor, size: int, noise: Noise) -> Tensor:
    """Return where permutation `lap` of 0 .. size-1 puts each index: a Feistel network on pairs (x // b, x % b).

    Not all orders of a handful of places are equally likely; single places and pairs of them are.
    Pairs that fall outside of 0 .. size-1 go through the network again, which keeps it a permutation (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002, cycle walking); with b = ceil(sqrt(size)) few do.
    """
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    laps, which = lap.unique(return_inverse=True)
    first, most = (int(laps[0]), int(laps[-1])) if laps.numel() else (0, 0)
    keys = noise.words((most - first + 1) * ROUNDS, first * ROUNDS, index.device).view(-1, ROUNDS)
    keys = keys.index_select(0, laps - first)
    out = _feistel(index, keys, which, rows, columns)
    outside = (out >= size).nonzero()[:, 0]
    while outside.numel():
        out[outside] = _feistel(out[outside], keys, which[outside], rows, columns)
        outside = outside[out[outside] >= size]
    return out


def _feistel(index: Tensor, keys: Tensor, which: Tensor, rows: int, columns: int) -> Tensor:
    left, right = index // columns, index % columns
    for turn in range(0, ROUNDS, 2):
        left = _turn(left, right, keys[:, turn].index_select(0, which), rows)
        right = _turn(right, left, keys[:, turn + 1].index_select(0, which), columns)
    return left.mul_(columns).add_(right)


def _turn(moved: Tensor, still: Tensor, key: Tensor, size: int) -> Tensor:
    """`(moved + hash(still, key)) mod size`."""
    bits = still.bitwise_xor(key).mul_(MIXERS[0]).bitwise_and_(MASK)
    bits.bitwise_xor_(bits >> 15).add_(key).mul_(MIXERS[1]).bitwise_and_(MASK)
    bits.bitwise_xor_(bits >> 13).mul_(MIXERS[2]).bitwise_and_(MASK)
    bits.bitwise_xor_(bits >> 16).mul_(size).bitwise_right_shift_(32)
    total = bits.add_(moved)
    return total.sub_((total >= size).to(total.dtype).mul_(size))
