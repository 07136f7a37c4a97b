"""Trits, the values -1, 0 and 1, five to a byte: 1.6 bits each, 0.95 % more than log2(3).

    byte = sum over k of (t_k + 1) 3^k      k = 0 .. 4, so a byte is at most 242

A last group that is not full is filled up with zeros.
"""

import functools

import torch
from torch import Tensor

from sidestep.errors import InputError

__all__ = ["pack_trits", "packed_bytes", "unpack_trits"]

TRITS = 5  # in a byte
LARGEST = 3**TRITS - 1


def packed_bytes(count: int) -> int:
    """Return how many bytes `count` trits take."""
    return -(-count // TRITS)


def pack_trits(trits: Tensor) -> Tensor:
    """Return the trits, in any shape and of any integer or float dtype, as uint8 of shape (ceil(n / 5),).

    Raises InputError for values other than -1, 0 and 1.

    >>> pack_trits(torch.tensor([1, 0, -1, 1, 1, 0])).tolist()
    [221, 121]
    """
    flat = trits.reshape(-1)
    digits = flat.to(torch.int8)
    if not bool(((digits == flat) & (digits >= -1) & (digits <= 1)).all()):
        wrong = flat[(digits != flat) | (digits < -1) | (digits > 1)][0].item()
        raise InputError(f"trits are -1, 0 and 1, got {wrong}")
    padded = digits.new_zeros(packed_bytes(flat.numel()) * TRITS)
    padded[: flat.numel()] = digits
    groups = padded.add_(1).view(-1, TRITS).to(torch.uint8)
    packed = groups[:, TRITS - 1].clone()
    for column in reversed(range(TRITS - 1)):
        packed.mul_(3).add_(groups[:, column])
    return packed


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """Return the first `count` trits of packed bytes, int8 of shape (count,).

    Raises InputError if the bytes are too few or too many, or one is above 242.

    >>> unpack_trits(torch.tensor([221, 121], dtype=torch.uint8), 6).tolist()
    [1, 0, -1, 1, 1, 0]
    """
    if packed.dtype != torch.uint8 or packed.numel() != packed_bytes(count):
        raise InputError(
            f"{count} trits are packed in {packed_bytes(count)} bytes (uint8), got {packed.numel()} of {packed.dtype}"
        )
    if packed.numel() and int(packed.max()) > LARGEST:
        raise InputError(f"a byte of five trits is at most {LARGEST}, got {int(packed.max())}")
    return _table(packed.device).index_select(0, packed.reshape(-1).int()).view(-1)[:count]


@functools.lru_cache(maxsize=4)
def _table(device: torch.device) -> Tensor:
    """The five trits of every byte, (243, 5)."""
    codes = torch.arange(LARGEST + 1, device=device)
    return torch.stack([codes // 3**k % 3 - 1 for k in range(TRITS)], dim=1).to(torch.int8)
