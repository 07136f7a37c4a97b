"""Back-propagation's own family: accumulated, deeply supervised, checkpointed; and the linear classifier."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.measure import peak_allocation
from sidestep.nets import masks_from
from sidestep.nets.stages.heads import logits_of_heads
from sidestep.noise import Noise
from sidestep.rules import Backprop, Batch, DirectFeedbackAlignment, FeedbackAlignment, LocalLoss, Task

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
WITHOUT_BATCH_NORM = {
    "linear": Backprop(net="linear"),
    "mlp": Backprop(net="mlp", hidden=(12, 9), label_smoothing=0.1),
    "layer norm": Backprop(net="mlp", hidden=(12, 9), norm="layer"),
    "deep supervision": Backprop(net="mlp", hidden=(12, 9), norm="layer", deep_supervision=0.3),
    "checkpointed": Backprop(net="mlp", hidden=(12, 9), norm="layer", activation_checkpointing=True),
}
IN_STAGES = {
    "conv": Backprop(net="conv", hidden=(4, 6)),
    "conv deep": Backprop(net="conv", hidden=(4, 6), deep_supervision=0.5),
    "mlp batch norm": Backprop(net="mlp", hidden=(12, 9), norm="batch"),
    "ternary": Backprop(net="mlp", hidden=(12, 9), ternary=True),
}


def batch(size=24, dtype=torch.float64):
    noise = Noise(3)
    labels = noise.stream("labels").integers(size, 4)
    images = noise.normal(size * 64).view(size, 1, 8, 8) + labels[:, None, None, None]
    return Batch(images.to(dtype), labels)


def build(rule):
    return rule.build(TASK, Noise(0), None, None).double()


def estimate(rule, net, given=None):
    return rule.estimate(net, given or batch(), Noise(0).stream("estimate").at(1))


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-12, atol=1e-15)


class TestAccumulation:
    @pytest.mark.parametrize("parts", [2, 3, 24])
    @pytest.mark.parametrize("rule", WITHOUT_BATCH_NORM.values(), ids=WITHOUT_BATCH_NORM)
    def test_it_is_the_whole_batch_s_gradient_without_batch_norm(self, rule, parts):
        net = build(rule)
        whole, summed = estimate(rule, net), estimate(replace(rule, accumulate=parts), net)
        assert_same(summed.gradients, whole.gradients)
        assert_same(summed.losses, whole.losses)

    @pytest.mark.parametrize("parts", [2, 3, 6])
    def test_beside_the_sum_there_is_one_gradient(self, parts):
        rule, given = Backprop(net="mlp", hidden=(400, 400, 400), accumulate=parts), batch(dtype=torch.float32)
        net = rule.build(TASK, Noise(0), None, None)
        size = sum(4 * parameter.numel() for parameter in net.parameters())
        peaks = []
        for each in (replace(rule, accumulate=1), rule):
            with peak_allocation() as peak:
                estimate(each, net, given)
            peaks.append(peak.bytes)
        assert 1.0 < peaks[0] / size < 1.25  # activations of 24 images are next to nothing
        assert 2.0 < peaks[1] / size < 2.25

    def test_where_activations_are_most_it_takes_less(self):
        rule, given = Backprop(net="mlp", hidden=(100, 100)), batch(3000, torch.float32)
        net, peaks = rule.build(TASK, Noise(0), None, None), []
        for each in (rule, replace(rule, accumulate=4)):
            with peak_allocation() as peak:
                estimate(each, net, given)
            peaks.append(peak.bytes)
        assert peaks[1] < 0.4 * peaks[0]

    def test_one_part_is_in_memory_at_a_time(self):
        rule, sizes = Backprop(net="mlp", hidden=(12,), accumulate=4), []
        net = build(rule)
        net.layers[0].register_forward_hook(lambda layer, inputs, output: sizes.append(len(output)))
        estimate(rule, net)
        assert sizes == [6, 6, 6, 6]

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_batch_norm_sees_each_part_by_itself_and_moves_once_for_each(self, checkpointing):
        rule = Backprop(net="conv", hidden=(4, 6), accumulate=3, activation_checkpointing=checkpointing)
        net, given = build(rule), batch()
        before = {name: buffer.clone() for name, buffer in net.named_buffers()}
        found = estimate(rule, net, given)
        assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
        assert (found.gradients["stages.0.0.weight"] - estimate(Backprop(net="conv", hidden=(4, 6)), net).gradients[
            "stages.0.0.weight"
        ]).abs().max() > 1e-6  # fmt: skip
        net.train()
        wanted = {}
        for part in range(3):
            rows = slice(8 * part, 8 * part + 8)
            loss = cross_entropy(net(given.inputs[rows]), given.targets[rows])
            for name, parameter in net.named_parameters():
                wanted[name] = wanted.get(name, 0) + torch.autograd.grad(loss, parameter, retain_graph=True)[0] / 3
        assert_same(found.gradients, wanted)
        moved = {name: buffer for name, buffer in net.named_buffers() if not torch.equal(buffer, before[name])}
        assert_same(
            {name: value.double() for name, value in found.statistics.items()},
            {n: b.double() for n, b in moved.items()},
        )

    def test_dropout_and_starts_of_the_chain_are_drawn_for_every_example(self, monkeypatch):
        """Four parts with the same images: they differ in what is drawn, and in nothing else."""
        rule, quarter = Backprop(blocks=2, accumulate=4), batch(6, torch.float32)
        given = Batch(quarter.inputs.repeat(4, 1, 1, 1), quarter.targets.repeat(4))
        net = rule.build(TASK, Noise(0), None, None)
        features, starts, plain = [], [], net.every_logits  # the image path sees the images alone: its masks differ
        net.blocks[0].image.register_forward_hook(lambda path, inputs, output: features.append(output))
        monkeypatch.setattr(net, "every_logits", lambda images, start: starts.append(start) or plain(images, start))
        one = estimate(rule, net, given).gradients
        for drawn in (features, starts):
            assert len(drawn) == 4
            for first, second in itertools.combinations(drawn, 2):
                assert not torch.equal(first, second)
        two = estimate(rule, net, given).gradients
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_a_batch_that_does_not_divide_is_refused_with_what_to_do(self):
        rule = Backprop(net="mlp", hidden=(12,), accumulate=7)
        with pytest.raises(InputError, match="multiple of accumulate = 7, got 24"):
            estimate(rule, build(rule))
        with pytest.raises(InputError, match="multiple of accumulate = 3, got 256"):
            train(replace(rule, accumulate=3), data.load("digits"), Options(epochs=1, batch=256))

    def test_such_a_batch_leaves_no_folder_behind(self, tmp_path):
        rule = Backprop(net="mlp", hidden=(8,), accumulate=3)
        with pytest.raises(InputError, match="multiple of accumulate = 3, got 128 examples; change one of them"):
            train(rule, "digits", Options(epochs=1, batch=128, out=tmp_path / "run"))
        assert not (tmp_path / "run").exists()
        train(rule, "digits", Options(epochs=1, batch=129, out=tmp_path / "run"))

    def test_parts_of_one_example_are_refused_where_batch_norm_needs_two(self):
        rule = Backprop(net="conv", hidden=(4, 6), accumulate=24)
        with pytest.raises(InputError, match="batch norm needs two"):
            estimate(rule, build(rule))


class TestDeepSupervision:
    def test_the_gradient_is_that_of_the_written_sum(self):
        rule, given = Backprop(net="mlp", hidden=(12, 9, 7), norm="layer", deep_supervision=0.3), batch()
        net = build(rule)
        inputs, terms = given.inputs, []
        for stage, head in zip(net.stages, net.heads, strict=True):
            inputs = stage(inputs)
            terms.append(cross_entropy(head(inputs), given.targets))
        loss = terms[2] + 0.3 * (terms[0] + terms[1])
        names = [name for name, _ in net.named_parameters()]
        wanted = dict(zip(names, torch.autograd.grad(loss, list(net.parameters())), strict=True))
        found = estimate(rule, net, given)
        assert_same(found.gradients, wanted)
        assert list(found.losses) == [
            "net: cross-entropy",
            "net: cross-entropy of stage 0",
            "net: cross-entropy of stage 1",
        ]
        torch.testing.assert_close(found.losses["net: cross-entropy of stage 1"], terms[1].detach())

    def test_of_the_chain_every_block_s_own_logits_have_a_loss(self):
        rule, given = Backprop(blocks=3, deep_supervision=0.5), batch(dtype=torch.float32)
        net = rule.build(TASK, Noise(0), None, None)
        found = estimate(rule, net, given)
        assert [name for name in found.losses if "block" in name] == [
            f"net: cross-entropy of block {i}" for i in range(3)
        ]
        noise = Noise(0).stream("estimate").at(1)
        generator = noise.generator(given.inputs.device)
        start = torch.empty(24, net.dimension).normal_(generator=generator)
        with masks_from(generator):
            latent, loss = start, 0
            for block, weight in zip(net.train().blocks, net.mixing.tanh(), strict=True):
                logits = block(given.inputs, latent)
                loss = loss + 0.5 * cross_entropy(logits, given.targets)
                latent = (1 - weight) * latent + weight * (logits.softmax(dim=1) @ net.embedding)
            loss = loss + cross_entropy(net.readout(latent, net.embedding), given.targets)
        gradient = torch.autograd.grad(loss, net.mixing)[0]
        torch.testing.assert_close(found.gradients["mixing"], gradient, rtol=1e-4, atol=1e-6)

    def test_a_stage_gets_the_losses_above_it_and_its_own(self):
        """Unlike local losses: the first stage's gradient is moved by the last head."""
        rule = Backprop(net="mlp", hidden=(12, 9), norm="layer", deep_supervision=1.0)
        net = build(rule)
        before = estimate(rule, net).gradients
        with torch.no_grad():
            net.heads[1][-1].weight.add_(0.5)
        after = estimate(rule, net).gradients
        assert not torch.equal(before["stages.0.1.weight"], after["stages.0.1.weight"])
        assert torch.equal(before["heads.0.1.weight"], after["heads.0.1.weight"])

    def test_a_small_weight_is_nearly_plain_backprop_and_no_weight_has_no_further_heads(self):
        rule = Backprop(net="mlp", hidden=(12, 9), norm="batch")
        supervised = replace(rule, deep_supervision=1e-9)
        net, twin = build(rule), build(supervised)
        assert (len(net.heads), len(twin.heads)) == (1, 2)
        twin.stages.load_state_dict(net.stages.state_dict())
        twin.heads[1].load_state_dict(net.heads[0].state_dict())
        one, two = estimate(rule, net).gradients, estimate(supervised, twin).gradients
        torch.testing.assert_close(one["stages.0.1.weight"], two["stages.0.1.weight"], rtol=1e-6, atol=1e-9)


