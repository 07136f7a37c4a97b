"""Local losses and Hebbian layers: what a stage's update depends on, and what the Hebbian rules converge to."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.nets.stages.hebbian import hebbian_change
from sidestep.nets.stages.layerwise import layerwise_net, layerwise_own
from sidestep.nets.stages.patches import Patches
from sidestep.noise import Noise
from sidestep.rules.hebbian import Hebbian
from sidestep.rules.local_loss import LocalLoss
from sidestep.rules.protocol import Batch, Task

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
LOCAL = [
    LocalLoss(hidden=(20, 12, 9)),
    LocalLoss(hidden=(20, 12, 9), norm="layer", similarity=0.9),
    LocalLoss(net="conv", hidden=(4, 6, 5), similarity=0.5),
    LocalLoss(net="conv", hidden=(4, 6, 5), norm="none"),
]
HEBBIAN = [
    Hebbian(hidden=(20, 12)),
    Hebbian(hidden=(20, 12), kind="against"),
    Hebbian(hidden=(9, 6), kind="oja"),
    Hebbian(net="conv", hidden=(4, 6)),
    Hebbian(net="conv", hidden=(4, 6), kind="sanger"),
]
each_local = pytest.mark.parametrize("rule", LOCAL, ids=lambda rule: f"{rule.net} {rule.norm} {rule.similarity}")
each_hebbian = pytest.mark.parametrize("rule", HEBBIAN, ids=lambda rule: f"{rule.net} {rule.kind}")
each_rule = pytest.mark.parametrize("rule", LOCAL + HEBBIAN, ids=lambda rule: f"{rule.name} {rule.net}")


def batch(size=24, dtype=torch.float32):
    noise = Noise(3)
    labels = noise.stream("labels").integers(size, 4)
    images = noise.normal(size * 64).view(size, 1, 8, 8) + labels[:, None, None, None]
    return Batch(images.to(dtype), labels)


def build(rule, seed=0):
    return rule.build(TASK, Noise(seed), None, None)


def estimate(rule, net, given=None):
    return rule.estimate(net, given or batch(), Noise(0).at(1))


@each_rule
def test_estimate_writes_nothing_and_repeats(rule):
    net = build(rule)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    one, two = (estimate(rule, net) for _ in range(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(torch.equal(one.gradients[name], two.gradients[name]) for name in one.gradients | two.gradients)
    assert one.gradients.keys() == {name for name, _ in net.named_parameters()}
    assert sorted(n for names in rule.units(net).values() for n in names) == sorted(one.gradients)
    assert all(parameter.grad is None for parameter in net.parameters())


@each_rule
def test_the_net_is_a_function_of_the_seed(rule):
    first, again, other = (build(rule, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


class TestLocalLoss:
    @each_local
    def test_each_gradient_is_that_of_its_own_stage_s_loss_and_of_no_other(self, rule):
        """Stage by stage, each loss is made by itself, and reaches the parameters of its unit alone."""
        net, given = build(rule).double(), batch(dtype=torch.float64)
        update = estimate(rule, net, given)
        inputs = given.inputs
        for index, names in enumerate(rule.units(net).values()):
            outputs = net.stages[index](inputs)
            if not rule.similarity:
                loss = cross_entropy(net.heads[index](outputs), given.targets, label_smoothing=rule.label_smoothing)
                wanted = torch.autograd.grad(loss, [net.get_parameter(name) for name in names])
                for name, gradient in zip(names, wanted, strict=True):
                    torch.testing.assert_close(update.gradients[name], gradient, rtol=1e-9, atol=1e-14)
            inputs = outputs.detach()

    @each_local
    def test_what_lies_above_a_stage_does_not_move_its_gradient(self, rule):
        for changed in range(3):
            one, two = build(rule), build(rule)
            with torch.no_grad():
                two.heads[changed][-1].weight.add_(0.5)
            first, second = (estimate(rule, net).gradients for net in (one, two))
            moved = {name.split(".")[1] for name in first if not torch.equal(first[name], second[name])}
            assert moved == {str(changed)}  # a head is seen by its own stage only

    def test_similarity_is_zero_when_the_features_say_the_class_and_nothing_else(self):
        from sidestep.nets.stages.similarity import similarity_loss

        labels = batch().targets
        features = 3.0 * torch.nn.functional.one_hot(labels, 4).float()
        assert similarity_loss(nn.Identity(), features, 4, labels) < 1e-12
        assert similarity_loss(nn.Identity(), features.roll(1, 0), 4, labels) > 0.1

    def test_statistics_move_once(self):
        rule = LOCAL[0]
        net = build(rule)
        statistics = estimate(rule, net).statistics
        net.train()(batch().inputs)
        assert statistics
        for name, value in statistics.items():
            torch.testing.assert_close(value, net.get_buffer(name))

    def test_a_norm_belongs_to_the_layer_before_it(self):
        def path():
            middle = [nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU()]
            return nn.Sequential(nn.Flatten(), *middle, nn.Linear(8, 6), nn.LayerNorm(6), nn.ReLU())

        net = layerwise_own(path, (1, 8, 8), 4, True, Noise(0))
        assert [len(stage) for stage in net.stages] == [4, 3]

    def test_layers_that_do_not_give_one_tensor_are_named_with_what_to_do(self):
        path = nn.Sequential(nn.Flatten(2), nn.LSTM(64, 8), nn.Linear(8, 8))
        with pytest.raises(InputError, match=r"LSTM.*wrap"):
            LocalLoss().build(TASK, Noise(0), None, path)
        with pytest.raises(InputError, match=r"nn\.Sequential with weights in several"):
            LocalLoss().build(TASK, Noise(0), None, nn.Linear(8, 8))

    def test_similarity_of_maps_is_the_paper_s(self):
        """A convolution, the deviation over places, cosines about the mean, and the squared distance to the labels'."""
        from sidestep.nets.stages.similarity import similarity_loss

        net = LocalLoss(net="conv", hidden=(4, 6), similarity=0.5).build(TASK, Noise(0), None, None)
        maps, labels = Noise(1).normal(5 * 4 * 9).view(5, 4, 3, 3), torch.tensor([0, 1, 0, 2, 3])
        weight = net.projections[0].weight
        assert weight.shape == (4, 4, 3, 3)
        assert net.projections[0].bias is None
        seen = torch.nn.functional.conv2d(maps, weight, padding=1)
        wanted = 0.0
        says = [seen[i].flatten(1).std(dim=1) for i in range(5)]
        onehot = torch.eye(4)[labels]
        for i in range(5):
            for j in range(5):
                found, true = (torch.corrcoef(torch.stack([rows[i], rows[j]]))[0, 1] for rows in (says, onehot))
                wanted += (found - true) ** 2 / 25
        torch.testing.assert_close(similarity_loss(net.projections[0], maps, 4, labels), wanted)

    @pytest.mark.parametrize("wrong", [{"hidden": ()}, {"hidden": (0,)}, {"norm": "group"}, {"similarity": 1.0}])
    def test_bad_input_is_refused_by_name(self, wrong):
        with pytest.raises(InputError, match=next(iter(wrong))):
            LocalLoss(**wrong)

    def test_heads_and_stages_must_fit(self):
        net = layerwise_net("mlp", (1, 8, 8), (8, 8, 8), 4, "none", True)
        with pytest.raises(InputError, match="3 stages need one head, or one each, got 2 heads"):
            type(net)(list(net.stages), list(net.heads)[:2])


