"""Alignments: the engine against torch.func.jvp one probe after another, finite differences, and autograd."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sidestep.errors import InputError, NonFiniteError
from sidestep.gradients.tangents import alignments as tangents
from sidestep.gradients.tangents import chain as tangent_chain
from sidestep.gradients.tangents import columns as tangent_columns
from sidestep.gradients.tangents.alignments import alignments
from sidestep.measure import peak_allocation
from sidestep.nets.ternary.convert import ternarize
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.noise import Noise
from sidestep.probes import Entries, RankOneProbes, SparseProbes
from tests.reference.noise_step_plain import plain_alignments, plain_step, plain_trits

BATCH = 9


@dataclass
class GivenProbes:
    """Rows of a matrix (probes, weights) as probes."""

    rows: torch.Tensor

    @property
    def count(self):
        return len(self.rows)

    @property
    def weights(self):
        return self.rows.shape[1]

    @property
    def density(self):
        return self.rows.count_nonzero().item() / self.rows.numel()

    def entries(self, first=0, last=None, device="cpu"):
        probe, position = self.rows[first:last].nonzero(as_tuple=True)
        return Entries(probe + first, position, self.rows[first:last][probe, position].to(torch.int8))


def mlp(hidden, norm=True, bias=True, width=24, features=20, classes=5):
    modules, sizes = [nn.Flatten()], [features, *[width + 2 * index for index in range(hidden)]]
    for before, after in itertools.pairwise(sizes):
        modules += [nn.Linear(before, after, bias=bias), *([nn.LayerNorm(after)] if norm else []), nn.ReLU()]
    return ternarize(nn.Sequential(*modules, nn.Linear(sizes[-1], classes, bias=bias)), Noise(hidden))


def count_of(net):
    return sum(parameter.numel() for parameter in ternary_parameters(net).values())


def batch_for(features=(20,), classes=5, dtype=torch.float64, batch=BATCH):
    inputs = Noise(7).normal(batch * math.prod(features)).view(batch, *features).to(dtype)
    return inputs, Noise(8).integers(batch, classes)


def sparse(net, count=12, density=0.1, exclusive=False):
    weights = count_of(net)
    return SparseProbes(Noise(3), weights, count, max(density, 1 / weights), exclusive)


def rank_one(net, count=12):
    shapes = tuple((weight.shape[0], weight[0].numel()) for weight in ternary_parameters(net).values())
    return RankOneProbes(Noise(4), shapes, count)


def written_out(net, probes):
    """The probes as rows (K, weights), made one after another by `weighted_sum`, or from given rows."""
    if isinstance(probes, GivenProbes):
        return probes.rows
    rows = torch.zeros(probes.count, count_of(net), dtype=torch.int64)
    for index, row in enumerate(rows):
        position, value = probes.weighted_sum((torch.arange(probes.count) == index).to(torch.int64))
        row[position] = value
    return rows


def assert_equal_alphas(found, wanted, tolerance=1e-10):
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    scale = wanted.abs().max()
    assert scale > 0
    assert (found - wanted).abs().max() <= tolerance * scale


def check_against_plain(net, inputs, labels, probes, **given):
    alpha, loss = alignments(net, inputs, labels, probes, **given)
    wanted, wanted_loss = plain_alignments(net, inputs, labels, written_out(net, probes))
    assert_equal_alphas(alpha, wanted)
    assert loss.shape == ()
    assert torch.allclose(loss, wanted_loss, rtol=1e-12, atol=0)


COSTS = {"columns": (0.0, 1.0), "tangents": (1.0, 0.0)}  # of single non-zeros and of whole tangents


@pytest.fixture(params=COSTS)
def path(request, monkeypatch):
    """Send sparse probes both ways, whatever would be faster."""
    monkeypatch.setattr(tangents, "columns_cost", lambda *_: COSTS[request.param])
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("hidden", [0, 1, 2, 3, 4])
def test_sparse_probes_of_every_density_in_chains(hidden, norm, bias, monkeypatch):
    net, (inputs, labels) = mlp(hidden, norm, bias), batch_for()
    for density in (0.0, 16 / count_of(net), 0.1):
        probes = sparse(net, density=density)
        wanted, wanted_loss = plain_alignments(net, inputs, labels, written_out(net, probes))
        for kind, dense_above in (("columns", 2.0), ("tangents", 2.0), ("tangents", 0.0)):
            monkeypatch.setattr(tangents, "columns_cost", lambda *_, kind=kind: COSTS[kind])
            monkeypatch.setattr(tangent_chain, "DENSE_ABOVE", dense_above)
            alpha, loss = alignments(net, inputs, labels, probes)
            assert_equal_alphas(alpha, wanted)
            assert torch.allclose(loss, wanted_loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("hidden", [0, 1, 2, 3])
def test_rank_one_probes_in_chains(hidden, norm):
    net, (inputs, labels) = mlp(hidden, norm), batch_for()
    check_against_plain(net, inputs, labels, rank_one(net))


@pytest.mark.parametrize("order", [[nn.ReLU, "norm"], ["norm"], [nn.Identity], ["norm", nn.ReLU, "norm", nn.ReLU]])
def test_bends_in_any_order_also_at_both_ends(order, path):
    def bends(units):
        return [nn.LayerNorm(units) if kind == "norm" else kind() for kind in order]

    parts = [*bends(20), nn.Linear(20, 24), *bends(24), nn.Linear(24, 16), nn.Sequential(*bends(16), nn.Linear(16, 5))]
    net, (inputs, labels) = ternarize(nn.Sequential(*parts, *bends(5)), Noise(2)), batch_for()
    check_against_plain(net, inputs, labels, sparse(net, density=0.02))
    check_against_plain(net, inputs, labels, rank_one(net, 10))


class Own(nn.Module):
    """A module of the user's that says what it is a chain of; its parameters are in another order than they work."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(12, 5)
        self.first = nn.Sequential(nn.Linear(20, 12), nn.ReLU())

    def chain(self):
        return [self.first, self.last]

    def forward(self, inputs):
        return self.last(self.first(inputs))


