"""Philox4x32-10 in plain Python integers, one block at a time: slow and easy to check against the paper."""

MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """The four 32-bit words of one block: ten rounds, the key bumped between them."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0 = 0xD2511F53 * c0
        product1 = 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & MASK,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & MASK,
        )
        k0 = (k0 + 0x9E3779B9) & MASK
        k1 = (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def words(seed: int, stream: int, substream: int, step: int, n: int, start: int = 0) -> list[int]:
    """Elements start to start + n - 1 of one point of noise."""
    key = (seed & MASK, seed >> 32)
    return [
        philox4x32((element // 4, substream, step, stream), key)[element % 4] for element in range(start, start + n)
    ]
