"""Seeded probes: what is drawn, and that it is drawn without making the rest."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.permutation import permuted
from sidestep.probes import RankOneProbes, SparseProbes

GOLDEN = (
    [0, 0, 1, 1, 2, 2, 2, 3, 3, 3],
    [133703, 215789, 107299, 551987, 890607, 9337, 411974, 929251, 939239, 419236],
    [-1, 1, 1, 1, 1, 1, 1, 1, -1, -1],
)


def dense(probes):
    found = probes.entries()
    out = torch.zeros(probes.count, probes.weights, dtype=torch.int64)
    return out.index_put_((found.probe, found.position), found.sign.long(), accumulate=True)


class TestSparse:
    @given(st.integers(1, 400), st.integers(1, 40), st.floats(0, 1), st.booleans(), st.integers(0, 50))
    @settings(max_examples=100, deadline=None)
    def test_entries_are_in_range_and_no_probe_has_a_weight_twice(self, weights, count, share, exclusive, seed):
        density = max(share, 1 / weights)
        probes = SparseProbes(Noise(seed), weights, count, density, exclusive)
        found = probes.entries()
        assert torch.equal(found.probe, found.probe.sort().values)
        assert torch.equal(found.probe.bincount(minlength=count), probes.non_zeros())
        assert ((found.position >= 0) & (found.position < weights)).all()
        assert (found.sign.abs() == 1).all()
        assert len(set(zip(found.probe.tolist(), found.position.tolist(), strict=True))) == len(found.probe)

    def test_any_range_of_probes_can_be_drawn_alone(self):
        for exclusive in (False, True):
            probes = SparseProbes(Noise(1).at(7), 50, 23, 0.1, exclusive)
            whole = probes.entries()
            parts = [probes.entries(first, last) for first, last in itertools.pairwise([0, 1, 9, 23])]
            for name in ("probe", "position", "sign"):
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))

    def test_the_number_of_non_zeros_is_binomial(self):
        weights, density, count = 30, 0.1, 200_000
        seen = SparseProbes(Noise(0), weights, count, density).non_zeros().bincount(minlength=weights + 1)
        expected = (
            torch.tensor(
                [math.comb(weights, n) * density**n * (1 - density) ** (weights - n) for n in range(weights + 1)]
            )
            * count
        )
        likely = expected > 20
        chi = ((seen - expected).square() / expected)[likely].sum()
        assert chi < 2 * likely.sum() + 10
        assert seen[~likely].sum() < 60

    def test_places_are_uniform_and_signs_fair_also_in_pairs(self):
        found = dense(SparseProbes(Noise(2), 12, 60_000, 0.25))
        chance = found.abs().double().mean(dim=0)
        assert (chance - 0.25).abs().max() < 0.01
        assert found.double().mean(dim=0).abs().max() < 0.01
        both = found.abs().double().T @ found.abs().double() / len(found)
        both.fill_diagonal_(0.25**2)
        assert (both - 0.25**2).abs().max() < 0.006  # independent, as Bernoulli draws are
        signs = found.double().T @ found.double() / len(found)
        signs.fill_diagonal_(0)
        assert signs.abs().max() < 0.006

    def test_an_exclusive_draw_uses_every_weight_once_before_any_twice(self):
        probes = SparseProbes(Noise(3), 40, 20, 0.1, exclusive=True)  # 80 non-zeros: two laps
        found = probes.entries()
        assert found.position[:40].sort().values.tolist() == list(range(40))
        assert found.position[40:].sort().values.tolist() == list(range(40))
        assert found.position[:40].tolist() != found.position[40:].tolist()

    def test_at_density_one_over_d_a_third_is_empty_unless_exclusive(self):
        sizes = SparseProbes(Noise(4), 1000, 20_000, 0.001).non_zeros()
        assert (sizes == 0).double().mean().item() == pytest.approx(math.exp(-1), abs=0.012)
        assert (SparseProbes(Noise(4), 1000, 500, 0.001, exclusive=True).non_zeros() == 1).all()

    def test_the_weighted_sum_is_that_of_the_dense_probes(self):
        for exclusive in (False, True):
            probes = SparseProbes(Noise(5), 30, 17, 0.2, exclusive)
            coefs = Noise(6).integers(17, 3) - 1
            position, value = probes.weighted_sum(coefs)
            expected = coefs @ dense(probes)
            out = torch.zeros(30, dtype=torch.int64)
            out[position] = value
            assert torch.equal(out, expected)
            assert torch.equal(position, expected.nonzero()[:, 0])

    def test_sums_in_chunks_are_the_same(self, monkeypatch):
        sparse, rank_one = SparseProbes(Noise(5), 300, 40, 0.2), RankOneProbes(Noise(5), ((6, 9), (4, 3)), 40)
        coefs = Noise(6).integers(40, 3) - 1
        whole = [probes.weighted_sum(coefs) for probes in (sparse, rank_one)]
        monkeypatch.setattr("sidestep.probes._CHUNK", 150)
        for (position, value), probes in zip(whole, (sparse, rank_one), strict=True):
            again = probes.weighted_sum(coefs)
            assert torch.equal(position, again[0])
            assert torch.equal(value, again[1])

    @pytest.mark.parametrize("capability", ["AVX512", "DEFAULT"])
    @pytest.mark.parametrize("zeros", [False, True])
    def test_rank_one_sums_are_those_of_their_factors(self, capability, zeros, monkeypatch):
        if torch.backends.cpu.get_cpu_capability() != "AVX512" and capability == "AVX512":
            pytest.skip("the product of bytes is for AVX-512")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        probes = RankOneProbes(Noise(5).at(2), ((40, 300), (128, 10), (1, 400), (3, 1), (2, 257)), 70)
        coefs = (Noise(6).integers(70, 3) - 1) * (not zeros)
        sums = list(probes.layer_sums(coefs.to(torch.int8)))
        for layer, found in enumerate(sums):
            rows, columns = probes.factors(layer)
            assert torch.equal(found.long(), (rows.long() * coefs[:, None]).T @ columns.long())
        (last,) = probes.layer_sums(coefs, [4])
        assert torch.equal(last, sums[4])

    def test_steps_and_streams_give_other_probes(self):
        a, b = (SparseProbes(Noise(0).at(step), 1000, 5, 0.01).entries().position for step in (0, 1))
        assert a.tolist() != b.tolist()

    def test_these_positions_never_change(self):
        found = SparseProbes(Noise(11).stream("probes").at(3), 1_000_003, 4, 2e-6).entries()
        golden = (found.probe.tolist(), found.position.tolist(), found.sign.tolist())
        assert golden == GOLDEN

    @pytest.mark.parametrize("density", [0.0, -0.1, 1.1, 0.009, float("nan")])
    def test_densities_that_cannot_work_name_the_smallest_useful_one(self, density):
        with pytest.raises(InputError, match=r"1/d = 0.01"):
            SparseProbes(Noise(0), 100, 4, density)

    @pytest.mark.parametrize("count", [0, -1, 1 << 32])
    def test_counts_that_cannot_work_are_refused(self, count):
        with pytest.raises(InputError, match="probes"):
            SparseProbes(Noise(0), 100, count, 0.5)
        with pytest.raises(InputError, match="probes"):
            RankOneProbes(Noise(0), ((2, 3),), count)

    def test_coefficients_of_another_number_are_refused(self):
        with pytest.raises(InputError, match="there are 4 probes"):
            SparseProbes(Noise(0), 100, 4, 0.5).weighted_sum(torch.ones(3))


class TestRankOne:
    def test_the_weighted_sum_is_that_of_the_outer_products(self):
        probes = RankOneProbes(Noise(0), ((3, 4), (2, 5)), 6)
        coefs = torch.tensor([1, -1, 0, 1, 1, 0])
        position, value = probes.weighted_sum(coefs)
        out = torch.zeros(22, dtype=torch.int64)
        out[position] = value
        layers = [probes.factors(layer) for layer in range(2)]
        expected = torch.cat([torch.einsum("k,kr,kc->rc", coefs, a.long(), b.long()).flatten() for a, b in layers])
        assert torch.equal(out, expected)

    def test_layers_of_one_shape_do_not_share_noise(self):
        probes = RankOneProbes(Noise(0), ((8, 8), (8, 8)), 6)
        assert not torch.equal(probes.factors(0)[0], probes.factors(1)[0])
        assert not torch.equal(probes.factors(0)[0], probes.factors(0)[1])

    def test_outer_products_are_white(self):
        """E nu nu^T is the identity, so that `E alpha nu` is the gradient."""
        left, right = RankOneProbes(Noise(1), ((3, 2),), 40_000).factors(0)
        nu = (left[:, :, None] * right[:, None, :]).flatten(1).double()
        torch.testing.assert_close(nu.T @ nu / len(nu), torch.eye(6).double(), atol=0.02, rtol=0)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (5, 7), (3000, 668_672), (3000, 2**34)])
def test_numpy_and_torch_permute_alike(count, size, monkeypatch):
    index, lap = torch.arange(count) % size, torch.arange(count) // 16
    by_numpy = permuted(index, lap, size, Noise(3))
    monkeypatch.setattr("sidestep.permutation.FEW", -1)
    assert torch.equal(permuted(index, lap, size, Noise(3)), by_numpy)
    assert by_numpy.dtype == torch.int64