class Residual(Own):
    """Not a chain, so that the general engine has to do."""

    chain = None

    def forward(self, inputs):
        hidden = self.first(inputs)
        return self.last(hidden + torch.tanh(hidden))


@pytest.mark.parametrize("kind", [Own, Residual])
def test_modules_of_the_users(kind):
    net, (inputs, labels) = ternarize(kind(), Noise(5)), batch_for()
    check_against_plain(net, inputs, labels, sparse(net, density=0.02))
    check_against_plain(net, inputs, labels, rank_one(net))


def convolutions():
    return ternarize(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(12, 5),
        ),
        Noise(6),
    )  # fmt: skip


@pytest.mark.parametrize("vmap_fails", [False, True])
def test_convolutional_nets_also_where_vmap_fails(vmap_fails, monkeypatch):
    def refuse(_):
        raise RuntimeError("vmap: no such operation")

    net, (inputs, labels) = convolutions(), batch_for((3, 12, 12))
    probes = (sparse(net, 12), rank_one(net, 12))
    wanted = [plain_alignments(net, inputs, labels, written_out(net, some))[0] for some in probes]
    if vmap_fails:
        monkeypatch.setattr(tangents, "vmap", lambda function: refuse)
    for some, alpha in zip(probes, wanted, strict=True):
        assert_equal_alphas(alignments(net, inputs, labels, some)[0], alpha)


def test_embeddings_and_a_loss_of_ones_own():
    net = ternarize(nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(24, 3)), Noise(1))
    inputs, labels = Noise(7).integers(BATCH * 4, 11).view(BATCH, 4), batch_for(classes=3)[1]
    probes = sparse(net, 12)
    alpha, loss = alignments(net, inputs, labels, probes)
    weights = {name: weight.float() for name, weight in ternary_parameters(net).items()}

    def value(changed):
        return F.cross_entropy(torch.func.functional_call(net, changed, (inputs,)), labels)

    flat = torch.cat([gradient.flatten() for gradient in torch.func.grad(value)(weights).values()])
    assert_equal_alphas(alpha, written_out(net, probes).float() @ flat, 1e-5)
    assert torch.allclose(loss, value(weights))


@pytest.mark.parametrize("hidden", [1, 3])
def test_a_loss_of_ones_own_in_a_chain(hidden, path):
    def squares(logits, labels):
        return ((logits - F.one_hot(labels, 5)) ** 2).mean()

    net, (inputs, labels) = mlp(hidden), batch_for()
    probes = sparse(net, density=0.02)
    alpha, loss = alignments(net, inputs, labels, probes, loss=squares)
    wanted, wanted_loss = plain_alignments(net, inputs, labels, written_out(net, probes), squares)
    assert_equal_alphas(alpha, wanted)
    assert torch.allclose(loss, wanted_loss)


