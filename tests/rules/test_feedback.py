"""Feedback alignment and direct feedback alignment: where they equal back-propagation, and what feedback they use."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy

from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.nets.stages.feedback import FeedbackLayer
from sidestep.noise import Noise
from sidestep.rules.direct_feedback_alignment import DirectFeedbackAlignment
from sidestep.rules.feedback_alignment import FeedbackAlignment
from sidestep.rules.protocol import Batch, Task

TASK = Task((2, 10, 10), tuple("abcd"), (0.0, 0.0), (1.0, 1.0))
RULES = [
    FeedbackAlignment(hidden=(20, 12)),
    FeedbackAlignment(hidden=(20, 12), feedback="sign-symmetric", norm="layer"),
    FeedbackAlignment(hidden=(20, 12), feedback="kolen-pollack", norm="none"),
    FeedbackAlignment(net="conv", hidden=(4, 6)),
    DirectFeedbackAlignment(hidden=(20, 12)),
    DirectFeedbackAlignment(net="conv", hidden=(4, 6), norm="layer"),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name} {rule.net} {rule.norm}")


def batch(size=24, dtype=torch.float64):
    noise = Noise(3)
    labels = noise.stream("labels").integers(size, 4)
    images = noise.normal(size * 200).view(size, 2, 10, 10) + labels[:, None, None, None]
    return Batch(images.to(dtype), labels)


def estimate(rule, net, given):
    return rule.estimate(net, given, Noise(0).at(1))


def by_autograd(net, given):
    """The gradient of the same net without any feedback: wrappers are passed by."""
    wrapped = {name: layer for name, layer in net.named_modules() if isinstance(layer, FeedbackLayer)}
    for name, layer in wrapped.items():
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, layer.layer)
    loss = cross_entropy(net.train()(given.inputs), given.targets)
    plain = dict(net.named_parameters())
    found = dict(zip(plain, torch.autograd.grad(loss, plain.values()), strict=True))
    for name, layer in wrapped.items():
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, layer)
    return {name.replace(".layer.", "."): value for name, value in found.items()}


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize(("net", "hidden"), [("mlp", (20, 12, 9)), ("conv", (4, 6, 5))])
def test_feedback_alignment_with_the_transposed_weights_is_backprop(net, hidden, norm):
    rule, given = FeedbackAlignment(net=net, hidden=hidden, norm=norm), batch()
    made = rule.build(TASK, Noise(0), None, None).double()
    for layer in made.modules():
        if isinstance(layer, FeedbackLayer):
            layer.feedback.copy_(layer.layer.weight.detach())
    found, wanted = estimate(rule, made, given).gradients, by_autograd(made, given)
    assert {name.replace(".layer.", ".") for name in found} == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name.replace(".layer.", ".")], rtol=1e-10, atol=1e-14)


def test_feedback_alignment_with_other_feedback_is_not_backprop_below_the_head():
    rule, given = FeedbackAlignment(hidden=(20, 12)), batch()
    made = rule.build(TASK, Noise(0), None, None).double()
    found, wanted = estimate(rule, made, given).gradients, by_autograd(made, given)
    for name, gradient in found.items():
        same = torch.allclose(gradient, wanted[name.replace(".layer.", ".")], rtol=1e-6, atol=1e-12)
        bias_before_a_batch_norm = name.endswith("layer.bias") and name.startswith("stages")  # 0 either way
        assert same == name.startswith("heads") or bias_before_a_batch_norm, name


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_direct_feedback_with_one_hidden_layer_and_the_head_s_weights_is_backprop(norm):
    rule, given = DirectFeedbackAlignment(hidden=(20,), norm=norm), batch()
    made = rule.build(TASK, Noise(0), None, None).double()
    made.feedback_0.copy_(made.heads[0][1].weight.detach())
    found, wanted = estimate(rule, made, given).gradients, by_autograd(made, given)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-10, atol=1e-14)


def test_direct_feedback_with_the_product_of_all_weights_is_backprop_in_a_linear_net():
    rule, given = DirectFeedbackAlignment(hidden=(20, 12, 9), norm="none"), batch()
    made = rule.build(TASK, Noise(0), None, None).double()
    weights = [stage[-2].weight.detach() for stage in made.stages]
    product = made.heads[0][1].weight.detach()
    for index in reversed(range(3)):
        made.get_buffer(f"feedback_{index}").copy_(product)
        product = product @ weights[index]
        made.stages[index][-1] = nn.Identity()
    found, wanted = estimate(rule, made, given).gradients, by_autograd(made, given)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-10, atol=1e-14)


def test_direct_feedback_does_not_see_the_weights_above_a_stage_but_through_the_error():
    """With the logits held, other weights above leave a stage's gradient as it is; backprop's would change."""
    rule, given = DirectFeedbackAlignment(hidden=(20, 12), norm="none"), batch()
    made = rule.build(TASK, Noise(0), None, None).double()
    before = estimate(rule, made, given).gradients
    with torch.no_grad():  # twice the second stage and half the head: the same logits, since relu(2z) = 2 relu(z)
        for parameter in made.stages[1].parameters():
            parameter.mul_(2)
        made.heads[0][1].weight.div_(2)
    after = estimate(rule, made, given).gradients
    torch.testing.assert_close(before["stages.0.1.weight"], after["stages.0.1.weight"], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("net", "hidden"), [("mlp", (20, 12)), ("conv", (4, 6))])
def test_sign_symmetric_feedback_has_the_signs_of_the_weights_as_they_are(net, hidden):
    rule = FeedbackAlignment(net=net, hidden=hidden, feedback="sign-symmetric")
    made = rule.build(TASK, Noise(0), None, None)
    layers = [layer for layer in made.modules() if isinstance(layer, FeedbackLayer)]
    assert len(layers) == 3
    for layer in layers:
        with torch.no_grad():
            layer.layer.weight.neg_()
        assert torch.equal(layer.matrix().sign(), layer.layer.weight.detach().sign())
        torch.testing.assert_close(layer.matrix().abs().mean(), layer.layer.weight.detach().abs().mean())


def test_kolen_pollack_feedback_meets_the_weights():
    rule = FeedbackAlignment(hidden=(20, 12), feedback="kolen-pollack", learning_rate=1e-2, weight_decay=1.0)
    made, given = rule.build(TASK, Noise(0), None, None), batch(dtype=torch.float32)
    optimizer, cosines, apart = rule.optimizer(made), [], []
    layer = made.stages[1][0]
    for _ in range(400):
        cosines.append(float(cosine_similarity(layer.matrix().flatten(), layer.layer.weight.detach().flatten(), dim=0)))
        apart.append(float((layer.matrix() - layer.layer.weight.detach()).norm()))
        rule.apply(made, estimate(rule, made, given), optimizer)
    assert abs(cosines[0]) < 0.2
    assert cosines[50] > cosines[0] + 0.1
    assert cosines[-1] > 0.9
    assert apart[100] / apart[0] == pytest.approx((1 - 1e-2 * 1.0) ** 100, rel=1e-3)  # nothing but decay on the rest


def test_random_feedback_stays_as_it_is_drawn():
    rule = FeedbackAlignment(hidden=(20, 12))
    made, given = rule.build(TASK, Noise(0), None, None), batch(dtype=torch.float32)
    before = {name: buffer.clone() for name, buffer in made.named_buffers() if "feedback" in name}
    assert len(before) == 3
    update = estimate(rule, made, given)
    rule.apply(made, update, rule.optimizer(made))
    assert not any("feedback" in name for name in update.gradients | update.statistics)
    assert all(torch.equal(made.get_buffer(name), value) for name, value in before.items())


@each_rule
def test_estimate_writes_nothing_and_repeats(rule):
    made, given = rule.build(TASK, Noise(0), None, None), batch(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    one, two = (estimate(rule, made, given) for _ in range(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert all(torch.equal(one.gradients[name], two.gradients[name]) for name in one.gradients | two.gradients)
    assert one.gradients.keys() == {name for name, _ in made.named_parameters()}
    assert all(parameter.grad is None for parameter in made.parameters())


@each_rule
def test_the_net_is_a_function_of_the_seed(rule):
    first, again, other = (rule.build(TASK, Noise(seed), None, None).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@each_rule
def test_the_units_hold_every_parameter_once(rule):
    made = rule.build(TASK, Noise(0), None, None)
    names = [name for names in rule.units(made).values() for name in names]
    assert sorted(names) == sorted(name for name, _ in made.named_parameters())


@pytest.mark.parametrize("kind", [FeedbackAlignment, DirectFeedbackAlignment])
@pytest.mark.parametrize(
    "wrong", [{"hidden": ()}, {"hidden": (8, 0)}, {"norm": "group"}, {"learning_rate": 0.0}, {"label_smoothing": 1.5}]
)
def test_bad_input_is_refused_by_name(kind, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        kind(**wrong)


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(200, 8), nn.PReLU(), nn.Linear(8, 8)), "PReLU"),
        (lambda: nn.Sequential(nn.Flatten(2), nn.LSTM(100, 8), nn.Linear(8, 8)), "LSTM"),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.Conv2d(4, 4, 3)), "'same'"),
        (lambda: nn.Flatten(), "nn.Sequential"),
    ],
)
def test_layers_without_feedback_are_named_with_what_to_do(module, named):
    with pytest.raises(InputError, match=named):
        FeedbackAlignment().build(TASK, Noise(0), None, module)


@pytest.mark.parametrize("kind", [FeedbackAlignment(), DirectFeedbackAlignment()], ids=lambda rule: rule.name)
def test_modules_of_one_s_own_train(kind):
    def path():
        first = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*first, nn.Linear(288, 32), nn.ReLU())

    run = train(kind, data.load("digits"), Options(epochs=6, batch=32), module=path)
    assert run.result["test_accuracy"] > 0.7


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        (FeedbackAlignment(), 0.924),
        (FeedbackAlignment(feedback="sign-symmetric"), 0.931),
        (FeedbackAlignment(feedback="kolen-pollack"), 0.932),
        (DirectFeedbackAlignment(), 0.923),
        (DirectFeedbackAlignment(net="conv", hidden=(16, 32)), 0.898),
    ],
)
def test_it_learns_the_digits(kind, least):
    """`least` is five points under the mean test accuracy of seeds 0, 1 and 2."""
    assert train(kind, data.load("digits"), Options(epochs=12)).result["test_accuracy"] > least


def test_kolen_pollack_s_matrices_approach_the_weights_by_weight_decay_alone():
    """W - B shrinks by 1 - learning_rate * weight_decay a step, which at the defaults is next to nothing."""
    for decay in (1e-3, 1.0):
        rule = FeedbackAlignment(hidden=(12, 8), feedback="kolen-pollack", norm="layer", weight_decay=decay)
        net = rule.build(TASK, Noise(0), None, None).double()
        layer, optimizer = net.stages[1][0], rule.optimizer(net)
        before = (layer.layer.weight - layer.feedback).detach().clone()
        images, labels = Noise(1).normal(32 * 200).view(32, 2, 10, 10).double(), torch.arange(32) % 4
        for step in range(20):
            update = rule.estimate(net, Batch(images, labels), Noise(0).at(step))
            rule.apply(net, rule.decide(net, update, optimizer), optimizer)
        factor = (1 - rule.learning_rate * decay) ** 20
        torch.testing.assert_close((layer.layer.weight - layer.feedback).detach(), factor * before)