class TestCheckpointedStages:
    @pytest.mark.parametrize("rule", IN_STAGES.values(), ids=IN_STAGES)
    def test_gradients_and_statistics_are_those_of_the_plain_pass(self, rule):
        net = build(rule)
        plain, checkpointed = estimate(rule, net), estimate(replace(rule, activation_checkpointing=True), net)
        assert_same(checkpointed.gradients, plain.gradients)
        assert_same(checkpointed.statistics, plain.statistics)

    @pytest.mark.parametrize("name", ["conv", "mlp batch norm"])
    def test_fewer_bytes_are_kept_for_the_way_back(self, name):
        net, kept = build(replace(IN_STAGES[name], hidden=(64, 64))).float().train(), []
        for checkpointing in (False, True):
            total = {}

            def pack(tensor, total=total):
                total[tensor.data_ptr()] = tensor.numel() * tensor.element_size()  # an input kept twice counts once
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                logits_of_heads(net.stages, net.heads, batch(256, torch.float32).inputs, checkpointing)
            kept.append(sum(total.values()))
        assert kept[1] < 0.8 * kept[0]


class TestLinear:
    def test_it_is_multinomial_logistic_regression(self):
        rule, given = Backprop(net="linear"), batch()
        net = build(rule)
        names = [name for name, _ in net.named_parameters()]
        assert names == ["layers.0.weight", "layers.0.bias"]
        error = net(given.inputs).softmax(dim=1) - one_hot(given.targets, 4)
        found = estimate(rule, net, given).gradients
        torch.testing.assert_close(found["layers.0.weight"], (error.T @ given.inputs.flatten(1)).detach() / 24)
        torch.testing.assert_close(found["layers.0.bias"], error.mean(dim=0).detach())


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_with_a_norm_the_net_is_that_of_the_other_rules_with_the_same_weights(norm):
    one = build(Backprop(net="mlp", hidden=(12, 9), norm=norm))
    for kind in (FeedbackAlignment, DirectFeedbackAlignment):
        two = build(kind(hidden=(12, 9), norm=norm)).state_dict()
        same = {name.replace(".layer.", "."): w for name, w in two.items() if "feedback" not in name}
        assert_same(same, one.state_dict())
    stages = build(LocalLoss(hidden=(12, 9), norm=norm)).stages  # its first head is drawn before the last
    assert_same(stages.state_dict(), one.stages.state_dict())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"deep_supervision": -0.1}, "deep_supervision"),
        ({"deep_supervision": float("nan")}, "deep_supervision"),
        ({"net": "linear", "deep_supervision": 0.3}, "two stages"),
        ({"net": "mlp", "hidden": (8,), "deep_supervision": 0.3}, "two stages"),
        ({"net": "linear", "activation_checkpointing": True}, "chained-blocks or conv"),
        ({"net": "mlp", "activation_checkpointing": True}, "with a norm"),
        ({"net": "linear", "ternary": True}, "mlp or conv"),
        ({"net": "linear", "norm": "batch"}, "norm is for net = mlp"),
        ({"net": "conv", "norm": "layer"}, "norm is for net = mlp"),
        ({"net": "linear", "path": "pooled"}, "chained-blocks"),
        ({"net": "perceptron"}, "net must be one of"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(options, says):
    with pytest.raises(InputError, match=says):
        Backprop(**options)


class TestOneBlock:
    def test_the_noise_at_its_start_is_an_input_alone_and_no_part_of_what_is_read_out(self):
        net = build(Backprop(blocks=1)).train()
        latent = Noise(5).normal(24 * net.dimension).view(24, -1).double()
        given, generator = batch().inputs, Noise(1).generator(torch.device("cpu"))
        with masks_from(generator):
            logits, read = net.every_logits(given, latent)
        embedded = logits.softmax(dim=1) @ net.embedding
        wanted = net.readout(net.mixing.tanh()[0] * embedded, net.embedding)
        torch.testing.assert_close(read, wanted, rtol=1e-6, atol=1e-6)

    def test_a_longer_chain_starts_from_its_noise(self):
        net = build(Backprop(blocks=2)).eval()
        zeros = torch.zeros(24, net.dimension, dtype=torch.float64)
        with torch.no_grad():
            first, second = net(batch().inputs, zeros), net(batch().inputs, zeros + 3)
        assert (first - second).abs().max() > 0.01