@pytest.mark.parametrize("hidden", [2, 3])
def test_chunks_and_tiles_change_nothing_but_rounding(hidden, path, monkeypatch):
    net, (inputs, labels) = mlp(hidden), batch_for()
    made = []
    entries = SparseProbes.entries
    monkeypatch.setattr(SparseProbes, "entries", lambda *given: made.append(given[1:3]) or entries(*given))
    probes = sparse(net, 150, 0.05)
    whole, _ = alignments(net, inputs, labels, probes)
    assert made == [(0, 150)]
    made.clear()
    monkeypatch.setattr(tangents, "ENTRIES_MEMORY", 1 << 15)
    monkeypatch.setattr(tangent_columns, "TILE", 7)
    parts, _ = alignments(net, inputs, labels, probes, memory=1 << 20)
    assert len(made) > 3
    assert [first for first, _ in made[1:]] == [last for _, last in made[:-1]]
    assert_equal_alphas(parts, whole, 1e-12)


def test_chunks_of_rank_one_probes_and_of_other_nets(monkeypatch):
    monkeypatch.setattr(tangents, "LEAST_MEMORY", 1)
    for net, (inputs, labels) in ((mlp(2), batch_for()), (convolutions(), batch_for((3, 12, 12)))):
        for probes in (rank_one(net, 5), sparse(net, 5)):
            whole, _ = alignments(net, inputs, labels, probes)
            for memory in (1, 50_000, 1_500_000):
                assert_equal_alphas(alignments(net, inputs, labels, probes, memory=memory)[0], whole, 1e-12)


def test_without_room_for_one_probe_they_go_one_at_a_time():
    net, (inputs, labels) = mlp(2, width=80), batch_for(batch=600)
    probes = sparse(net, 4)
    whole, _ = alignments(net, inputs, labels, probes)
    assert_equal_alphas(alignments(net, inputs, labels, probes, memory=1 << 20)[0], whole, 1e-12)


@pytest.mark.parametrize("kind", [lambda: mlp(2), convolutions], ids=["mlp", "convolutions"])
def test_central_differences(kind):
    net = kind()
    inputs, labels = batch_for((20,) if isinstance(net[0], nn.Flatten) else (3, 12, 12))
    probes, step = sparse(net, 8, 16 / count_of(net)), 1e-6
    alpha, _ = alignments(net, inputs, labels, probes)
    weights = {name: weight.double() for name, weight in ternary_parameters(net).items()}

    def value(row, size):
        parts = row.double().split([weight.numel() for weight in weights.values()])
        moved = {
            name: weight + size * part.view_as(weight)
            for part, (name, weight) in zip(parts, weights.items(), strict=True)
        }
        return F.cross_entropy(torch.func.functional_call(net, moved, (inputs,)), labels)

    rows = written_out(net, probes)
    slopes = torch.stack([(value(row, step) - value(row, -step)) / (2 * step) for row in rows])
    assert_equal_alphas(alpha, slopes, 1e-7)


