"""Weights of whole numbers: what quantize makes, and steps of spsa whose rounding errors come from the seeds."""

import copy
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sidestep
from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.gradients.directions import directions_along
from sidestep.nets import QuantizedConv2d, QuantizedEmbedding, QuantizedLinear, dequantize, quantize
from sidestep.nets import quantized as layers_file
from sidestep.nets.quantized import quantized_weights
from sidestep.noise import Noise
from sidestep.probes import DenseProbes
from sidestep.rules import SPSA, Backprop, Evolution, LocalLoss, NoiseStep
from sidestep.rules.shared import error_feedback
from sidestep.steplog import rebuild
from sidestep.update import Seeded

ROWS, TARGETS = Noise(1).normal(64 * 8).view(64, 8), Noise(2).integers(64, 3)
FIXED = SPSA(pairs=4, sides="both", learning_rate=0.1, window=4)


class Text(nn.Module):
    """An embedding, which is the output layer too, and a convolution between."""

    def __init__(self):
        super().__init__()
        self.rows, self.conv = nn.Embedding(12, 9), nn.Conv2d(1, 4, 3, padding=1)
        self.norm, self.out = nn.LayerNorm(9), nn.Linear(9, 12)
        self.out.weight = self.rows.weight

    def forward(self, ids):
        found = self.conv(self.rows(ids)[:, None]).mean(dim=1)
        return self.out(self.norm(found)).flatten(0, 1)


def drawn(kind=None):
    with Noise(0).torch_seeded():
        return kind() if kind else nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def floated(net, twin):
    """Return the twin, in floats, with the values of a quantised net."""
    values = net.state_dict()
    for name in list(values):
        if f"{name.removesuffix('weight')}scale" in values and name.endswith("weight"):
            scale = values.pop(f"{name.removesuffix('weight')}scale")
            values[name] = values[name].float() * scale.view(-1, *[1] * (values[name].ndim - 1))
    twin.load_state_dict(values)
    return twin


