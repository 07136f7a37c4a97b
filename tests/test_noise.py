"""Noise: held to a plain Philox, to the published known answers, and to the moments it claims to have."""

import contextlib
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from sidestep import philox as philox_module
from sidestep.errors import InputError
from sidestep.nets import dropout_masks
from sidestep.nets.dropout_masks import dropout_mask
from sidestep.noise import Noise, rows_of_signs
from tests.reference import philox

KNOWN_ANSWERS = [  # Random123: counter, key, words
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
MANY = 200_000
POINT = Noise(20).stream("test").sub(4).at(9)
quick = hypothesis.settings(deadline=None, max_examples=60)
word32 = st.integers(0, 2**32 - 1)


def numbers(text: str) -> list[int]:
    return [int(part, 16) for part in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    (block, substream, step, stream), (low, high) = numbers(counter), numbers(key)
    point = Noise(low | high << 32, stream, substream, step)
    assert point.words(4, start=4 * block).tolist() == numbers(answer)
    assert list(philox.philox4x32((block, substream, step, stream), (low, high))) == numbers(answer)


@quick
@hypothesis.given(st.integers(0, 2**64 - 1), word32, word32, word32, st.integers(0, 2**34 - 20), st.integers(0, 20))
def test_words_equal_the_plain_reference(seed: int, stream: int, substream: int, step: int, start: int, n: int) -> None:
    got = Noise(seed, stream, substream, step).words(n, start)
    assert got.dtype == torch.int64
    assert got.tolist() == philox.words(seed, stream, substream, step, n, start)


@pytest.mark.parametrize("blocks", [0, 1, philox_module.FEW, philox_module.FEW + 1, 1000, philox_module.SOME + 3])
@pytest.mark.parametrize("first", [0, 2**32 - 40_000])
def test_python_numpy_and_torch_give_the_same_words(blocks: int, first: int) -> None:
    counters, seed = (2**32 - 1, 9, 2**31 + 5), 2**64 - 3
    words = philox_module.blocks_of_words(first, blocks, counters, seed, "cpu")
    by_torch = philox_module._by_torch(first, blocks, counters, seed, torch.device("cpu"))
    by_numpy = torch.from_numpy(
        philox_module._by_numpy(np.arange(first, first + blocks, dtype=np.uint64), counters, seed)
    )
    assert words.shape == (blocks, 4)
    assert words.dtype == by_torch.dtype == by_numpy.dtype == torch.int64
    assert torch.equal(words, by_torch)
    assert torch.equal(by_numpy, by_torch)
    for index in range(0, blocks, max(1, blocks // 3)):
        assert philox_module.block_of_words(first + index, counters, seed) == tuple(words[index].tolist())


DRAWS = {
    "words": lambda n, start: POINT.words(n, start),
    "signs": lambda n, start: POINT.signs(n, start),
    "sparse_signs": lambda n, start: POINT.sparse_signs(n, 0.3, start),
    "uniform": lambda n, start: POINT.uniform(n, start),
    "normal": lambda n, start: POINT.normal(n, start),
    "integers": lambda n, start: POINT.integers(n, 1000, start),
}


@quick
@pytest.mark.parametrize("kind", DRAWS)
@hypothesis.given(first=st.integers(0, 90), second=st.integers(0, 90), start=st.integers(0, 10_000))
def test_any_sharding_concatenates_to_the_whole(kind: str, first: int, second: int, start: int) -> None:
    draw = DRAWS[kind]
    whole = draw(first + second, start)
    parts = torch.cat([draw(first, start), draw(second, start + first)])
    assert whole.shape == (first + second,)
    if kind == "normal":  # vectorised log and cos may round the tail of a tensor differently
        torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(whole, parts)


def test_chunks_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = POINT.words(1001, start=3)
    monkeypatch.setattr(philox_module, "_chunk_blocks", lambda device: 7)
    monkeypatch.setattr(philox_module, "SOME", 0)
    assert torch.equal(POINT.words(1001, start=3), whole)


def test_signs_are_the_bits_of_the_words() -> None:
    words = POINT.words(5).tolist()
    expected = [2 * (words[i // 32] >> (i % 32) & 1) - 1 for i in range(150)]
    assert POINT.signs(150).tolist() == expected


def test_integers_are_the_high_word_of_the_product() -> None:
    for high in (1, 10, 60_000, 2**31 + 5, 2**32):
        assert POINT.integers(50, high).tolist() == [word * high >> 32 for word in POINT.words(50).tolist()]


def test_moments() -> None:
    """With 200,000 draws the standard error of a mean of unit variance is .0022; bounds are five of those."""
    bound = 5 / math.sqrt(MANY)
    signs, uniform, normal = POINT.signs(MANY).double(), POINT.uniform(MANY), POINT.normal(MANY).double()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < bound
    assert abs((signs[1:] * signs[:-1]).mean()) < bound
    assert uniform.dtype == torch.float32
    assert 0.0 <= uniform.min() < 1e-4
    assert 1 - 1e-4 < uniform.max() < 1.0
    assert abs(uniform.double().mean() - 0.5) < bound * math.sqrt(1 / 12)
    assert abs(uniform.double().var() - 1 / 12) < bound * math.sqrt(1 / 180)
    assert normal.isfinite().all()
    assert abs(normal.mean()) < bound
    assert abs(normal.var() - 1.0) < bound * math.sqrt(2)
    assert abs(normal.pow(4).mean() - 3.0) < bound * math.sqrt(96)
    assert abs((normal[0::2] * normal[1::2]).mean()) < 2 * bound  # the two values of a pair
    assert abs((normal.abs() > 2).double().mean() - 0.0455) < bound * 0.21


@pytest.mark.parametrize("density", [1.0, 0.5, 0.01])
def test_sparse_signs_have_their_density_and_are_fair(density: float) -> None:
    signs = POINT.sparse_signs(MANY, density)
    assert signs.dtype == torch.int8
    assert set(signs.unique().tolist()) <= {-1, 0, 1}
    count = signs.count_nonzero().item()
    assert abs(count - MANY * density) <= 5 * math.sqrt(MANY * density * (1 - density))
    assert abs(signs.sum(dtype=torch.int64).item()) < 5 * math.sqrt(MANY * density)
    threshold = math.floor(density * 2**32)
    kept = POINT.words(MANY) < threshold
    assert torch.equal(signs, POINT.stream("sign").signs(MANY) * kept)


def test_smallest_density() -> None:
    assert POINT.sparse_signs(1000, 2.0**-32).count_nonzero() == 0


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, 1e-11, float("nan")])
def test_bad_density(density: float) -> None:
    with pytest.raises(InputError, match=r"density must be in \(0, 1\]"):
        POINT.sparse_signs(5, density)


def test_points_do_not_share_noise() -> None:
    base = Noise(0)
    points = [
        base, Noise(1), Noise(2**32), base.stream("a"), base.stream("b"), base.stream("a").stream("b"),
        base.stream("b").stream("a"), base.stream("ab"), base.stream(""), base.sub(1), base.sub(2),
        base.at(1), base.at(2), base.stream("a").sub(1), base.stream("a").at(1), base.sub(1).at(2),
        base.sub(2).at(1),
    ]  # fmt: skip
    draws = torch.stack([point.signs(4096).double() for point in points])
    correlations = draws @ draws.T / 4096 - torch.eye(len(points))
    assert correlations.abs().max() < 5 / math.sqrt(4096)


def test_order_of_stream_sub_and_at_and_value_semantics() -> None:
    assert POINT == Noise(20).stream("test").at(9).sub(4) == Noise(20).sub(1).at(9).sub(4).stream("test")
    assert hash(POINT) == hash(Noise(20).stream("test").at(9).sub(4))
    assert Noise(0).stream("init").stream_id == 2377112854  # a stable hash: changing it breaks every log


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_is_one(n: int) -> None:
    order = POINT.permutation(n)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(n))
    keys = [a << 30 | b >> 2 for a, b in zip(*[iter(POINT.words(2 * n).tolist())] * 2, strict=True)]
    assert order.tolist() == sorted(range(n), key=keys.__getitem__)


def test_permutations_are_fair() -> None:
    """Each of the 24 orders of four elements, 2,400 draws: chi square with 23 degrees of freedom."""
    weights = torch.tensor([64, 16, 4, 1])
    codes = torch.stack([(Noise(3).at(step).permutation(4) * weights).sum() for step in range(2400)])
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert (counts - 100).square().sum() / 100 < 60


def test_integers_are_fair() -> None:
    counts = POINT.integers(100_000, 10).bincount(minlength=10)
    assert len(counts) == 10
    assert (counts - 10_000).square().sum() / 10_000 < 35


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "7"])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(InputError, match="seed must be an integer"):
        Noise(seed)  # type: ignore[arg-type]


def test_bad_points_and_ranges() -> None:
    for make in (lambda: Noise(0).sub(2**32), lambda: Noise(0).at(-1), lambda: Noise(0).at(2**32)):
        with pytest.raises(InputError, match=r"must be an integer from 0 to 2\*\*32 - 1"):
            make()
    for draw in DRAWS.values():
        for n, start in ((-1, 0), (1, -1), (2**42, 0), (1, 2**40)):
            with pytest.raises(InputError, match="one point of noise has"):
                draw(n, start)
    with pytest.raises(InputError, match="one point of noise has"):
        POINT.permutation(-1)
    with pytest.raises(InputError, match="high must be from 1"):
        POINT.integers(3, 0)


def interrupted_layer() -> torch.Tensor:
    with contextlib.suppress(KeyError), POINT.torch_seeded():
        weight = torch.nn.Linear(5, 5).weight
        raise KeyError
    return weight


def test_generator_and_torch_seeded_repeat_and_leave_torch_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    draws = [torch.rand(3, generator=point.generator()) for point in (POINT, POINT, POINT.at(10))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with POINT.torch_seeded():
        first = torch.nn.Linear(5, 5).weight
    second = interrupted_layer()
    with POINT.sub(8).torch_seeded():
        third = torch.nn.Linear(5, 5).weight
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.5, 0.9, 0.99])
def test_dropout_mask_rate_scale_and_mean(rate: float, dtype: torch.dtype) -> None:
    n = 400_000
    mask = dropout_mask((n,), rate, POINT.generator(), dtype)
    assert mask.dtype == dtype
    scale = mask.max().item()
    keep = mask.count_nonzero().item() / n
    assert set(mask.unique().tolist()) <= {0.0, scale}
    exact = round(65536 / scale) / 65536  # the chance that the threshold gives
    assert abs(exact * scale - 1.0) <= scale / 65536 / 2 + 1e-6
    assert abs(exact - (1 - rate)) <= (1 - rate) * torch.finfo(dtype).eps + 1 / 65536
    assert abs(keep - exact) <= 5 * math.sqrt(exact * (1 - exact) / n)


def test_dropout_mask_of_half_is_exact_and_rate_one_third_too() -> None:
    assert dropout_mask((64,), 0.5, POINT.generator()).max() == 2.0
    assert dropout_masks._keep_and_scale(1 / 3, torch.float64) == (43691, 65536 / 43691)


def test_dropout_mask_in_bfloat16_has_mean_one() -> None:
    """At a rate of .1 the scale rounds to 1.109375; if the threshold did not follow, the mean was .998."""
    n = 8_000_000
    mask = dropout_mask((n,), 0.1, POINT.generator(), torch.bfloat16)
    assert mask.max() == 1.109375
    assert abs(mask.count_nonzero().item() / n * 1.109375 - 1) < 5 * math.sqrt(0.11 / n)


def test_dropout_mask_rows_differ_and_repeat_with_the_seed() -> None:
    masks = dropout_mask((500, 3, 7, 7), 0.5, POINT.generator())
    assert masks.shape == (500, 3, 7, 7)
    assert len(masks.flatten(1).unique(dim=0)) == 500
    assert torch.equal(masks, dropout_mask((500, 3, 7, 7), 0.5, POINT.generator()))
    generator = POINT.generator()
    first, second = (dropout_mask((100, 64), 0.5, generator) for _ in range(2))
    assert len(torch.cat([first, second]).unique(dim=0)) == 200
    correlation = ((first - 1) * (second - 1)).mean()
    assert abs(correlation) < 5 / math.sqrt(6400)
    assert dropout_mask((0, 3), 0.5, generator).shape == (0, 3)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), 1 - 1e-9])