@pytest.mark.parametrize("norm", [True, False])
def test_the_mean_over_all_sign_vectors_is_the_gradient(norm):
    """E[alpha nu] = E[nu nu^T] dL/dw = dL/dw, exactly, as the average over all 2^n vectors of signs."""
    bends = [nn.LayerNorm(2), nn.ReLU()] if norm else [nn.ReLU()]
    net = ternarize(nn.Sequential(nn.Linear(2, 2), *bends, nn.Linear(2, 2, bias=False)), Noise(11))
    inputs, labels = batch_for((2,), 2)
    rows = torch.tensor(list(itertools.product([-1, 1], repeat=count_of(net))))
    alpha, _ = alignments(net, inputs, labels, GivenProbes(rows))
    weights = {name: weight.double().requires_grad_() for name, weight in ternary_parameters(net).items()}
    F.cross_entropy(torch.func.functional_call(net, weights, (inputs,)), labels).backward()
    gradient = torch.cat([weight.grad.flatten() for weight in weights.values()])
    assert gradient.abs().max() > 1e-3
    assert torch.allclose(alpha @ rows.double() / len(rows), gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hidden", [1, 2, 3, 4])
def test_probes_of_one_weight_each_find_the_gradient(hidden, path):
    net, (inputs, labels) = mlp(hidden), batch_for()
    weights = {name: weight.double().requires_grad_() for name, weight in ternary_parameters(net).items()}
    F.cross_entropy(torch.func.functional_call(net, weights, (inputs,)), labels).backward()
    gradient = torch.cat([weight.grad.flatten() for weight in weights.values()])
    alpha, _ = alignments(net, inputs, labels, GivenProbes(torch.eye(len(gradient), dtype=torch.int64)))
    assert_equal_alphas(alpha, gradient)


@pytest.mark.parametrize("kind", ["1/d", "16/d", "0.1", "rank one"])
def test_bfloat16_keeps_the_signs_of_alignments_above_the_median(kind):
    net, (inputs, labels) = mlp(2, width=64), batch_for(dtype=torch.float32, batch=256)
    densities = {"1/d": 0.0, "16/d": 16 / count_of(net), "0.1": 0.1}
    probes = rank_one(net, 200) if kind == "rank one" else sparse(net, 200, densities[kind], exclusive=True)
    exact, _ = alignments(net, inputs.double(), labels, probes)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, loss = alignments(net, inputs, labels, probes)
    assert (rounded.dtype, loss.dtype) == (torch.float32, torch.float32)
    assert not torch.equal(rounded, alignments(net, inputs, labels, probes)[0]), "nothing was rounded"
    large = exact.abs() > exact.abs().median()
    assert (rounded.sign() == exact.sign())[large].double().mean() >= 0.99


def test_autocast_leaves_float64_alone():
    net, (inputs, labels) = mlp(2), batch_for()
    plain = alignments(net, inputs, labels, sparse(net))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(alignments(net, inputs, labels, sparse(net))[0], plain)


def test_float32_is_near_float64(path):
    net, (inputs, labels) = mlp(3), batch_for()
    exact, _ = alignments(net, inputs, labels, sparse(net))
    assert_equal_alphas(alignments(net, inputs.float(), labels, sparse(net))[0].double(), exact, 1e-4)


def test_the_net_the_inputs_and_the_noise_of_torch_stay(path):
    net, (inputs, labels) = mlp(2), batch_for()
    before, given = {name: weight.clone() for name, weight in net.named_parameters()}, inputs.clone()
    state = torch.get_rng_state()
    alignments(net, inputs, labels, sparse(net))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(inputs, given)
    for name, weight in net.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None


@pytest.mark.parametrize(("make", "count"), [(sparse, 512), (rank_one, 20)])
def test_memory_does_not_grow_with_the_number_of_probes(make, count):
    net, (inputs, labels) = mlp(2, width=40), batch_for(dtype=torch.float32, batch=128)
    given, peaks = {"density": 0.002} if make is sparse else {}, []
    for several in (1, 4):
        probes = make(net, several * count, **given)
        with peak_allocation() as peak:
            alignments(net, inputs, labels, probes, memory=1 << 20)
        peaks.append(peak.bytes)
    assert peaks[1] <= 1.02 * peaks[0] + 100 * 3 * count  # alpha itself, and the numbers of non-zeros
    assert peaks[1] <= 2 << 20


def test_one_probe_at_a_time_needs_little_more_than_inference():
    net, (inputs, labels) = mlp(2, width=256, features=400), batch_for((400,), dtype=torch.float32, batch=1024)
    with torch.no_grad(), peak_allocation() as inference:
        F.cross_entropy(net(inputs), labels)
    probes = sparse(net, 3, 16 / count_of(net))
    with peak_allocation() as peak:
        alignments(net, inputs, labels, probes, memory=1 << 20)
    assert peak.bytes <= 2.5 * inference.bytes


def test_what_is_refused():
    net, (inputs, labels) = mlp(1), batch_for()
    with pytest.raises(InputError, match="memory must be at least 1 MiB"):
        alignments(net, inputs, labels, sparse(net), memory=1 << 19)
    with pytest.raises(InputError, match="only trits are allowed"):
        alignments(nn.Linear(20, 5), inputs, labels, sparse(net))
    with pytest.raises(InputError, match="but the probes are for 7"):
        alignments(net, inputs, labels, SparseProbes(Noise(0), 7, 3, 1.0))
    with pytest.raises(InputError, match="one shape for each"):
        alignments(net, inputs, labels, RankOneProbes(Noise(0), ((24, 20),), 3))


@pytest.mark.parametrize("kind", [Own, Residual])
def test_what_is_not_finite_stops(kind):
    net, (inputs, labels) = ternarize(kind(), Noise(5)), batch_for()
    inputs[3, 4] = math.nan
    with pytest.raises(NonFiniteError, match=r"12 of 12 alignments are not finite, at loss nan: look for values"):
        alignments(net, inputs, labels, sparse(net))


def test_the_plain_step_moves_weights_against_the_aligned_probes():
    """By hand: the larger half of four alignments votes, and what is clamped stays a trit."""
    assert plain_trits(torch.tensor([3.0, -1.0, -2.0, 0.5])).tolist() == [1, 0, -1, 0]
    net, (inputs, labels) = mlp(1), batch_for()
    rows = written_out(net, sparse(net, 30, 0.05))
    before = F.cross_entropy(net(inputs), labels)
    weights = torch.cat([weight.flatten().long() for weight in net.parameters()])
    trits = plain_step(net, inputs, labels, rows)
    moved = torch.cat([weight.flatten().long() for weight in net.parameters()])
    change = (trits @ rows).clamp(-1, 1)
    assert torch.equal(moved, (weights - change).clamp(-1, 1))
    assert F.cross_entropy(net(inputs), labels) < before
