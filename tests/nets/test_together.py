"""All blocks in one pass: the losses, gradients and statistics of the blocks one by one, to rounding."""

import gc

import pytest
import torch
from torch import nn

from sidestep.data import Split
from sidestep.errors import InputError
from sidestep.nets.dropout import Dropout, masks_from
from sidestep.nets.noprop import captured_pass as recorded
from sidestep.nets.noprop.batched_blocks import can_go_together
from sidestep.nets.noprop.execution import choose_execution
from sidestep.noise import Noise
from sidestep.rules import Batch, NoPropDT, Task
from sidestep.rules import noprop_dt as dt_module

NOISE = Noise(0).stream("estimate").at(5)
CASES = {
    "figure-6": ({}, (1, 8, 8)),
    "figure-6, colour": ({"loss": "cross-entropy", "label_smoothing": 0.1}, (3, 12, 12)),
    "odd sides": ({"loss": "clipped"}, (3, 9, 11)),
    "learned embedding": ({"embedding": "learned", "dimension": 6, "readout": "radial"}, (1, 8, 8)),
    "one block": ({"blocks": 1, "embedding": "learned"}, (1, 8, 8)),
    "prototype": ({"embedding": "prototype", "blocks": 2}, (1, 8, 8)),
    "pooled": ({"path": "pooled", "blocks": 2}, (1, 32, 32)),
    "resnet-9": ({"path": "resnet-9", "blocks": 2}, (3, 8, 8)),
}


def built(options, shape, dtype=torch.float64, size=10):
    rule = NoPropDT(**{"blocks": 3, **options})
    task = Task(shape, tuple("abcd"), (0.0,) * shape[0], (1.0,) * shape[0])
    pixels = (Noise(3).uniform(40 * shape[0] * shape[1] * shape[2]) * 255).to(torch.uint8).view(40, *shape)
    net = rule.build(task, Noise(0), Split(pixels, torch.arange(40) % 4), None).to(dtype)
    images = Noise(11).normal(size * pixels[0].numel()).view(size, *shape).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    return rule, net, Batch(images, Noise(11).stream("labels").integers(size, 4))


def both(rule, net, batch):
    found = []
    for way in ("per block", "together"):
        net.set_execution(way)
        found.append(rule.estimate(net, batch, NOISE))
    return found


def assert_equal(alone, together, tolerance):
    assert list(alone.losses) == list(together.losses)
    for kind in ("losses", "gradients", "statistics"):
        one, other = getattr(alone, kind), getattr(together, kind)
        assert one.keys() == other.keys()
        for name in one:
            assert other[name].shape == one[name].shape
            size = max(1.0, float(one[name].abs().max()))
            difference = float((other[name] - one[name]).abs().max())
            assert difference <= tolerance * size, f"{name}: {difference:.1e} of {size:.1e}"


@pytest.mark.parametrize("case", CASES)
def test_together_equals_per_block_in_double_precision(case):
    rule, net, batch = built(*CASES[case], size=4 if case == "resnet-9" else 10)
    assert_equal(*both(rule, net, batch), 1e-10)


def test_the_recorded_pass_equals_per_block_at_every_step():
    """Without a GPU the graph is the function that would be recorded: what goes in and out of it is the same."""
    rule, net, batch = built({"blocks": 2, "embedding": "learned"}, (1, 8, 8))
    optimizer = rule.optimizer(net)
    for step in range(2):  # recorded at the first, with other weights, masks and statistics after it
        found = []
        for way in ("per block", "graph"):
            net.set_execution(way)
            found.append(rule.estimate(net, batch, NOISE.at(step)))
        assert_equal(*found, 1e-9)
        rule.apply(net, found[0], optimizer)


def test_what_was_recorded_goes_with_its_net():
    rule, net, batch = built({"blocks": 2}, (1, 8, 8))
    before = len(recorded._known)
    net.set_execution("graph")
    rule.estimate(net, batch, NOISE)
    assert len(recorded._known) == before + 1
    del net
    gc.collect()
    assert len(recorded._known) == before


@pytest.mark.parametrize("case", ["figure-6, colour", "learned embedding"])
def test_together_equals_per_block_in_single_precision(case):
    options, shape = CASES[case]
    assert_equal(*both(*built(options, shape, torch.float32, size=32)), 1e-5)


