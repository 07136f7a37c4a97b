"""How the estimates of several ranks become one, and where an update stands and what it weighs."""

import itertools
from dataclasses import replace

import pytest
import torch

from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.probes import DenseProbes, SparseProbes
from sidestep.update import Dense, Flips, Seeded, combined

NOISE = Noise(5).stream("ranks")
PROBES = SparseProbes(Noise(3).at(7), 100, 16, 0.1)
DIRECTIONS = DenseProbes(Noise(3).at(7), (("weight", (4, 25)),), 16)
each_kind_of_probes = pytest.mark.parametrize("probes", [PROBES, DIRECTIONS], ids=["sparse", "dense"])


def normal(rank, *shape, dtype=torch.float32):
    values = NOISE.sub(rank).normal(int(torch.Size(shape).numel())).view(shape)
    return values.to(dtype)


def dense(rank, names=("weight", "bias")):
    gradients = {name: normal(10 * rank + place, 3, 2) for place, name in enumerate(names)}
    statistics = {"mean": normal(100 + rank, 4), "steps": torch.tensor(8)}
    return Dense(gradients, statistics, {"loss": torch.tensor(float(rank))})


def seeded(rank, probes=PROBES):
    return Seeded(normal(rank, 16), probes, {"mean": normal(100 + rank, 4)}, {"loss": torch.tensor(float(rank))})


def orders(updates):
    return [combined(list(order)) for order in itertools.permutations(updates)]