def correlated(variances, size=4000):
    """Rows with known principal axes, centred: (rows, axes as rows, from the largest variance down)."""
    dimension = len(variances)
    axes = torch.linalg.qr(Noise(5).normal(dimension**2).view(dimension, dimension).double())[0].T
    rows = Noise(6).normal(size * dimension).view(size, dimension).double()
    rows = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)[0] * size**0.5  # exactly white
    return rows * torch.tensor(variances).double().sqrt() @ axes, axes


def converged(kind, units, rows, steps=1500, rate=0.05):
    layer = nn.Linear(rows.shape[1], units, bias=False, dtype=torch.float64)
    drawn = Noise(7).normal(layer.weight.numel()).view_as(layer.weight).double() / rows.shape[1] ** 0.5
    layer.weight = nn.Parameter(drawn)
    for _ in range(steps):
        with torch.no_grad():
            layer.weight.add_(rate * hebbian_change(kind, layer, rows, 1.0))
    return layer.weight.detach()


class TestHebbian:
    VARIANCES = (4.0, 2.5, 1.5, 0.8, 0.3)

    @pytest.mark.parametrize("kind", ["oja", "sanger"])
    def test_one_unit_finds_the_first_principal_component(self, kind):
        rows, axes = correlated(self.VARIANCES)
        weight = converged(kind, 1, rows)[0]
        assert weight.norm() == pytest.approx(1, abs=1e-6)
        assert abs(float(weight @ axes[0])) == pytest.approx(1, abs=1e-6)

    def test_sanger_finds_the_first_components_in_order(self):
        rows, axes = correlated(self.VARIANCES)
        found = converged("sanger", 3, rows) @ axes.T  # (units, axes)
        torch.testing.assert_close(found.abs(), torch.eye(5).double()[:3], atol=1e-6, rtol=0)

    def test_oja_s_units_span_the_first_components_in_no_order(self):
        rows, axes = correlated(self.VARIANCES)
        weight = converged("oja", 3, rows)
        torch.testing.assert_close(weight.T @ weight, axes[:3].T @ axes[:3], atol=1e-6, rtol=0)
        assert float((weight @ axes.T).abs().max(dim=1).values.min()) < 0.999

    @pytest.mark.parametrize("kind", ["winner", "against"])
    def test_winners_find_the_clusters_and_length_one(self, kind):
        centres = 4 * torch.eye(6).double()[:3]
        rows = centres.repeat_interleave(50, dim=0) + 0.1 * Noise(2).normal(150 * 6).view(150, 6).double()
        layer = nn.Linear(6, 3, bias=False, dtype=torch.float64)
        layer.weight = nn.Parameter(torch.eye(6).double()[:3] + 0.3 * Noise(3).normal(18).view(3, 6).double())
        for _ in range(400):
            with torch.no_grad():
                layer.weight.add_(0.02 * hebbian_change(kind, layer, rows, 0.1))
        torch.testing.assert_close(layer.weight.detach(), torch.eye(6).double()[:3], atol=0.05, rtol=0)

    @pytest.mark.parametrize("kind", ["winner", "against", "oja", "sanger"])
    def test_the_change_is_the_written_formula(self, kind):
        layer, rows = nn.Linear(5, 4, bias=False, dtype=torch.float64), Noise(8).normal(35).view(7, 5).double()
        weight = layer.weight.detach()
        wanted = torch.zeros_like(weight)
        for x in rows:
            y = weight @ x
            share = (y / 0.5).softmax(dim=0)
            for k in range(4):
                if kind in ("winner", "against"):
                    sign = -1 if kind == "against" and k != int(y.argmax()) else 1
                    wanted[k] += sign * share[k] * (x - y[k] * weight[k])
                else:
                    others = range(k + 1) if kind == "sanger" else range(4)
                    wanted[k] += y[k] * (x - sum(y[j] * weight[j] for j in others))
        torch.testing.assert_close(hebbian_change(kind, layer, rows, 0.5), wanted / 7)

    def test_patches_are_evened_one_by_one(self):
        images = Noise(9).normal(4 * 2 * 49).view(4, 2, 7, 7).double()
        found = Patches(2, 3, 2, whitened=False)(images)
        cut = nn.functional.unfold(images, 3, stride=2).transpose(1, 2)  # channels outermost there, innermost here
        cut = cut.unflatten(2, (2, 9)).transpose(2, 3).flatten(2)
        spread = (cut.var(dim=2, correction=0, keepdim=True) + 0.02).sqrt()
        torch.testing.assert_close(found, (cut - cut.mean(dim=2, keepdim=True)) / spread)
        torch.testing.assert_close(Patches(2, 3, 2, False)(5 * images + 3), found, atol=0.15, rtol=0)

    def test_whitened_patches_vary_alike_in_all_directions_but_for_the_ridge(self):
        images = Noise(9).normal(200 * 2 * 36).view(200, 2, 6, 6).double().cumsum(dim=3)  # neighbours go together
        plain, patches = Patches(2, 3, 1, False)(images).flatten(0, 1), Patches(2, 3, 1, True).double()
        patches.fit(images)
        rows = patches(images).flatten(0, 1)
        torch.testing.assert_close(rows.mean(dim=0), torch.zeros(18).double(), atol=1e-6, rtol=0)
        variances = torch.linalg.eigvalsh(plain.T.cov(correction=0))
        wanted = (variances / (variances + 0.1)).sort().values
        torch.testing.assert_close(torch.linalg.eigvalsh(rows.T.cov(correction=0)), wanted, atol=1e-5, rtol=0)

    def test_the_whitening_is_taken_from_the_training_images_and_kept(self):
        digits = data.load("digits")
        task = Task(digits.image_shape, digits.class_names, digits.mean, digits.std)
        rule = Hebbian(net="conv", hidden=(6,))
        plain, fitted = (rule.build(task, Noise(0), examples, None).state_dict() for examples in (None, digits.train))
        assert {name for name in plain if not torch.equal(plain[name], fitted[name])} == {
            "stages.0.before.0.mean", "stages.0.before.0.matrix",
        }  # fmt: skip
        assert not any(
            "matrix" in name for name in Hebbian(net="conv", kind="oja").build(task, Noise(0), None, None).state_dict()
        )

    @pytest.mark.parametrize("kind", ["winner", "sanger"])
    def test_a_stage_learns_from_some_of_many_patches(self, kind, monkeypatch):
        rule = Hebbian(net="conv", hidden=(4,), kind=kind)
        net = build(rule)
        every = estimate(rule, net).gradients["stages.0.layer.weight"]
        monkeypatch.setattr("sidestep.nets.stages.hebbian._PATCHES", 200)  # of 24 x 16
        some = estimate(rule, net).gradients["stages.0.layer.weight"]
        agreement = torch.nn.functional.cosine_similarity(some.flatten(), every.flatten(), dim=0)
        assert 0.7 < agreement < 0.9999

    @pytest.mark.parametrize("net", ["mlp", "conv"])
    def test_stages_rest_after_their_steps(self, net):
        rule = Hebbian(net=net, hidden=(8, 6), stage_steps=1)
        made, readout = build(rule), {"readout.weight", "readout.bias"}
        first, second = (rule.estimate(made, batch(), Noise(0).at(step)) for step in (0, 1))
        assert first.gradients.keys() - readout == set(rule.units(made)["stage 0"] + rule.units(made)["stage 1"])
        assert second.gradients.keys() == readout
        assert [float(second.losses[f"stage {index}: change"]) for index in range(2)] == [0, 0]
        optimizer = rule.optimizer(made)
        rule.apply(made, first, optimizer)
        before = made.stages[0].layer.weight.clone()
        rule.apply(made, second, optimizer)
        assert torch.equal(made.stages[0].layer.weight, before)  # AdamW's momentum does not move them either

    @each_hebbian
    def test_labels_reach_the_read_out_and_nothing_else(self, rule):
        net, given = build(rule), batch()
        other = Batch(given.inputs, (given.targets + 1) % 4)
        one, two = (estimate(rule, net, each).gradients for each in (given, other))
        changed = {name for name in one if not torch.equal(one[name], two[name])}
        assert changed == {"readout.weight", "readout.bias"}

    @each_hebbian
    def test_the_read_out_follows_the_delta_rule(self, rule):
        net, given = build(rule).double(), batch(dtype=torch.float64)
        found = estimate(rule, net, given).gradients
        features = net.train().seen(given.inputs)[1]
        error = net.readout(features).softmax(dim=1) - torch.nn.functional.one_hot(given.targets, 4)
        torch.testing.assert_close(found["readout.weight"], (error.T @ features / 24).detach())
        torch.testing.assert_close(found["readout.bias"], error.mean(dim=0).detach())

    def test_stages_can_learn_first_and_then_stand_still(self):
        rule = Hebbian(hidden=(20, 12), stage_steps=3, readout_from=3)
        net = build(rule)
        optimizer, moved = rule.optimizer(net), []
        for step in range(6):
            before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
            update = rule.estimate(net, batch(), Noise(0).at(step))
            rule.apply(net, update, optimizer)
            moved.append({n.split(".")[0] for n, p in net.named_parameters() if not torch.equal(p, before[n])})
            assert len(update.losses) == 3  # what is watched stays the same
        assert moved == [{"stages"}] * 3 + [{"readout"}] * 3

    def test_stages_have_no_weight_decay(self):
        rule = HEBBIAN[0]
        assert [group["weight_decay"] for group in rule.optimizer(build(rule)).param_groups] == [0, 0, 1e-3]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"hidden": ()},
            {"hidden": (0,)},
            {"kind": "hebb"},
            {"temperature": 0.0},
            {"weight_decay": 2.0},
            {"stage_steps": -1},
            {"readout_from": -1},
        ],
    )
    def test_bad_input_is_refused_by_name(self, wrong):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Hebbian(**wrong)

    def test_a_module_of_one_s_own_is_refused_with_what_to_do(self):
        with pytest.raises(InputError, match="local losses"):
            Hebbian().build(TASK, Noise(0), None, nn.Linear)


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        (LocalLoss(), 0.931),
        (LocalLoss(similarity=0.9), 0.931),
        (LocalLoss(net="conv", hidden=(8, 16)), 0.902),
        (Hebbian(), 0.921),
        (Hebbian(net="conv", hidden=(64,)), 0.92),
        (Hebbian(kind="oja", hidden=(64,)), 0.866),
        (Hebbian(kind="sanger", hidden=(64,)), 0.841),
    ],
)
def test_it_learns_the_digits(kind, least):
    """`least` is five points under the mean test accuracy of seeds 0, 1 and 2."""
    assert train(kind, data.load("digits"), Options(epochs=12)).result["test_accuracy"] > least
