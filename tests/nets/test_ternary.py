"""Trits, layers made of them, and nets made of those."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from sidestep import nets
from sidestep.errors import InputError
from sidestep.nets import (
    TernaryConv2d,
    TernaryEmbedding,
    TernaryLinear,
    pack_layers,
    packed_size,
    ternarize,
    ternary_conv_net,
    ternary_mlp,
    ternary_parameters,
)
from sidestep.nets.ternary.nets import GridAverage, ternary_own
from sidestep.nets.ternary.straight_through import StraightThrough, float_twin
from sidestep.noise import Noise
from sidestep.ternary import pack_trits, packed_bytes, unpack_trits


class TestPacking:
    @given(st.lists(st.integers(-1, 1), max_size=60))
    @settings(max_examples=200, deadline=None)
    def test_trits_come_back(self, trits):
        packed = pack_trits(torch.tensor(trits, dtype=torch.int8))
        assert packed.dtype == torch.uint8
        assert packed.numel() == packed_bytes(len(trits)) == math.ceil(len(trits) / 5)
        assert unpack_trits(packed, len(trits)).tolist() == trits

    def test_every_byte_up_to_242_is_five_trits_and_no_other(self):
        codes = torch.arange(243, dtype=torch.uint8)
        assert torch.equal(pack_trits(unpack_trits(codes, 243 * 5)), codes)
        with pytest.raises(InputError, match="at most 242, got 243"):
            unpack_trits(torch.tensor([243], dtype=torch.uint8), 5)

    @pytest.mark.parametrize("wrong", [2.0, -3.0, 0.5, float("nan")])
    def test_other_values_are_refused(self, wrong):
        with pytest.raises(InputError, match="trits are -1, 0 and 1"):
            pack_trits(torch.tensor([0.0, wrong, 1.0]))

    def test_too_few_or_too_many_bytes_are_refused(self):
        for size in (0, 1, 3):
            with pytest.raises(InputError, match="packed in 2 bytes"):
                unpack_trits(torch.zeros(size, dtype=torch.uint8), 7)


def drawn(layer):
    layer.draw(Noise(3))
    return layer


class TestLayers:
    def test_they_compute_what_torch_s_own_layers_do(self):
        x = Noise(0).normal(2 * 6 * 5 * 5).view(2, 6, 5, 5)
        layer = drawn(TernaryConv2d(6, 4, 3, stride=2, padding=1, bias=True, groups=2))
        plain = nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2)
        plain.weight.data, plain.bias.data = layer.weight.float(), layer.bias.float()
        torch.testing.assert_close(layer(x), plain(x) * math.sqrt(1.5 / 27))
        layer = drawn(TernaryLinear(150, 7, bias=True))
        expected = (x.flatten(1) @ layer.weight.float().T + layer.bias.float()) * 0.1
        torch.testing.assert_close(layer(x.flatten(1)), expected)
        layer = drawn(TernaryEmbedding(10, 4))
        rows = torch.tensor([[1, 9]])
        torch.testing.assert_close(layer(rows), layer.weight[rows].float() * math.sqrt(1.5))

    def test_the_scale_keeps_the_variance(self):
        x = Noise(0).normal(500 * 400).view(500, 400)
        assert drawn(TernaryLinear(400, 300))(x).var().item() == pytest.approx(1, abs=0.03)

    @pytest.mark.parametrize(
        "layer", [TernaryLinear(11, 3, bias=True), TernaryConv2d(2, 3, 3, bias=True), TernaryEmbedding(7, 3)]
    )
    def test_packed_layers_compute_the_same_bits_from_a_fifth_of_the_bytes(self, layer):
        drawn(layer)
        x = torch.arange(6) if isinstance(layer, TernaryEmbedding) else Noise(1).normal(11 * 18).view(
            (18, 11) if isinstance(layer, TernaryLinear) else (1, 2, 9, 11)
        )  # fmt: skip
        before, saved = layer(x), layer.state_dict()
        pack_layers(layer)
        assert not list(layer.parameters())
        assert layer.packed["weight"].numel() == math.ceil(math.prod(layer.shape) / 5)
        assert torch.equal(before, layer(x))
        assert all(torch.equal(saved[name], packed) for name, packed in layer.state_dict().items())

    def test_a_state_dict_is_packed_and_comes_back(self):
        one, two = drawn(TernaryLinear(13, 4, bias=True)), TernaryLinear(13, 4, bias=True)
        state = one.state_dict()
        assert {name: tensor.numel() for name, tensor in state.items()} == {"weight": 11, "bias": 1}
        two.load_state_dict(state)
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(one.bias, two.bias)
        with pytest.raises(RuntimeError, match="weight: 52 trits are packed in 11 bytes"):
            two.load_state_dict({**state, "weight": state["weight"][:-1]})
        with pytest.raises(RuntimeError, match="Missing key"):
            two.load_state_dict({"bias": state["bias"]})

    def test_a_packed_layer_takes_other_weights_too(self):
        one, two = drawn(TernaryLinear(13, 4, bias=True)), pack_layers(TernaryLinear(13, 4, bias=True))
        x = Noise(1).normal(26).view(2, 13)
        two.load_state_dict(one.state_dict())
        assert torch.equal(one(x), two(x))
        with pytest.raises(RuntimeError, match="packed in 11 bytes"):
            two.load_state_dict({**one.state_dict(), "weight": torch.zeros(3, dtype=torch.uint8)})

    @pytest.mark.parametrize("packed", [False, True])
    def test_weights_that_a_layer_lacks_are_named(self, packed):
        layer = TernaryLinear(13, 4)
        if packed:
            pack_layers(layer)
        with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"bias\""):
            layer.load_state_dict(TernaryLinear(13, 4, bias=True).state_dict())

    def test_float_weights_can_stand_in_for_a_derivative(self):
        layer = drawn(TernaryLinear(5, 2)).double()
        x = Noise(0).normal(15).view(3, 5).double()
        weights = {"weight": layer.weight.double()}
        direction = {"weight": Noise(1).normal(10).view(2, 5).double()}
        _, tangent = torch.func.jvp(lambda w: functional_call(layer, w, (x,)), (weights,), (direction,))
        torch.testing.assert_close(tangent, x @ direction["weight"].T * layer.scale)

    def test_trits_are_drawn_evenly_and_differ_between_layers_of_one_shape(self):
        net = ternary_mlp((1, 10, 10), (100, 100), 100, bias=True, local=False)
        net.draw(Noise(0))
        first, bias, second, other = list(ternary_parameters(net).values())[:4]
        assert not torch.equal(first, second)
        assert not torch.equal(bias, other)
        assert not torch.equal(bias, first.flatten()[:100])
        shares = first.flatten().add(1).bincount() / first.numel()
        assert (shares - 1 / 3).abs().max() < 0.02
        assert net.heads[0].weight.dtype == torch.int8

    def test_the_packed_size_counts_every_layer(self):
        assert packed_size(ternary_mlp((1, 2, 3), (4,), 2, bias=True, local=False)) == 5 + 1 + 2 + 1


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.MultiheadAttention(8, 2)


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.rows.weight


class DoubledNorm(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


class TestTernarize:
    def test_it_leaves_the_module_alone_and_makes_a_ternary_twin(self):
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding="same"), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(),
            nn.Linear(100, 6), nn.LayerNorm(6), nn.Linear(6, 2, bias=False),
        )  # fmt: skip
        before = [p.clone() for p in module.parameters()]
        twin = ternarize(module, Noise(0))
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
        assert {p.dtype for p in twin.parameters()} == {torch.int8}
        assert [type(layer).__name__ for layer in twin][::2] == [
            "TernaryConv2d",
            "ReLU",
            "TernaryLinear",
            "TernaryLinear",
        ]
        assert twin(torch.zeros(2, 1, 5, 5)).shape == (2, 2)
        again = ternarize(module, Noise(0))
        assert all(torch.equal(p, q) for p, q in zip(twin.parameters(), again.parameters(), strict=True))

    @pytest.mark.parametrize(
        ("module", "message"),
        [
            (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), r"layer 1 \(BatchNorm1d\).*GroupNorm"),
            (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)), r"layer 1 \(Dropout\).*leave it out"),
            (nn.Sequential(nn.Linear(3, 3), nets.Dropout(0.1)), r"layer 1 \(Dropout\).*leave it out"),
            (nn.Sequential(nn.Linear(3, 3), Attention()), r"layer 1.mix \(MultiheadAttention\).*nn.Linear"),
            (nn.Sequential(nn.LSTM(3, 3)), r"layer 0 \(LSTM\).*nn.Linear"),
            (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), "padding_mode 'circular'"),
            (nn.Sequential(nn.Linear(3, 3), OwnParameter()), r"layer 1 \(OwnParameter\).*parameters of its own"),
            (OwnParameter(), r"the module itself \(OwnParameter\).*parameters of its own"),
            (nn.Sequential(nn.ReLU()), "no ternary weights"),
            (nn.Sequential(nn.Linear(3, 3), nn.PReLU()), r"layer 1 \(PReLU\)"),
            (nn.Sequential(nn.Conv1d(3, 3, 1)), r"layer 0 \(Conv1d\).*use nn.Conv2d"),
            (nn.Sequential(nn.LazyLinear(3)), r"layer 0 \(LazyLinear\).*run the module on a batch first"),
            (nn.Sequential(nn.Linear(3, 3), Tied()), r"1.out.weight and 1.rows.weight are one parameter"),
            (nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(3, 3))), r"layer 0 \(Linear\).*remove them first"),
            (nn.Sequential(nn.Linear(3, 3), DoubledNorm(3)), r"layer 1 \(DoubledNorm\).*parameters of its own"),
            (nn.Sequential(nn.Linear(0, 3)), r"one input and one output or more, got weights of shape \(3, 0\)"),
        ],
    )
    def test_it_names_the_layer_that_it_cannot_turn_and_says_what_to_do(self, module, message):
        with pytest.raises(InputError, match=message):
            ternarize(module, Noise(0))

    def test_a_layer_that_is_used_twice_stays_one_layer(self):
        shared = nn.Linear(3, 3)
        twin = ternarize(nn.Sequential(shared, nn.ReLU(), shared), Noise(0))
        assert twin[0] is twin[2]
        assert type(twin[0]) is TernaryLinear

    def test_norms_lose_their_scales_and_shifts_and_nothing_else(self):
        norms = [nn.LayerNorm(6, eps=0.1), nn.RMSNorm(6, eps=0.2), nn.GroupNorm(2, 6, eps=0.3)]
        twin = ternarize(nn.Sequential(nn.Linear(4, 6), *norms), Noise(0))
        assert [name for name, _ in twin.named_parameters()] == ["0.weight", "0.bias"]
        x = Noise(1).normal(12).view(2, 6)
        assert all(torch.allclose(own(x), norm(x), atol=1e-6) for own, norm in zip(twin[1:], norms, strict=True))

    def test_names_of_classes_mean_nothing_and_own_forwards_are_not_thrown_away(self):
        class BatchNormFreeNet(nn.Sequential):
            pass

        class Doubled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        assert type(ternarize(nn.Sequential(BatchNormFreeNet(nn.Linear(3, 3))), Noise(0))[0][0]) is TernaryLinear
        with pytest.raises(InputError, match=r"layer 0 \(Doubled\).*exactly these types"):
            ternarize(nn.Sequential(Doubled(3, 3)), Noise(0))
        with pytest.raises(InputError, match="padding_idx"):
            ternarize(nn.Sequential(nn.Embedding(3, 3, padding_idx=0)), Noise(0))

    def test_float_parameters_are_named_where_only_trits_are_allowed(self):
        with pytest.raises(InputError, match=r"0.weight has torch.float32 .*ternarize"):
            ternary_parameters(nn.Sequential(nn.Linear(2, 2)))


def own():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 8), nn.LayerNorm(8), nn.ReLU())


class TestNets:
    def test_heads_agree_with_the_forward_pass(self):
        for make in (ternary_mlp, ternary_conv_net):
            net = make((1, 8, 8), (12, 9), 4, bias=True, local=True)
            net.draw(Noise(0))
            images = Noise(1).normal(5 * 64).view(5, 1, 8, 8)
            every = net.every_logits(images)
            assert [logits.shape for logits in every] == [(5, 4)] * 2
            assert torch.equal(every[-1], net(images))

    @pytest.mark.parametrize("grid", [(4, 4), (2, 3), (1, 1), (7, 5)])
    def test_grid_averages_are_those_of_adaptive_pooling(self, grid):
        images = Noise(0).normal(2 * 3 * 35).double().view(2, 3, 7, 5)
        expected = nn.AdaptiveAvgPool2d(grid)(images).flatten(2).transpose(1, 2)
        torch.testing.assert_close(GridAverage(grid)(images), expected)

    def test_own_modules_are_cut_before_every_ternary_layer_but_the_first(self):
        net = ternary_own(own, (1, 8, 8), 4, False, True, Noise(0))
        assert [[type(part).__name__ for part in stage] for stage in net.stages] == [
            ["Flatten", "TernaryLinear", "ReLU"], ["TernaryLinear", "LayerNorm", "ReLU"],
        ]  # fmt: skip
        assert [head[1].shape for head in net.heads] == [(4, 16), (4, 8)]
        with pytest.raises(InputError, match="local losses need a module in stages"):
            ternary_own(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8), 4, False, True, Noise(0))

    @pytest.mark.parametrize("make", [ternary_mlp, ternary_conv_net])
    @pytest.mark.parametrize("hidden", [(), (3, 0)])
    def test_empty_nets_are_refused(self, make, hidden):
        with pytest.raises(InputError, match="one"):
            make((1, 8, 8), hidden, 4, bias=False, local=False)


class TestStraightThrough:
    def test_weights_have_three_values_and_the_gradient_goes_straight_through(self):
        weight = Noise(0).normal(60).view(6, 10).requires_grad_()
        used = StraightThrough()(weight)
        assert used.detach().unique().numel() == 3
        kept = weight.detach().abs() > 0.7 * weight.detach().abs().mean()
        torch.testing.assert_close(used.detach().abs().max(), weight.detach().abs()[kept].mean())
        (3 * used).sum().backward()
        assert torch.equal(weight.grad, torch.full_like(weight, 3))

    def test_the_scale_and_threshold_are_near_the_best_ones(self):
        """The paper's rule comes within 2 % of the least squared error over all thresholds (for normal weights)."""
        weight = Noise(1).normal(20_000)
        error = (StraightThrough()(weight) - weight).square().sum()
        sizes = weight.abs().sort(descending=True).values
        best = weight.square().sum() - (sizes.cumsum(0).square() / torch.arange(1, 20_001)).max()
        assert best <= error < 1.02 * best

    def test_the_twin_has_the_same_shape_and_no_trits(self):
        net = float_twin(ternary_conv_net((1, 8, 8), (4, 6), 3, True, False), Noise(0), ternary=True)
        assert all(p.dtype == torch.float32 for p in net.parameters())
        assert net.stages[0][0].weight.detach().unique().numel() == 3
        assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
