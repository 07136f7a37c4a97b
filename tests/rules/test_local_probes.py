"""Local losses by directional derivatives alone: against the local gradient, and against one jvp per direction."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm
from torch.utils._python_dispatch import TorchDispatchMode

from sidestep import Options, train
from sidestep.data.objective import Objective
from sidestep.errors import InputError
from sidestep.gradients.local_losses import local_gradients
from sidestep.gradients.local_probes import LocalProbes, check_local_probes, local_probe_gradients
from sidestep.gradients.probed_tail import ProbedTail
from sidestep.nets import ternary_conv_net, ternary_mlp
from sidestep.nets.ternary.nets import ternary_own
from sidestep.noise import Noise
from sidestep.rules import Batch, NoiseStep, Task
from tests.reference import local_probes_plain as plain

CLASSES, WIDTH, BATCH = 3, 8, 6
SHAPE = (2, 10, 9)


def own():
    parts = (nn.Flatten(), nn.Linear(180, 9), nn.Tanh(), nn.Linear(9, 7), nn.LayerNorm(7), nn.SiLU())
    return ternary_own(lambda: nn.Sequential(*parts), SHAPE, CLASSES, True, True, Noise(3))


NETS = {
    "mlp": lambda: ternary_mlp(SHAPE, (9, 7), CLASSES, True, True),
    "conv": lambda: ternary_conv_net(SHAPE, (3, 5), CLASSES, True, True, (1,), "group"),
    "own": own,
}


def drawn(net, seed=0):
    net.draw(Noise(seed))
    return net.double()


def batch_of(count=BATCH, shape=SHAPE):
    size = torch.Size((count, *shape))
    return Noise(1).normal(size.numel()).double().view(size), torch.arange(count) % CLASSES


@pytest.mark.parametrize("name", NETS)
def test_a_complete_set_gives_the_local_gradient(name):
    net = drawn(NETS[name]())
    inputs, labels = batch_of()
    wanted, losses = local_gradients(net, inputs, labels, 0.1)
    with torch.no_grad():
        found, same = local_probe_gradients(net, inputs, labels, Noise(2), LocalProbes(label_smoothing=0.1))
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(same, losses)


def tail_of(seed=0):
    """One stage's tail, its parts as modules, and a batch of what it gets."""
    head = Noise(seed).stream("head").normal(CLASSES * WIDTH).double().view(CLASSES, WIDTH)
    outputs = Noise(seed).normal(BATCH * WIDTH).double().view(BATCH, WIDTH) + 0.3
    labels = torch.arange(BATCH) % CLASSES

    def modules(z):
        return layer_norm(z, (WIDTH,)).relu() @ head.T

    scale = (outputs.var(dim=1, correction=0, keepdim=True) + 1e-5).rsqrt()
    at_logits = modules(outputs).softmax(dim=1) - nn.functional.one_hot(labels, CLASSES)
    return ProbedTail(layer_norm(outputs, (WIDTH,)), scale, head, at_logits), modules, outputs, labels


def loss_of(logits, labels):
    return cross_entropy(logits, labels, reduction="none")


def true_derivative(modules, outputs, labels):
    leaf = outputs.clone().requires_grad_()
    return torch.autograd.grad(loss_of(modules(leaf), labels).sum(), leaf)[0]


def every_sign(size):
    return torch.tensor(list(itertools.product([1.0, -1.0], repeat=size)), dtype=torch.float64)


def grouped(values, groups):
    """The directions that share no unit: (batch, groups, n)."""
    places = torch.arange(values.shape[1]) % groups
    return values[:, None] * (places == torch.arange(groups)[:, None])