def steps(net, rule, count, **options):
    step = sidestep.attach(net, rule, seed=3, **options)
    losses = [float(step(lambda: F.cross_entropy(net(ROWS), TARGETS, reduction="none"))) for _ in range(count)]
    return step, losses


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class TestQuantize:
    @pytest.mark.parametrize(("bits", "limit"), [(8, 127), (4, 7), (2, 1)])
    def test_a_weight_is_within_half_a_step_of_its_grid_or_at_its_end(self, bits, limit):
        net, before = quantize(drawn(), bits), drawn()
        for layer, own in ((net[0], before[0]), (net[2], before[2])):
            assert layer.weight.dtype == torch.int8
            assert int(layer.weight.abs().max()) == limit == layer.limit
            back = layer.weight * layer.scale[:, None]
            inside = layer.weight.abs() < limit
            assert bool(((back - own.weight).abs() <= 0.5001 * layer.scale[:, None])[inside].all())
            assert torch.equal(layer.bias, own.bias)

    def test_trits_fit_a_row_better_than_its_largest_weight_as_scale_would(self):
        weight = drawn()[0].weight.detach()
        own = quantize(drawn(), 2)[0]
        largest = weight.abs().amax(dim=1, keepdim=True)
        error = (own.weight * own.scale[:, None] - weight).square().sum()
        assert error < 0.8 * ((weight / largest).round() * largest - weight).square().sum()

    def test_headroom_is_a_coarser_grid(self):
        once, twice = quantize(drawn()), quantize(drawn(), headroom=2.0)
        assert torch.equal(2 * once[0].scale, twice[0].scale)
        assert int(twice[0].weight.abs().max()) in (63, 64)

    def test_layers_give_what_float_ones_give_that_hold_the_same_values(self, monkeypatch):
        monkeypatch.setattr(layers_file, "TILE", 20)  # several tiles a layer
        monkeypatch.setattr(layers_file.tiles, "__defaults__", (20,))
        net = quantize(drawn(Text))
        assert [type(part) for part in (net.rows, net.conv, net.out)] == [
            QuantizedEmbedding, QuantizedConv2d, QuantizedLinear]  # fmt: skip
        assert net.out.weight is net.rows.weight
        assert net.out.scale is net.rows.scale
        ids = Noise(4).integers(5 * 7, 12).view(5, 7)
        expected = floated(net, drawn(Text))(ids)
        assert torch.allclose(net(ids), expected, atol=1e-6)
        with torch.no_grad():
            assert torch.allclose(net(ids), expected, atol=1e-6)

    def test_gradients_pass_through_to_what_is_before(self):
        net, rows = quantize(drawn()), ROWS.clone().requires_grad_()
        net(rows).sum().backward()
        twin, again = floated(net, drawn()), ROWS.clone().requires_grad_()
        twin(again).sum().backward()
        assert torch.allclose(rows.grad, again.grad, atol=1e-6)

    def test_a_row_of_zeros_can_still_move(self):
        net = drawn()
        net[2].weight.data.zero_()
        quantize(net)
        assert bool((net[2].scale > 0).all())
        assert int(net[2].weight.abs().sum()) == 0
        before = net[2].weight.clone()
        steps(net, FIXED, 20)
        assert not torch.equal(net[2].weight, before)

    def test_half_precision_stays_half_precision(self):
        net = quantize(drawn().to(torch.bfloat16))
        assert net(ROWS.to(torch.bfloat16)).dtype == net[0].scale.dtype == torch.bfloat16

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: nn.Sequential(nn.LayerNorm(3), nn.ReLU()), "nothing to quantise.*LayerNorm"),
            (lambda: nn.Sequential(nn.ReLU()), "nothing to quantise.*none"),
            (lambda: nn.Linear(3, 2, dtype=torch.complex64), "weights of torch.complex64"),
            (lambda: nn.TransformerEncoderLayer(8, 2), "reads the weights of its parts"),
        ],
    )
    def test_what_cannot_be_quantised_is_refused(self, make, said):
        with pytest.raises(InputError, match=said):
            quantize(make())

    def test_an_image_without_a_batch_goes_through_a_convolution(self):
        for height in (3, 5):  # to a height of 1, which would spread over the outputs
            layer, image = nn.Conv2d(3, 8, 3), Noise(1).normal(3 * height * 5).view(3, height, 5)
            expected = layer(image)
            with torch.no_grad():
                found = quantize(layer)(image)
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, atol=0.05)

    def test_small_weights_in_half_precision_keep_a_grid(self):
        layer = nn.Linear(16, 4).half()
        layer.weight.data.mul_(1e-5)
        before = layer.weight.detach().float()
        own = quantize(layer)
        assert bool((own.scale > 0).all())
        assert float((own.weight * own.scale.float()[:, None] - before).abs().max()) < 0.3 * float(before.abs().max())
        net = quantize(nn.Sequential(nn.Linear(16, 4)))
        net[0].scale.data.mul_(1e-6)
        with pytest.raises(InputError, match=r"0.weight is 0 or infinite in torch.float16"):
            sidestep.attach(net.half(), FIXED)

    def test_what_is_refused_is_as_it_was(self):
        net = drawn(Text)
        net.out.register_forward_hook(lambda *_: None)
        with pytest.raises(InputError, match=r"layer out .*hooks"):
            quantize(net)
        assert type(net.rows) is nn.Embedding
        assert net.out.weight is net.rows.weight

    def test_the_function_is_there_whatever_was_imported_before(self):
        program = "import sidestep.nets.quantization\nfrom sidestep.nets import quantize\nassert callable(quantize)"
        assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0

    def test_hooks_odd_weights_and_options_are_refused(self):
        hooked = nn.Linear(3, 2)
        hooked.register_forward_hook(lambda *_: None)
        with pytest.raises(InputError, match="hooks"):
            quantize(hooked)
        patched, extended = nn.Linear(3, 2), nn.Linear(3, 2)
        patched.forward = lambda rows: rows
        extended.register_buffer("mask", torch.ones(2))
        for layer, words in ((patched, "a forward that was set from outside"), (extended, "buffers or parts")):
            with pytest.raises(InputError, match=words):
                quantize(layer)
        broken = nn.Linear(3, 2)
        broken.weight.data[0, 0] = math.nan
        with pytest.raises(InputError, match="infinite or no numbers"):
            quantize(broken)
        with pytest.raises(InputError, match="bits must be 8, 4 or 2"):
            quantize(drawn(), bits=3)
        with pytest.raises(InputError, match="headroom"):
            quantize(drawn(), headroom=0.5)


