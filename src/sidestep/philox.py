"""Philox4x32-10, words by counter: the same bits from Python's integers, numpy or torch, whichever is fastest.

A counter (block, substream, step, stream id) of 32-bit numbers and a 64-bit key give four words of 32 bits. Blocks of
a few words cost Python less than the calls of an array library do; numpy calls cost a fraction of torch's; and many
words are worth torch's threads and its work in place, or a GPU.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011), section 3.3.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["BLOCK", "SOME", "block_of_words", "blocks_of_words", "these_blocks"]

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
BLOCK = 4  # words that one counter gives
FEW = 4  # blocks, up to which Python's integers are fastest
SOME = 1 << 15  # blocks, up to which numpy is: torch works on one thread up to there, too

Counters = tuple[int, int, int]  # substream, step, stream id
Array = np.ndarray[Any, Any]


def blocks_of_words(first: int, blocks: int, counters: Counters, seed: int, device: str | torch.device) -> Tensor:
    """The words of blocks first, first + 1, ... as uint32 values, shape (blocks, 4), int64, on `device`."""
    device = torch.device(device)
    if device.type == "cpu" and blocks <= FEW:
        rows = [block_of_words(first + index, counters, seed) for index in range(blocks)]
        return torch.tensor(rows, dtype=torch.int64).view(blocks, BLOCK)
    if device.type == "cpu" and blocks <= SOME:
        return torch.from_numpy(_by_numpy(np.arange(first, first + blocks, dtype=np.uint64), counters, seed))
    return _by_torch(first, blocks, counters, seed, device)


def these_blocks(numbers: Array, counters: tuple[Array, Array, Array], seed: int) -> Array:
    """The words of blocks of these numbers, (blocks,), at points of their own, (blocks,) each: (blocks, 4), int64."""
    return _by_numpy(numbers, counters, seed)


def block_of_words(block: int, counters: Counters, seed: int) -> tuple[int, int, int, int]:
    """The four words of one block, in Python's integers."""
    w0, (w1, w2, w3) = block, counters
    for k0, k1 in _keys(seed):
        even, odd = MULTIPLIERS[0] * w0, MULTIPLIERS[1] * w2
        w0, w1, w2, w3 = odd >> 32 ^ w1 ^ k0, odd & MASK, even >> 32 ^ w3 ^ k1, even & MASK
    return w0, w1, w2, w3


def _by_numpy(numbers: Array, counters: Counters | tuple[Array, Array, Array], seed: int) -> Array:
    """Words 0 and 2 of all blocks are one array of two rows, words 1 and 3 another: half the calls.

    A round swaps the rows of the products; their low halves are the next words 1 and 3, and stay unmasked.
    """
    blocks = len(numbers)
    even, odd, product = np.empty((3, 2, blocks), np.uint64)
    even[0] = numbers
    odd[0], even[1], odd[1] = counters
    for key in _key_columns(seed):
        np.multiply(even, _MULTIPLIERS, product)
        swapped = product[::-1]
        np.right_shift(swapped, _SHIFT, even)
        np.bitwise_xor(even, odd, even)
        np.bitwise_xor(even, key, even)
        np.bitwise_and(even, _MASK, even)
        odd, product = swapped, odd
    out = np.empty((blocks, BLOCK), np.int64)
    columns = out.view(np.uint64).T
    columns[0::2] = even
    np.bitwise_and(odd, _MASK, columns[1::2])
    return out


def _by_torch(first: int, blocks: int, counters: Counters, seed: int, device: torch.device) -> Tensor:
    out = torch.empty(blocks, BLOCK, dtype=torch.int64, device=device)
    chunk = _chunk_blocks(device)
    for begin in range(0, blocks, chunk):
        _write(first + begin, counters, seed, out[begin : begin + chunk])
    return out


def _write(first: int, counters: Counters, seed: int, out: Tensor) -> None:
    """Write the words of blocks first, first + 1, ... to `out`, shape (blocks, 4), int64.

    Products wrap at 64 bits, which keeps the bits we take: the high word is (p >> 32) & MASK. Words 1 and 3
    enter a round by xor alone, so they stay unmasked products until then; five buffers, all work in place.
    """
    blocks = len(out)
    c0 = torch.arange(first, first + blocks, dtype=torch.int64, device=out.device)
    c1, c2, c3 = (torch.full_like(c0, counter) for counter in counters)
    carry = torch.empty_like(c0)
    for key in _keys(seed):
        c0.mul_(MULTIPLIERS[0])
        c2.mul_(MULTIPLIERS[1])
        torch.bitwise_right_shift(c2, 32, out=carry)
        c1.bitwise_xor_(carry).bitwise_xor_(key[0]).bitwise_and_(MASK)
        torch.bitwise_right_shift(c0, 32, out=carry)
        c3.bitwise_xor_(carry).bitwise_xor_(key[1]).bitwise_and_(MASK)
        c0, c1, c2, c3 = c1, c2, c3, c0
    for column, words in enumerate((c0, c1, c2, c3)):
        torch.bitwise_and(words, MASK, out=out[:, column])


def _chunk_blocks(device: torch.device) -> int:
    """Blocks per pass: the five buffers stay in a core's cache; on a GPU few launches matter more."""
    if device.type != "cpu":
        return 1 << 22
    threads = torch.get_num_threads()
    return 1 << 14 if threads == 1 else threads << 15  # torch splits work into pieces of 2**15 elements


@lru_cache
def _keys(seed: int) -> tuple[tuple[int, int], ...]:
    """The two halves of the key in each round."""
    low, high = seed & MASK, seed >> 32
    return tuple(((low + step * KEY_STEPS[0]) & MASK, (high + step * KEY_STEPS[1]) & MASK) for step in range(ROUNDS))


@lru_cache
def _key_columns(seed: int) -> tuple[Array, ...]:
    return tuple(np.array(key, np.uint64)[:, None] for key in _keys(seed))


# arrays, since numpy would make one of a number in each call
_MULTIPLIERS = np.array(MULTIPLIERS, np.uint64)[:, None]
_SHIFT = np.array(32, np.uint64)
_MASK = np.array(MASK, np.uint64)