@pytest.mark.parametrize("groups", [1, 3, 4])
def test_the_closed_form_is_the_sum_over_its_directions_one_jvp_each(groups):
    tail, modules, outputs, labels = tail_of()
    signs = Noise(5).signs(BATCH * WIDTH).view(BATCH, WIDTH).double()
    found = tail.gradient(signs, groups)
    on = (tail.normed > 0).double()
    off = 1 - on
    assert (off.sum(dim=1) >= 2).all()  # two directions span all that the derivative can be there
    centred = off * (tail.normed - (off * tail.normed).sum(dim=1, keepdim=True) / off.sum(dim=1, keepdim=True))
    two = torch.stack([each / each.norm(dim=1, keepdim=True) for each in (off, centred)], dim=1)
    directions = torch.cat([grouped(signs * on, groups), two], dim=1)
    torch.testing.assert_close(found, plain.estimate(modules, loss_of, outputs, labels, directions), rtol=1e-10, atol=0)


@pytest.mark.parametrize("guide", ["none", "feedback", "head"])
def test_the_mean_over_all_signs_is_the_derivative(guide):
    tail, modules, outputs, labels = tail_of()
    wanted = true_derivative(modules, outputs, labels)
    signs = every_sign(WIDTH)
    feedback = Noise(7).normal(CLASSES * WIDTH).double().view(CLASSES, WIDTH) if guide == "feedback" else None
    for index in range(BATCH):
        parts = [each[index].expand(len(signs), -1) for each in (tail.normed, tail.scale, tail.cotangent)]
        many = ProbedTail(parts[0].contiguous(), parts[1], tail.matrix, parts[2])
        found = many.gradient(signs, 3, guide, feedback)
        torch.testing.assert_close(found.mean(dim=0), wanted[index], rtol=1e-10, atol=1e-12)
        exact = guide == "head"  # the rows, 1 and zhat span the derivative on active units
        assert torch.allclose(found, wanted[index].expand_as(found), rtol=1e-8) == exact


def test_the_squared_error_falls_with_the_number_of_directions_as_it_should():
    tail, modules, outputs, labels = tail_of()
    wanted, signs = true_derivative(modules, outputs, labels)[0], every_sign(WIDTH)
    on = tail.normed[0] > 0
    many = ProbedTail(
        tail.normed[:1].expand(len(signs), -1).contiguous(),
        tail.scale[:1].expand(len(signs), -1),
        tail.matrix,
        tail.cotangent[:1].expand(len(signs), -1),
    )
    for groups in (1, 2, 4, WIDTH):
        # all directions: (n / K - 1) |g|^2
        everywhere = grouped(signs, groups)
        errors = ((everywhere @ wanted)[:, :, None] * everywhere).sum(dim=1) - wanted
        mean = errors.square().sum(dim=1).mean()
        torch.testing.assert_close(mean, (WIDTH / groups - 1) * wanted.square().sum())
        # on active units: each unit is mistaken for the others of its group that are on
        found = (many.gradient(signs, groups) - wanted).square().sum(dim=1).mean()
        places = torch.arange(WIDTH) % groups
        together = (places[:, None] == places) & on & on[:, None] & ~torch.eye(WIDTH, dtype=torch.bool)
        expected = (together * wanted.square()).sum()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)
        assert found <= mean + 1e-15


def test_rows_of_a_hadamard_matrix_times_signs_give_the_same_estimate():
    net = drawn(own())
    stage, head = net.stages[0], net.heads[0]
    inputs, labels = batch_of(4)
    with torch.no_grad():
        draws = Noise(2).stream("local probes").stream("0")
        signs = draws.signs(4 * 9).view(4, 9).double()
        outputs = stage[1](stage[0](inputs))
        tail = nn.Sequential(stage[2], head)
        for groups in (1, 3):
            found, _ = local_probe_gradients(net, inputs, labels, Noise(2), LocalProbes(groups))
            grouped_ones = plain.estimate(tail, loss_of, outputs, labels, grouped(signs, groups))
            wanted = grouped_ones.T @ stage[0](inputs) * stage[1].scale / 4
            torch.testing.assert_close(found["stages.0.1.weight"], wanted, rtol=1e-10, atol=1e-14)
    tail, modules, outputs, labels = tail_of()
    signs = Noise(5).signs(BATCH * WIDTH).view(BATCH, WIDTH).double()
    for groups in (1, 2, 4, 8):
        rows = signs[:, None] * plain.hadamard(WIDTH)[:groups] / groups**0.5
        one = plain.estimate(modules, loss_of, outputs, labels, rows)
        torch.testing.assert_close(one, plain.estimate(modules, loss_of, outputs, labels, grouped(signs, groups)))


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest new tensor has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.numbers = max(self.numbers, found.numel())
        return found


