"""Numbers of a message between ranks as few bytes: whole numbers, trits, losses that are alike or short.

whole numbers   as many bits each as the largest one needs
trits           five to a byte
losses          of each term: once, if all parts have the same; without bytes at the end of the fraction that are 0
"""

import numpy as np
import torch

from sidestep.errors import InputError, RankError
from sidestep.ternary import pack_trits, packed_bytes, unpack_trits

__all__ = ["pack_losses", "pack_values", "pack_whole", "unpack_losses", "unpack_values", "unpack_whole"]

_ALIKE = 8  # of a term's four bits; the others say how many bytes each of its numbers takes


def pack_whole(values: np.ndarray) -> bytes:
    """Return whole numbers (n,), int64, in as many bits each as the largest needs, behind one byte that says how many.

    >>> unpack_whole(pack_whole(np.array([3, -4, 0])), 3, 0).tolist(), len(pack_whole(np.array([3, -4, 0])))
    ([3, -4, 0], 3)
    """
    folded = ((values << 1) ^ (values >> 63)).astype("<u8")  # 0, -1, 1, -2 as 0, 1, 2, 3
    bits = int(folded.max(initial=0)).bit_length()
    table = np.unpackbits(folded.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")[:, :bits]
    return bytes([bits]) + np.packbits(table, bitorder="little").tobytes()


def unpack_whole(data: bytes, count: int, rank: int) -> np.ndarray:
    """Return what `pack_whole` made; raises RankError, naming the rank, for anything else."""
    bits = data[0] if data else 65
    if bits > 64 or len(data) != 1 + -(-count * bits // 8):
        raise RankError(f"rank {rank} sent {len(data)} bytes that are no {count} coefficients")
    table = np.zeros((count, 64), np.uint8)
    packed = np.frombuffer(data, np.uint8, offset=1)
    table[:, :bits] = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    folded = np.packbits(table, axis=1, bitorder="little").reshape(-1).view("<u8")
    return ((folded >> np.uint64(1)).astype(np.int64)) ^ -((folded & np.uint64(1)).astype(np.int64))


def pack_values(values: np.ndarray) -> bytes:
    """Return numbers (n,) as they are, or trits (int8) five to a byte.

    >>> len(pack_values(np.ones(64, np.int8))), len(pack_values(np.ones(64, np.float32)))
    (13, 256)
    """
    return pack_trits(torch.from_numpy(values)).numpy().tobytes() if values.dtype == np.int8 else values.tobytes()


def unpack_values(data: bytes, count: int, kind: np.dtype) -> np.ndarray | None:
    """Return what `pack_values` made of so many numbers of a kind; None for anything else."""
    if kind != np.int8:
        return np.frombuffer(data, kind) if len(data) == count * kind.itemsize else None
    if len(data) != packed_bytes(count):
        return None
    try:
        return unpack_trits(torch.frombuffer(bytearray(data), dtype=torch.uint8), count).numpy() if count else (
            np.zeros(0, np.int8))  # fmt: skip
    except InputError:
        return None


def pack_losses(losses: np.ndarray) -> bytes:
    """Return losses (parts, terms), float32: four bits for each term, and its numbers.

    >>> one = np.array([[2.3, 0.25], [2.3, 0.0]], np.float32)
    >>> len(pack_losses(one)), unpack_losses(pack_losses(one), 2, 2, 0)[0].tolist() == one.tolist()
    (9, True)
    """
    heads, rest = [], b""
    for column in np.ascontiguousarray(losses.T.astype("<f4")):
        data = column.view(np.uint8).reshape(-1, 4)
        alike = bool((data == data[0]).all())
        data = data[:1] if alike else data
        used = np.flatnonzero(data.any(axis=0))
        taken = 4 - int(used[0]) if len(used) else 0  # little-endian: what is left out comes first
        heads.append(taken | (_ALIKE if alike else 0))
        rest += data[:, 4 - taken :].tobytes()
    heads += [0] * (len(heads) % 2)
    return bytes(low | high << 4 for low, high in zip(heads[::2], heads[1::2], strict=True)) + rest


def unpack_losses(data: bytes, parts: int, terms: int, rank: int) -> tuple[np.ndarray, int]:
    """Return what `pack_losses` made, and where it ends; raises RankError, naming the rank, for anything else."""
    found, at = np.zeros((terms, parts, 4), np.uint8), -(-terms // 2)
    for term in range(terms):
        head = data[term // 2] >> 4 * (term % 2) & 15 if term // 2 < len(data) else 7
        taken, rows = head & 7, 1 if head & _ALIKE else parts
        if taken > 4 or at + rows * taken > len(data):
            raise RankError(f"rank {rank} sent {len(data)} bytes that are no losses of {parts} parts")
        found[term, :, 4 - taken :] = np.frombuffer(data, np.uint8, rows * taken, at).reshape(rows, taken)
        at += rows * taken
    return found.reshape(terms, -1).view("<f4").T, at