def test_bad_dropout_rate(rate: float) -> None:
    with pytest.raises(InputError, match="dropout rate must be in"):
        dropout_mask((3,), rate, POINT.generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_same_words() -> None:
    assert torch.equal(POINT.words(100_000, 3, "cuda").cpu(), POINT.words(100_000, 3))
    assert torch.equal(POINT.signs(100_000, 3, "cuda").cpu(), POINT.signs(100_000, 3))
    assert torch.equal(POINT.sparse_signs(100_000, 0.1, 3, "cuda").cpu(), POINT.sparse_signs(100_000, 0.1, 3))
    assert torch.equal(POINT.permutation(10_000, "cuda").cpu(), POINT.permutation(10_000))
    torch.testing.assert_close(POINT.normal(10_000, 0, "cuda").cpu(), POINT.normal(10_000), rtol=1e-4, atol=1e-5)
    assert dropout_mask((10,), 0.5, POINT.generator("cuda")).is_cuda


@pytest.mark.parametrize("lengths", [(128,), (784, 512, 10), (1, 127, 129), (5000,)])
def test_some_rows_of_signs_are_those_of_all(lengths):
    rows = torch.tensor([0, 3, 4, 17, 90])
    points = [(Noise(2).stream(str(length)).sub(place).at(7), length) for place, length in enumerate(lengths)]
    for (noise, length), found in zip(points, rows_of_signs(points, rows), strict=True):
        assert torch.equal(found, noise.signs(91 * length).view(91, length)[rows])
        found.mul_(2)  # its own memory