def test_memory_does_not_grow_with_the_number_of_directions():
    batch, width = 40, 64
    draw = Noise(0).normal(batch * width).view(batch, width)
    tail = ProbedTail(draw, torch.ones(batch, 1), draw[:10].contiguous(), draw[:, :10].contiguous())
    sizes = []
    for groups in (4, 32, width):
        with Largest() as largest:
            tail.gradient(draw.sign(), groups)
        sizes.append(largest.numbers)
    assert sizes == [batch * width] * 3


class TestBadInput:
    def test_more_directions_than_units(self):
        with pytest.raises(InputError, match=r"stage 1 has 5, got 6: 5 are a complete set"):
            check_local_probes(ternary_mlp(SHAPE, (9, 5), 3, False, True), SHAPE, LocalProbes(6))

    def test_a_norm_over_the_batch(self):
        net = ternary_conv_net(SHAPE, (3, 2), 3, False, True, None, "batch")
        with pytest.raises(InputError, match=r"stage 0 has a norm over the batch \(BatchNorm2d\)"):
            check_local_probes(net, SHAPE, LocalProbes())

    def test_a_guide_where_tangents_have_no_closed_form(self):
        with pytest.raises(InputError, match="guide = head needs stages of a linear layer, LayerNorm"):
            check_local_probes(own(), SHAPE, LocalProbes(2, "head"))

    def test_a_layer_inside_another_module(self):
        class Inner(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(180, 4)

            def forward(self, x):
                return self.layer(x)

        parts = (nn.Flatten(), Inner(), nn.ReLU(), nn.Linear(4, 4))
        net = ternary_own(lambda: nn.Sequential(*parts), SHAPE, 3, False, True, Noise(0))
        with pytest.raises(InputError, match="stage 0 has no one linear or convolutional layer"):
            check_local_probes(net, SHAPE, LocalProbes())

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"directions": 4}, "are for estimator = local-probes"),
            ({"guide": "head"}, "are for estimator = local-probes"),
            ({"estimator": "local-probes", "guide": "head"}, "set directions"),
            ({"estimator": "local-probes", "directions": 0}, "directions"),
            ({"estimator": "local-probes", "net": "conv", "norm": "batch"}, "norm = batch goes"),
        ],
    )
    def test_options_that_do_not_go_together(self, options, words):
        with pytest.raises(InputError, match=words):
            NoiseStep(**options)

    def test_a_loss_that_is_a_mean(self):
        task = Task(SHAPE, tuple("abc"), (0.0,), (1.0,))
        rule = NoiseStep(estimator="local-probes", hidden=(6,))
        net = rule.build(task, Noise(0), None, None)
        inputs, labels = batch_of()
        mean = Objective("mean", lambda outputs, targets: cross_entropy(outputs, targets))
        with pytest.raises(InputError, match="must give one number per example"):
            rule.estimate(net, Batch(inputs.float(), labels, mean), Noise(0))


@pytest.mark.parametrize("net", [{"hidden": (64, 64)}, {"net": "conv", "hidden": (8, 16)}])
def test_it_learns_digits(net):
    rule = NoiseStep(estimator="local-probes", directions=16, flip_share=0.01, **net)
    result = train(rule, "digits", Options(epochs=6, batch=50, decay="cosine")).result
    assert result["test_accuracy"] > 0.85, result["test_accuracy"]
