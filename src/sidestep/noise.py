"""Counter-based noise: Philox4x32-10 in integer arithmetic, the same words on every device and torch version.

    value = f(seed, stream, substream, step, element)         no state, so any step can be entered directly

The counter of a block of four words is (element // 4, substream, step, stream id), the key the 64-bit seed.
Words, signs, sparse signs, integers, uniforms and permutations are exact everywhere; `normal` calls log, cos
and sin, whose last bit may differ between devices.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011), section 3.3.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.philox import BLOCK, SOME, block_of_words, blocks_of_words, these_blocks

__all__ = ["Noise", "permutations", "rows_of_signs", "signs_of"]


@dataclass(frozen=True)
class Noise:
    """A point (seed, stream, substream, step) from which any number of elements can be drawn, in any order.

    Drawing twice from one point gives the same numbers twice, also through different methods: give each
    purpose its own `stream`, each probe or block its own `sub`, each training step its own `at`.

    >>> noise = Noise(7).stream("probes").at(3)
    >>> whole, parts = noise.words(10), [noise.words(4), noise.words(6, start=4)]
    >>> bool((torch.cat(parts) == whole).all())
    True
    """

    seed: int
    stream_id: int = 0
    substream: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        for name, bits in (("seed", 64), ("stream_id", 32), ("substream", 32), ("step", 32)):
            _check_count(name.replace("_", " "), getattr(self, name), bits)

    def stream(self, name: str) -> "Noise":
        """The stream `name` below this one: its 32-bit id is a blake2s hash of this one's id and the name."""
        return self._with("stream_id", _stream_id(self.stream_id, name))

    def sub(self, index: int) -> "Noise":
        """Substream `index` of this stream, say of a probe or a block; it replaces an earlier index."""
        return self._with("substream", index)

    def at(self, step: int) -> "Noise":
        """The same stream at training step `step`; it replaces an earlier step."""
        return self._with("step", step)

    def _with(self, name: str, value: int) -> "Noise":
        """This point with another place, the rest unchecked: each step of a small net makes some."""
        _check_count(name, value, 32)
        made = object.__new__(Noise)
        made.__dict__.update(self.__dict__, **{name: value})
        return made

    def words(self, n: int, start: int = 0, device: str | torch.device = "cpu") -> Tensor:
        """Elements start to start + n - 1 as uint32 values, shape (n,), int64.

        Raises InputError if n or start is negative, or if they pass the 2**34 words of one point.
        """
        _check_range(n, start, 1 << 34, "words")
        first = start // BLOCK
        blocks = (start + n + BLOCK - 1) // BLOCK - first
        counters = (self.substream, self.step, self.stream_id)
        return blocks_of_words(first, blocks, counters, self.seed, device).view(-1)[start - first * BLOCK :][:n]

    def signs(self, n: int, start: int = 0, device: str | torch.device = "cpu") -> Tensor:
        """Fair signs, +1 or -1, shape (n,), int8: element i is bit i % 32 of word i // 32.

        >>> Noise(0).signs(6).tolist()
        [1, -1, 1, -1, 1, -1]
        """
        _check_range(n, start, 1 << 39, "signs")
        first = start // 32
        return signs_of(_octets(self.words((start + n + 31) // 32 - first, first, device)))[start - first * 32 :][:n]

    def packed_signs(self, n: int, device: str | torch.device = "cpu") -> Tensor:
        """The first n `signs`, eight to a byte, uint8; `signs_of` gives them back.

        >>> bool((signs_of(Noise(0).packed_signs(6))[:6] == Noise(0).signs(6)).all())
        True
        """
        _check_range(n, 0, 1 << 39, "signs")
        return _octets(self.words((n + 31) // 32, 0, device))[: (n + 7) // 8].clone()

    def sparse_signs(self, n: int, density: float, start: int = 0, device: str | torch.device = "cpu") -> Tensor:
        """Bernoulli(density) times a fair sign, shape (n,), int8 in {-1, 0, 1}.

        Element i is non-zero if word i < floor(density 2^32); its sign comes from the nested stream "sign".
        Raises InputError unless density is in [2^-32, 1].
        """
        if not 2.0**-32 <= density <= 1.0:
            raise InputError(
                f"density must be in (0, 1], got {density}; 32-bit words can draw 2.3e-10 and more, "
                "and the smallest useful one is 1 / (number of weights)"
            )
        kept = self.words(n, start, device) < math.floor(density * 2**32)
        return self.stream("sign").signs(n, start, device).mul_(kept)

    def uniform(self, n: int, start: int = 0, device: str | torch.device = "cpu") -> Tensor:
        """Uniform values in [0, 1), multiples of 2^-24, shape (n,), float32."""
        return (self.words(n, start, device) >> 8).to(torch.float32).mul_(2.0**-24)

    def normal(self, n: int, start: int = 0, device: str | torch.device = "cpu") -> Tensor:
        """Standard normal values by Box and Muller, shape (n,), float32, |value| <= 6.7.

            z[2j], z[2j+1] = r cos(a), r sin(a)   r = sqrt(-2 ln((w[2j] + 1) / 2^32)), a = 2 pi w[2j+1] / 2^32

        log, cos and sin may differ in the last bit between devices: log what a replay needs, or use `signs`.
        """
        _check_range(n, start, 1 << 34, "normal values")
        first = start // 2
        words = self.words(2 * ((start + n + 1) // 2 - first), 2 * first, device).view(-1, 2)
        radius = (words[:, 0] + 1).to(torch.float32).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = (words[:, 1] >> 8).to(torch.float32).mul_(2.0 * math.pi * 2.0**-24)
        out = torch.stack([angle.cos(), angle.sin_()], dim=1).mul_(radius[:, None])
        return out.view(-1)[start - 2 * first :][:n]

    def integers(self, n: int, high: int, start: int = 0, device: str | torch.device = "cpu") -> Tensor:
        """Integers in [0, high), shape (n,), int64: the high word of u32 * high (uneven by high / 2^32).

        Raises InputError unless 1 <= high <= 2**32.
        """
        if not 1 <= high <= 1 << 32:
            raise InputError(f"high must be from 1 to 2**32, got {high}")
        return self.words(n, start, device).mul_(high).bitwise_right_shift_(32).bitwise_and_(0xFFFFFFFF)

    def permutation(self, n: int, device: str | torch.device = "cpu") -> Tensor:
        """A random order of 0 .. n-1, shape (n,), int64: the stable argsort of one 62-bit key per element."""
        return _order(self.words(2 * n, 0, device).view(-1, 2))

    def generator(self, device: str | torch.device = "cpu") -> torch.Generator:
        """A torch generator seeded from this point, for what only this run needs (dropout, label noise).

        Its numbers depend on the device and the torch version, so a log or a replay must not rest on them.
        """
        return torch.Generator(device).manual_seed(self._torch_seed())

    def torch_seeded(self, device: str | torch.device = "cpu") -> "_Seeded":
        """A context in which torch's global generators, of the CPU and of `device`, are seeded from this point.

        For code that cannot be given a generator: the initial weights of modules, and layers like torch's own
        dropout. Afterwards the generators are as before.

        >>> with Noise(1).stream("init").torch_seeded():
        ...     layer = torch.nn.Linear(3, 2)
        """
        return _Seeded(self._torch_seed(), torch.device(device))

    def _torch_seed(self) -> int:
        w0, w1, _, _ = block_of_words(0, (self.substream, self.step, self.stream_id), self.seed)
        return w0 | w1 >> 1 << 32


@lru_cache(maxsize=1024)  # of a few names, which every step asks for
def _stream_id(parent: int, name: str) -> int:
    digest = hashlib.blake2s(parent.to_bytes(4, "little") + name.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


class _Seeded:
    """The context of `Noise.torch_seeded`: a class, and no generator, since every step of a small net enters it."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device

    def __enter__(self) -> None:
        self._before = torch.default_generator.get_state()
        self._on_gpu = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        torch.default_generator.manual_seed(self._seed)
        if self._on_gpu is not None:
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(self._seed)

    def __exit__(self, *error: object) -> None:
        torch.default_generator.set_state(self._before)
        if self._on_gpu is not None:
            torch.cuda.set_rng_state(self._on_gpu, self._device)


def rows_of_signs(points: Sequence[tuple[Noise, int]], rows: Tensor) -> list[Tensor]:
    """Some rows of a matrix of signs at each point, (rows, length), int8: row i begins with element i length.

    Only the blocks of words are drawn that these rows have a part in, of all points by one call.

    Args:
        points: noise of one seed, and the length of a row.
        rows: numbers of rows, (rows,), int64, one or more.

    >>> noise, rows = Noise(0), torch.tensor([3, 1])
    >>> bool((rows_of_signs([(noise, 5)], rows)[0] == noise.signs(20).view(4, 5)[rows]).all())
    True
    """
    most = int(rows.max()) + 1
    for _, length in points:
        _check_range(length * most, 0, 1 << 39, "signs")
    if rows.device.type != "cpu" or sum((length + 254) // 128 for _, length in points) * len(rows) > SOME:
        return [noise.signs(length * most, 0, rows.device).view(most, length)[rows] for noise, length in points]
    numbers, inside, each = [], [], []
    for _, length in points:
        first, rest = np.divmod(rows.numpy() * length, 128)
        inside.append(rest)
        each.append(int(rest.max() + length + 127) // 128)  # blocks for a row
        numbers.append((first[:, None] + np.arange(each[-1])).reshape(-1))
    table = np.array([(noise.substream, noise.step, noise.stream_id) for noise, _ in points], np.uint64)
    counters = table.repeat([len(part) for part in numbers], axis=0).T
    words = these_blocks(
        np.concatenate(numbers).astype(np.uint64), (counters[0], counters[1], counters[2]), points[0][0].seed
    )
    signs, found, at = signs_of(_octets(torch.from_numpy(words).view(-1))).numpy(), [], 0
    for (_, length), rest, count in zip(points, inside, each, strict=True):
        end = at + len(rows) * count * 128
        own, at = signs[at:end].reshape(len(rows), -1), end
        if rest.any():
            own = np.lib.stride_tricks.sliding_window_view(own, length, axis=1)[np.arange(len(rows)), rest]
        found.append(torch.from_numpy(np.ascontiguousarray(own[:, :length])))
    return found


def permutations(points: Sequence[Noise], n: int) -> Tensor:
    """`permutation(n)` at each point, (points, n), int64: of some thousand elements, words by one call cost a third.

    Args:
        points: noise of one seed.
        n: elements, at least 1.

    >>> noise = [Noise(0), Noise(0).at(1)]
    >>> bool((permutations(noise, 7)[1] == noise[1].permutation(7)).all())
    True
    """
    blocks = (2 * n + BLOCK - 1) // BLOCK
    places = np.array([(noise.substream, noise.step, noise.stream_id) for noise in points], np.uint64)
    counters = places.repeat(blocks, axis=0).T
    numbers = np.tile(np.arange(blocks, dtype=np.uint64), len(points))
    words = these_blocks(numbers, (counters[0], counters[1], counters[2]), points[0].seed)
    pairs = torch.from_numpy(words).view(len(points), -1)[:, : 2 * n].reshape(len(points), n, 2)
    return _order(pairs)


def _order(pairs: Tensor) -> Tensor:
    """The order of keys of 62 bits, (..., n), from two words each, (..., n, 2)."""
    return torch.argsort((pairs[..., 0] << 30) | (pairs[..., 1] >> 2), stable=True)


def signs_of(packed: Tensor) -> Tensor:
    """Signs that `Noise.packed_signs` has packed, int8, eight for every byte."""
    if packed.device.type == "cpu":
        signs = np.unpackbits(packed.numpy(), bitorder="little").view(np.int8)
        signs *= 2
        signs -= 1
        return torch.from_numpy(signs)
    each = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[:, None] >> each).bitwise_and_(1).view(torch.int8).mul_(2).sub_(1).view(-1)


def _octets(words: Tensor) -> Tensor:
    """The four bytes of each word, the lowest first, uint8."""
    if words.device.type == "cpu":
        return torch.from_numpy(words.numpy().astype("<u4").view(np.uint8))
    return (words[:, None] >> torch.arange(0, 32, 8, device=words.device)).bitwise_and_(255).to(torch.uint8).view(-1)


def _check_count(name: str, value: int, bits: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << bits:
        raise InputError(f"{name} must be an integer from 0 to 2**{bits} - 1, got {value!r}")


def _check_range(n: int, start: int, limit: int, what: str) -> None:
    if n < 0 or start < 0 or start + n > limit:
        raise InputError(
            f"one point of noise has {what} 0 to {limit - 1} (2**32 blocks), asked for {n} from {start}; "
            "use sub() or stream() for more"
        )