class TestDequantize:
    def test_layers_are_again_what_they_were_with_the_values_of_now(self):
        net, twin = quantize(drawn(Text)), drawn(Text)
        net.rows.weight.add_(1)
        net.conv.bias.data.add_(1)
        floats = floated(net, twin).state_dict()
        ids = Noise(4).integers(5 * 7, 12).view(5, 7)
        expected = net(ids)
        assert dequantize(net) is net
        assert str(net) == str(twin)
        assert net.out.weight is net.rows.weight
        assert net.state_dict().keys() == floats.keys()
        assert all(torch.equal(value, floats[name]) for name, value in net.state_dict().items())
        assert torch.allclose(net(ids), expected, atol=1e-6)
        net(ids).sum().backward()
        assert net.rows.weight.grad is not None

    def test_what_a_layer_has_of_its_own_comes_back_and_nothing_is_drawn(self):
        for make in (
            lambda: nn.Embedding(5, 4, padding_idx=2),
            lambda: nn.Conv2d(4, 6, (1, 3), 2, (0, 1), 1, 2, False),
        ):
            own = make().eval()
            state = torch.random.get_rng_state()
            back = dequantize(quantize(own))
            assert torch.equal(state, torch.random.get_rng_state())
            assert str(back) == str(own)
            assert back is not own
            assert not back.training
            assert not torch.equal(back.weight, own.weight)
            assert torch.allclose(back.weight, own.weight, atol=float(own.weight.detach().abs().max()) / 250)

    def test_frozen_and_shared_layers_stay_so(self):
        layer = nn.Linear(4, 4).requires_grad_(False)
        net = dequantize(quantize(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 2))).to(torch.bfloat16))
        assert net[0] is net[2]
        assert [weight.requires_grad for weight in net.parameters()] == [False, False, True, True]
        assert net[3].weight.dtype == torch.bfloat16

    @pytest.mark.parametrize("first", [True, False])
    def test_shared_weights_that_one_layer_may_move_want_a_gradient(self, first):
        net = quantize(drawn(Text))
        (net.rows if first else net.out).moves = False
        assert "rows.weight" in quantized_weights(net)
        assert dequantize(net).rows.weight.requires_grad

    def test_layers_that_were_made_directly_come_back_too(self):
        weight, scale = nn.Parameter(torch.tensor([[1, -2], [3, 0]], dtype=torch.int8), False), torch.tensor([0.5, 2.0])
        back = dequantize(QuantizedLinear(weight, nn.Parameter(scale), None, 8))
        assert back.weight.tolist() == [[0.5, -1.0], [6.0, 0.0]]

    def test_a_copy_comes_back_apart(self):
        net = quantize(drawn())
        other = copy.deepcopy(net)
        dequantize(other)
        assert type(net[0]) is QuantizedLinear
        assert torch.allclose(other(ROWS), net(ROWS), atol=1e-6)

    def test_what_has_no_such_layers_or_hooks_is_refused_as_it_was(self):
        with pytest.raises(InputError, match=r"no quantised layers.*Linear"):
            dequantize(drawn())
        net = quantize(drawn())
        net[2].register_full_backward_hook(lambda *_: None)
        with pytest.raises(InputError, match=r"layer 2 .*hooks"):
            dequantize(net)
        assert type(net[0]) is QuantizedLinear