def test_together_equals_per_block_in_bfloat16_to_its_rounding():
    rule, net, batch = built({"blocks": 2}, (1, 8, 8), torch.float32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        alone, together = both(rule, net, batch)
    for name, loss in alone.losses.items():
        assert float(together.losses[name]) == pytest.approx(float(loss), rel=0.02), name
    for name, gradient in alone.gradients.items():
        assert together.gradients[name].dtype == torch.float32
        if gradient.abs().max() > 1e-3:
            cosine = torch.cosine_similarity(gradient.flatten(), together.gradients[name].flatten(), dim=0)
            assert cosine > 0.98, f"{name}: {cosine}"


def test_masks_are_those_of_the_blocks_by_themselves():
    """A mask that a neighbour had drawn would change the losses far beyond rounding."""
    rule, net, batch = built(*CASES["figure-6"])
    net.set_execution("together")
    with_masks = rule.estimate(net, batch, NOISE).losses
    for module in net.modules():
        if isinstance(module, Dropout):
            module.rate = 0.0
    alone, together = both(rule, net, batch)
    assert_equal(alone, together, 1e-10)
    blocks = {name: loss for name, loss in together.losses.items() if name.startswith("block")}
    assert all(abs(float(with_masks[name] / loss) - 1) > 1e-4 for name, loss in blocks.items())


def test_an_estimate_leaves_the_net_and_a_block_s_neighbours_alone():
    rule, net, batch = built(*CASES["figure-6"])
    net.set_execution("together")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    whole = rule.estimate(net, batch, NOISE).gradients
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        for parameter in net.block(1).parameters():
            parameter.mul_(1.5)
    moved = rule.estimate(net, batch, NOISE).gradients
    for name, gradient in whole.items():
        same = torch.equal(gradient, moved[name])
        assert same != name.startswith("blocks.1.") or gradient.abs().max() == 0, name


def test_training_steps_go_the_same_way():
    ends = []
    for way in ("per block", "together"):
        rule, net, batch = built({"blocks": 2}, (1, 8, 8))
        net.set_execution(way)
        optimizer = rule.optimizer(net)
        for step in range(4):
            rule.apply(net, rule.estimate(net, batch, NOISE.at(step)), optimizer)
        ends.append(net.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


class TestChoice:
    def test_block_by_block_on_a_cpu_together_on_a_gpu(self):
        assert choose_execution(torch.device("cpu")) == "per block"
        assert choose_execution(torch.device("cuda")) == "together"
        net = built(*CASES["figure-6"])[1]
        assert net.execution(torch.device("cpu")) == "per block"
        assert net.execution(torch.device("cuda", 1)) == "together"

    def test_the_rule_goes_the_way_that_the_device_or_the_net_says(self, monkeypatch):
        rule, net, batch = built(*CASES["figure-6"])
        gone = []
        for name, where in {"together_estimate": dt_module, "_block_estimate": NoPropDT}.items():
            real = getattr(where, name)
            monkeypatch.setattr(where, name, lambda *a, n=name, f=real: gone.append(n) or f(*a))
        rule.estimate(net, batch, NOISE)
        assert gone == ["_block_estimate"] * 3
        gone.clear()
        net.set_execution("together")
        rule.estimate(net, batch, NOISE)
        net.set_execution("auto")
        monkeypatch.setattr(
            "sidestep.nets.noprop.stack.choose_execution", lambda device: choose_execution(torch.device("cuda"))
        )
        rule.estimate(net, batch, NOISE)
        assert gone == ["together_estimate"] * 2

    def test_a_module_of_the_user_s_goes_by_itself(self):
        rule = NoPropDT(blocks=2)
        task = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
        net = rule.build(task, Noise(0), None, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU()))
        for device in ("cpu", "cuda"):
            assert net.execution(torch.device(device)) == "per block"
        with pytest.raises(InputError, match="module of your own"):
            net.set_execution("together")
        with pytest.raises(InputError, match="got 'sideways'"):
            net.set_execution("sideways")

    def test_unlike_blocks_and_unknown_layers_cannot_go_together(self):
        net = built(*CASES["figure-6"])[1]
        blocks = [net.block(0), net.block(1)]
        assert can_go_together(blocks)
        blocks[1].fuse[6] = nn.Linear(128, 5).double()
        assert not can_go_together(blocks)
        other = [net.block(2)]
        other[0].image.convolutions[1] = nn.AvgPool2d(2)
        assert not can_go_together(other)


def test_dropout_after_relu_in_one_is_the_two_and_keeps_its_output_alone():
    values = Noise(5).normal(4 * 6 * 4 * 4).view(4, 6, 4, 4).contiguous(memory_format=torch.channels_last)
    given = values.clone().requires_grad_()
    twin = values.clone().requires_grad_()
    with masks_from(Noise(1).generator()):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            fused = Dropout(0.3, rectify=True)(given * 1)
    with masks_from(Noise(1).generator()):
        plain = Dropout(0.3)((twin * 1).relu())
    assert torch.equal(fused, plain)
    assert [t.data_ptr() for t in kept] == [fused.data_ptr()]
    weight = Noise(6).normal(values.numel()).view(values.shape)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), x)[0] for y, x in ((fused, given), (plain, twin)))
    assert torch.equal(ours, theirs)
    assert torch.equal(Dropout(0.3, rectify=True).eval()(values.clone()), values.relu())


def test_one_channel_convolutions_work_channels_last():
    """With one channel both orders fit the strides, and torch would take the slower one."""
    net = built(*CASES["figure-6"], torch.float32)[1]
    images = torch.zeros(4, 1, 8, 8)
    assert net.block(0).image.convolutions[0](images).is_contiguous(memory_format=torch.channels_last)
