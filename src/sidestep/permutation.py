"""Keyed permutations of any size, of which single places are computed without the others."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sidestep.noise import Noise

__all__ = ["permuted"]

MASK = 0xFFFFFFFF
ROUNDS = 8
MIXERS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)  # odd constants that spread the bits of a product
FEW = 1 << 14  # places, up to which numpy's calls, which cost a fraction of torch's, are the faster ones

Whole = npt.NDArray[np.int64]


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
    if index.device.type == "cpu" and index.numel() <= FEW:
        return torch.from_numpy(_feistel_by_numpy(index.numpy(), keys.numpy(), which.numpy(), rows, columns))
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


def _feistel_by_numpy(index: Whole, keys: Whole, which: Whole, rows: int, columns: int) -> Whole:
    left, right = np.divmod(index, columns)
    own = np.ascontiguousarray(keys.T).take(which, axis=1)
    for turn in range(0, ROUNDS, 2):
        left = _turn_by_numpy(left, right, own[turn], rows)
        right = _turn_by_numpy(right, left, own[turn + 1], columns)
    left *= columns
    left += right
    return left


def _turn_by_numpy(moved: Whole, still: Whole, key: Whole, size: int) -> Whole:
    bits = still ^ key
    bits *= MIXERS[0]
    bits &= MASK
    bits ^= bits >> 15
    bits += key
    bits *= MIXERS[1]
    bits &= MASK
    bits ^= bits >> 13
    bits *= MIXERS[2]
    bits &= MASK
    bits ^= bits >> 16
    bits *= size
    bits >>= 32
    bits += moved
    bits -= np.where(bits >= size, size, 0)
    return bits