class TestSteps:
    def test_the_estimate_is_that_of_floats_with_the_same_values(self):
        for make, run in ((None, ROWS), (Text, Noise(4).integers(5 * 7, 12).view(5, 7))):
            net = quantize(drawn(make))
            coefs = []
            for model in (net, floated(net, drawn(make))):
                losses = lambda model=model, run=run: model(run).square().mean(dim=1)  # noqa: E731
                coefs.append(SPSA(pairs=8, learning_rate=1.0, eps=0.01).estimate_any(model, losses, Noise(9)).coefs)
            assert torch.allclose(*coefs, rtol=1e-3, atol=1e-5)
            assert float(coefs[0].abs().max()) > 0.01

    @pytest.mark.parametrize("large", [False, True])
    def test_the_residual_from_the_seeds_is_the_one_that_a_stored_wish_has(self, large, monkeypatch):
        """Reference: the wish of a window is kept, and weights follow its rounded value."""
        if large:  # drawn in place, not from a block of all signs, and in several tiles
            monkeypatch.setattr("sidestep.gradients.directions._SMALL", 0)
            monkeypatch.setattr(error_feedback, "_TILE", 40)
        net = quantize(drawn(), headroom=4.0)
        rule, step_size = SPSA(pairs=3, learning_rate=0.03, window=5), 0.03
        optimizer = rule.optimizer_any(net)
        wish, whole = {}, {name: weight.int() for name, (weight, _, _) in quantized_weights(net).items()}
        shapes = tuple((name, tuple(p.shape)) for name, p in net.named_parameters() if "scale" not in name)
        for step in range(12):
            probes = DenseProbes(Noise(7).at(step), shapes, 3, "signs")
            coefs = Noise(8).at(step).normal(3)
            error_feedback.move_whole_numbers(net, Seeded(coefs, probes), step_size, optimizer)
            for name, (weight, scale, limit) in quantized_weights(net).items():
                dither = probes.noise.stream("rounding").stream(name).at(step - step % 5).uniform(weight.numel())
                own, grid = wish.get(name) if step % 5 else None, scale[:, None]
                kept = torch.zeros(weight.shape) if own is None else own
                more = directions_along(probes).elements(
                    name, [step_size * c for c in coefs.tolist()], 0, weight, range(weight.numel()))  # fmt: skip
                wish[name] = kept + more.view(weight.shape)
                moved = [(dither.view(weight.shape) - total / grid).floor() for total in (wish[name], kept)]
                whole[name] = (whole[name] + (moved[0] - moved[1]).int()).clamp(-limit, limit)
                assert torch.equal(weight.int(), whole[name]), step

    def test_a_wish_arrives_on_average(self):
        """A wish of a 64th of a step, in every step: a 64th of the weights go its way, and none another."""
        layer = quantize(nn.Linear(64, 64, bias=False), headroom=64.0)
        layer.weight.data.zero_()
        layer.scale.data.fill_(1.0)
        optimizer = SPSA(pairs=1, learning_rate=1.0, window=40).optimizer_any(layer)
        for step in range(200):
            probes = DenseProbes(Noise(7).at(step), (("weight", (64, 64)),), 1, "signs")
            own = directions_along(probes).elements("weight", [1.0], 0, layer.weight, range(64 * 64)).view(64, 64)
            before = layer.weight.clone()
            coef = torch.tensor([-1 / 64])
            error_feedback.move_whole_numbers(layer, Seeded(coef, probes), 1.0, optimizer)
            moved = layer.weight - before
            assert bool(((moved == 0) | (moved == own)).all())
            assert 0.004 < float((moved != 0).float().mean()) < 0.03  # a 64th of them

    def test_a_window_follows_its_wish_and_rounding_alone_does_not(self):
        layer = quantize(nn.Linear(32, 32, bias=False), headroom=64.0)
        layer.scale.data.fill_(1.0)
        errors = {}
        for window in (1, 64):
            layer.weight.data.zero_()
            rule = SPSA(pairs=1, learning_rate=1.0, window=window)
            optimizer, wish = rule.optimizer_any(layer), torch.zeros(32, 32)
            for step in range(64):
                probes = DenseProbes(Noise(7).at(step), (("weight", (32, 32)),), 1, "signs")
                error_feedback.move_whole_numbers(layer, Seeded(torch.tensor([0.05]), probes), 1.0, optimizer)
                wish -= directions_along(probes).elements("weight", [0.05], 0, layer.weight, range(1024)).view(32, 32)
            errors[window] = float((layer.weight - wish).square().mean())
            if window == 64:
                assert float((layer.weight - wish).abs().max()) < 1
        assert errors[64] < 0.25 < 1.5 < errors[1]  # 64 roundings of variance .05 x .95 each: 3.04

    def test_without_the_feedback_small_steps_are_lost(self, monkeypatch):
        rule = SPSA(pairs=8, learning_rate=2e-3, window=16)
        fed, plain = (quantize(drawn()) for _ in range(2))
        fed_losses = steps(fed, rule, 150)[1]

        def nearest(name, weight, scale, rows, along, rounding):
            directions, coefs = along[-1]
            place = range(rows.start * weight.shape[1], rows.stop * weight.shape[1])
            wish = directions.elements(name, coefs, 0, weight, place).view(-1, weight.shape[1])
            return (-wish / scale[rows, None]).round().int()

        monkeypatch.setattr(error_feedback, "_change", nearest)
        steps(plain, rule, 150)
        start = quantize(drawn())
        assert torch.equal(plain[0].weight, start[0].weight)
        assert not torch.equal(fed[0].weight, start[0].weight)
        assert fed_losses[-1] < fed_losses[0] - 0.005

    @pytest.mark.parametrize("rule", [SPSA(pairs=4), FIXED])
    @pytest.mark.parametrize("bits", [8, 2])
    def test_it_learns_and_no_float_stands_beside_a_weight(self, rule, bits):
        net = quantize(drawn(), bits, headroom=2.0)
        step, losses = steps(net, rule, 150)
        assert losses[-1] < losses[0] - 0.05
        held = [value for state in step.optimizer.state.values() for value in state.values()]
        assert not any(isinstance(value, torch.Tensor) for value in held)
        assert all(int(w.abs().max()) <= limit for w, _, limit in quantized_weights(net).values())

    def test_frozen_layers_stay_and_are_quantised(self):
        net = drawn()
        net[0].requires_grad_(False)
        quantize(net)
        before = net[0].weight.clone()
        steps(net, FIXED, 20)
        assert net[0].weight.dtype == torch.int8
        assert torch.equal(net[0].weight, before)

    def test_a_quantised_layer_is_frozen_by_its_own_word(self):
        net = quantize(drawn())
        net[0].moves = False
        before, after = net[0].weight.clone(), net[2].weight.clone()
        steps(net, FIXED, 20)
        assert torch.equal(net[0].weight, before)
        assert not torch.equal(net[2].weight, after)

    def test_other_rules_optimisers_and_noise_are_refused(self):
        for rule in (Backprop(), Evolution(noise_kind="full-rank", per="group"), NoiseStep(), LocalLoss()):
            with pytest.raises(InputError, match="does not train the whole numbers"):
                sidestep.attach(quantize(drawn()), rule)
        for options, said in (
            ({"optimizer_kind": "adam"}, "step by plain-sgd"),
            ({"weight_decay": 0.1}, "step by plain-sgd"),
            ({"distribution": "gaussian"}, "distribution = signs"),
        ):
            with pytest.raises(InputError, match=said):
                sidestep.attach(quantize(drawn()), SPSA(learning_rate=0.1, **options))
        net = quantize(drawn())
        with pytest.raises(InputError, match="take no gradients"):
            steps(net, SPSA(learning_rate=0.1), 1, optimizer=lambda groups: torch.optim.Adam(groups))

    def test_nets_of_shifted_whole_numbers_are_not_handed_out(self):
        with pytest.raises(InputError, match="copies with shifted weights"):
            sidestep.ask_tell(quantize(drawn()), SPSA(learning_rate=0.1))

    def test_a_step_or_noise_below_the_precision_is_refused(self):
        with pytest.raises(InputError, match="too small for the precision: with a learning rate of 1e-14"):
            steps(quantize(drawn()), SPSA(learning_rate=1e-14), 1)
        with pytest.raises(InputError, match="eps = 1e-12 is too small"):
            sidestep.attach(quantize(drawn()), SPSA(learning_rate=0.1, eps=1e-12))