class TestMean:
    def test_gradients_real_statistics_and_losses_are_the_mean_in_float64(self):
        ranks = [dense(rank) for rank in range(4)]
        found = combined(ranks)
        assert found.combination == "mean"
        for kind, names in (("gradients", ("weight", "bias")), ("statistics", ("mean",)), ("losses", ("loss",))):
            for name in names:
                values = [getattr(rank, kind)[name] for rank in ranks]
                wanted = torch.stack([value.double() for value in values]).sum(0) / 4
                assert getattr(found, kind)[name].dtype == torch.float32
                assert torch.equal(getattr(found, kind)[name], wanted.float()), name

    def test_it_is_the_gradient_of_the_whole_batch(self):
        """Of shares that are equally large, for a loss that is a mean over examples."""
        weights = normal(0, 3, dtype=torch.float64).requires_grad_()
        inputs, wanted = normal(1, 12, 3, dtype=torch.float64), normal(2, 12, dtype=torch.float64)

        def gradient(share):
            loss = (inputs[share] @ weights - wanted[share]).square().mean()
            return Dense({"weight": torch.autograd.grad(loss, weights)[0]})

        whole = gradient(slice(0, 12)).gradients["weight"]
        ranks = [gradient(slice(at, at + 3)) for at in (0, 3, 6, 9)]
        torch.testing.assert_close(combined(ranks).gradients["weight"], whole, rtol=1e-12, atol=1e-14)

    def test_small_terms_are_not_lost_in_half_precision(self):
        values = [torch.tensor([1.0], dtype=torch.bfloat16)] + [torch.tensor([1e-3], dtype=torch.bfloat16)] * 31
        found = combined([Dense({"weight": value}) for value in values]).gradients["weight"]
        wanted = sum(float(value) for value in values) / 32
        assert found.dtype == torch.bfloat16
        assert float(found) == float(torch.tensor(wanted, dtype=torch.bfloat16))

    def test_equal_statistics_stay_as_they_are_to_the_bit(self):
        third = {"mean": torch.full((4,), 0.1, dtype=torch.float64)}
        found = combined([Dense({}, third)] * 3)
        assert torch.equal(found.statistics["mean"], third["mean"])

    def test_one_rank_alone_changes_nothing(self):
        alone = dense(1)
        found = combined([alone])
        assert all(torch.equal(found.gradients[name], alone.gradients[name]) for name in alone.gradients)

    @pytest.mark.parametrize(
        ("other", "words"),
        [
            (dense(1, ("weight",)), "gradients of the ranks differ in name or shape: bias"),
            (replace(dense(1), gradients={"weight": torch.ones(3, 2), "bias": torch.ones(2)}), "shape: bias"),
            (replace(dense(1), statistics={}), "statistics of the ranks differ"),
            (
                replace(dense(1), statistics={"mean": torch.ones(4), "steps": torch.tensor(9)}),
                "steps of the statistics",
            ),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, other, words):
        with pytest.raises(InputError, match=words):
            combined([dense(0), other])


class TestMerge:
    def parts(self):
        def part(unit):
            losses = {f"{unit}: loss": normal(7)}
            return Dense({f"{unit}.weight": normal(unit, 2)}, {f"{unit}.mean": normal(9, 1)}, losses, "merge")

        return [part(unit) for unit in range(3)]

    def test_the_units_stand_side_by_side(self):
        parts = self.parts()
        found = combined(parts)
        assert found.combination == "merge"  # some of the units, perhaps
        for kind in ("gradients", "statistics", "losses"):
            wanted = {name: value for part in parts for name, value in getattr(part, kind).items()}
            assert getattr(found, kind) == wanted
            assert list(getattr(found, kind)) == list(wanted)

    def test_merging_in_two_stages_is_merging_at_once(self):
        parts = self.parts()
        assert combined([combined(parts[:2]), parts[2]]) == combined(parts)

    def test_no_part_is_written_into(self):
        parts = self.parts()
        combined(parts)
        assert [len(part.gradients) for part in parts] == [1, 1, 1]

    @pytest.mark.parametrize("kind", ["gradients", "statistics", "losses"])
    def test_the_same_name_in_two_units_is_refused(self, kind):
        first, second, _ = self.parts()
        twice = replace(second, **{kind: getattr(first, kind)})
        with pytest.raises(InputError, match=f"the {kind} of two units have the same names: 0"):
            combined([first, twice])


class TestSum:
    @each_kind_of_probes
    def test_ranks_with_other_probes_of_one_step_make_the_whole_to_the_bit(self, probes):
        """Each takes some of them, and has 0 elsewhere."""
        whole = seeded(0, probes)
        taken = torch.arange(16) % 3
        ranks = [replace(whole, coefs=torch.where(taken == rank, whole.coefs, 0.0)) for rank in range(3)]
        for found in orders(ranks):
            assert torch.equal(found.coefs, whole.coefs)
            assert found.probes == probes
            assert torch.equal(found.statistics["mean"], whole.statistics["mean"])

    @each_kind_of_probes
    def test_the_order_of_the_ranks_does_not_count(self, probes):
        ranks = [replace(seeded(rank, probes), coefs=normal(rank, 16) * 10.0 ** (6 * rank)) for rank in range(4)]
        first, *others = orders(ranks)
        assert all(torch.equal(found.coefs, first.coefs) for found in others)

    def test_what_cancels_leaves_the_small_term(self):
        ranks = [replace(seeded(0), coefs=torch.full((16,), value)) for value in (1e30, 1.5, -1e30)]
        assert all((found.coefs == 1.5).all() for found in orders(ranks))

    def test_a_coefficient_that_is_not_finite_stays_so(self):
        broken = replace(seeded(0), coefs=torch.tensor([torch.inf, torch.nan, *[0.0] * 14]))
        found = combined([broken, replace(broken, coefs=-broken.coefs)]).coefs
        assert not found[:2].isfinite().any()
        assert (found[2:] == 0).all()

    @pytest.mark.parametrize(
        "other",
        [
            replace(PROBES, noise=Noise(3).at(8)),
            replace(PROBES, noise=Noise(4).at(7)),
            replace(PROBES, density=0.2),
            replace(PROBES, count=17),
            DIRECTIONS,
        ],
    )
    def test_coefficients_of_other_probes_are_refused(self, other):
        with pytest.raises(InputError, match="belong to others"):
            combined([seeded(0), replace(seeded(1), probes=other)])

    @pytest.mark.parametrize("decided", [{"coefs": torch.ones(16, dtype=torch.int8)}, {"rate": 0.1}])
    def test_what_was_decided_is_refused(self, decided):
        with pytest.raises(InputError, match="before decide"):
            combined([seeded(0), replace(seeded(0), **decided)])


FLIPS = Flips(torch.tensor([1]), torch.tensor([1], dtype=torch.int8), {"mean": normal(1, 2)})


def test_flips_are_not_combined():
    with pytest.raises(InputError, match="decided after the exchange"):
        combined([FLIPS, FLIPS])


@pytest.mark.parametrize(
    ("updates", "found"),
    [
        ([], "none"),
        ([dense(0), seeded(0)], r"Dense \(mean\), Seeded \(sum\)"),
        ([dense(0), replace(dense(1), combination="merge")], r"Dense \(mean\), Dense \(merge\)"),
    ],
)
def test_several_kinds_are_refused(updates, found):
    with pytest.raises(InputError, match=f"one kind, got {found}"):
        combined(updates)


@pytest.mark.parametrize("update", [dense(0), seeded(0), FLIPS])
def test_every_tensor_moves_to_a_device(update):
    moved = update.to("meta")
    assert type(moved) is type(update)
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    tensors += [v for value in vars(moved).values() if isinstance(value, dict) for v in value.values()]
    assert len(tensors) >= 3
    assert all(tensor.device.type == "meta" for tensor in tensors)