class TestRuns:
    @pytest.mark.parametrize("rule", [SPSA(pairs=4, window=4), FIXED])
    def test_a_loop_goes_on_and_replays_to_the_same_bits(self, rule, tmp_path):
        whole = quantize(drawn())
        steps(whole, rule, 10)[0].close()
        first = quantize(drawn())
        step, _ = steps(first, rule, 6, log=tmp_path / "log")  # within a window of four
        step.save(tmp_path / "state")
        step.close()
        again = quantize(drawn())
        step = sidestep.attach(again, rule, seed=3, resume=tmp_path / "state", log=tmp_path / "log")
        for _ in range(4):
            step(lambda: F.cross_entropy(again(ROWS), TARGETS, reduction="none"))
        step.close()
        assert same(again, whole)
        assert not same(again, quantize(drawn()))
        rebuilt = quantize(drawn())
        assert sidestep.replay(tmp_path / "log", rebuilt).step == 10
        assert same(rebuilt, whole)

    @pytest.mark.parametrize("rule", [SPSA(pairs=8), SPSA(pairs=8, sides="both", learning_rate=0.05)])
    def test_train_on_a_module_and_a_model(self, rule, tmp_path):
        def path():
            return quantize(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU()), headroom=2.0)

        def model():
            return quantize(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), headroom=2.0)

        for index, given in enumerate(({"module": path}, {"model": model})):
            options = Options(epochs=2, batch=128, out=tmp_path / f"{index}")
            run = train(rule, data.load("digits"), options, **given)
            assert run.result["test_accuracy"] > 0.2
            whole = [name for name, value in run.net.state_dict().items() if value.dtype == torch.int8]
            assert len(whole) == 1 + index
            if "module" in given:
                found = rebuild(tmp_path / f"{index}" / "steps.steplog", module=path)
                assert found.step == run.result["steps"]
                assert same(found.net, run.net)

    def test_several_parts_of_a_step_give_its_bits(self, tmp_path):
        nets = [quantize(drawn()) for _ in range(2)]
        for net, options in zip(nets, ({}, {"split": "probes", "shares": 2}), strict=True):
            steps(net, FIXED, 5, **options)
        assert same(*nets)


class Transposed(nn.Module):
    """A linear layer that holds W as (inputs, outputs), as GPT-2's Conv1D of transformers does."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(Noise(3).normal(inputs * outputs).view(inputs, outputs))
        self.bias = nn.Parameter(Noise(4).normal(outputs))

    def forward(self, rows):
        return rows @ self.weight + self.bias


def test_a_layer_that_holds_its_weights_transposed_becomes_a_linear_one():
    with pytest.raises(InputError, match="nothing to quantise"):  # of a type that nobody knows
        quantize(Transposed(5, 8))
    given = type("Conv1D", (Transposed,), {"__module__": "transformers.pytorch_utils"})(5, 8)
    wanted, linear = given(ROWS), nn.Linear(8, 5)
    with torch.no_grad():
        linear.weight.copy_(given.weight.t())
        linear.bias.copy_(given.bias)
    found, beside = quantize(given), quantize(linear)
    assert isinstance(found, QuantizedLinear)
    assert found.weight.shape == (5, 8)
    assert torch.equal(found.weight, beside.weight)
    assert torch.equal(found.scale, beside.scale)
    torch.testing.assert_close(found(ROWS), wanted, atol=0.1, rtol=0)
    assert not torch.equal(found(ROWS), wanted)


def test_weights_that_two_layers_hold_in_different_order_are_refused():
    one, other = type("Conv1D", (Transposed,), {"__module__": "transformers.pytorch_utils"})(8, 8), nn.Linear(8, 8)
    other.weight = one.weight
    for layers in ((one, other), (other, one)):
        net = nn.Sequential(*layers)
        first, second = (type(layer).__name__ for layer in layers)
        words = rf"layer 1 \({second}\) shares its weights with layer 0 \({first}\), which reads them transposed"
        with pytest.raises(InputError, match=words):
            quantize(net)
        assert net[0] is layers[0]  # nothing was changed
