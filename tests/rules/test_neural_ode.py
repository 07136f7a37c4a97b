"""The neural ODE: the adjoint's gradient against backprop through the solver, what it keeps, and bad input."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sidestep.data import Split
from sidestep.errors import InputError
from sidestep.nets.dropout import masks_from
from sidestep.nets.noprop import denoiser
from sidestep.noise import Noise
from sidestep.rules import Batch, NeuralODE, Task

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))


def batch(size=16, dtype=torch.float32):
    noise = Noise(1)
    images = noise.normal(size * 64).view(size, 1, 8, 8).to(dtype)
    return Batch(images, noise.stream("labels").integers(size, 4))


def noise_of_a_step():
    return Noise(0).stream("estimate").at(2)


def built(dtype=torch.float32, **options):
    rule = NeuralODE(**options)
    examples = Split(batch().inputs, batch().targets)
    return rule, rule.build(TASK, Noise(0), examples, None).to(dtype)


def gradients(**options):
    rule, net = built(**options)
    return rule.estimate(net, batch(), noise_of_a_step()).gradients


@pytest.fixture
def slow_time(monkeypatch):
    """Let the block see t by slow waves in float64: those of 1000 t would need thousands of steps to be resolved."""

    def slow(time, size=64):
        angle = time[:, None].double() * torch.linspace(0, 4, size // 2, dtype=torch.float64)
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    monkeypatch.setattr(denoiser, "positional_embedding", slow)


def smooth(**options):
    """A net in float64 whose rate has no corners, which a solver would lose its order at."""
    rule, net = built(torch.float64, **options)
    for part in (net.block.latent, net.block.time, net.block.fuse):
        for module in list(part.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(module, name, nn.Tanh())
    return rule, net


def smooth_gradients(**options):
    rule, net = smooth(**options)
    return rule.estimate(net, batch(4, torch.float64), noise_of_a_step()).gradients


def farthest(**options):
    """The largest relative difference of any parameter's gradient by the adjoint to the one through all steps."""
    return max(differences(smooth_gradients(**options), smooth_gradients(gradient="direct", **options)).values())


def differences(one, two):
    assert one.keys() == two.keys()
    return {name: float((one[name] - two[name]).norm() / two[name].norm()) for name in two}


def plain_gradients(steps):
    """Euler's method and one ordinary graph through everything, image path included."""
    _, net = smooth()
    given, generator = batch(4, torch.float64), noise_of_a_step().generator()
    latent = torch.empty(4, 4, dtype=torch.float64).normal_(generator=generator)
    with masks_from(generator):
        prepared = net.train().block.prepare(given.inputs)
    for index in range(steps):
        time = torch.tensor([index / steps], dtype=torch.float64)
        latent = latent + net.block.outputs(prepared, latent, time) @ net.embedding / steps
    loss = cross_entropy(net.readout(latent, net.embedding), given.targets)
    names, parameters = zip(*net.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.usefixtures("slow_time")
class TestGradient:
    def test_direct_is_plain_backprop_through_euler_and_the_image_path(self):
        """The joining layer belongs to both: a share counted twice, or not at all, would show here."""
        found = smooth_gradients(gradient="direct", steps=5)
        for name, difference in differences(found, plain_gradients(5)).items():
            assert difference < 1e-10, name

    @pytest.mark.parametrize(
        "options",
        [{}, {"embedding": "learned", "readout": "radial"}, {"embedding": "learned", "readout": "nearest"}],
        ids=str,
    )
    def test_the_adjoint_is_that_gradient_where_the_solver_is_exact(self, options):
        assert farthest(method="rk4", steps=12, **options) < 1e-5

    def test_also_where_z_is_an_image(self):
        assert farthest(method="rk4", steps=12, embedding="prototype") < 1e-2  # its path has corners: it takes maxima

    @pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
    def test_the_adjoint_s_error_falls_with_the_step_at_the_solver_s_order(self, method, order):
        coarse, fine = (farthest(method=method, steps=steps) for steps in (4, 12))
        assert math.log(coarse / fine) / math.log(3) == pytest.approx(order, abs=0.1 * order)

    def test_dopri5_finds_the_same_gradient_within_its_tolerance(self):
        found = smooth_gradients(method="dopri5", tolerance=1e-4)
        exact = smooth_gradients(method="rk4", steps=12, gradient="direct")
        for name, difference in differences(found, exact).items():
            assert difference < 1e-2, name


def test_every_parameter_gets_a_gradient_and_none_is_zero():
    for kind in ("adjoint", "direct"):
        found = gradients(gradient=kind, steps=3)
        assert all(gradient.abs().max() > 0 for gradient in found.values())
        assert any(name.startswith("block.image.") for name in found)


def test_the_image_path_trains_on_through_the_adjoint():
    """A path without parameters of its own still feeds `join`, whose share of the image lies in `prepare`."""
    rule = NeuralODE(steps=3)
    net = rule.build(TASK, Noise(0), None, lambda: nn.Flatten())
    found = rule.estimate(net, batch(), noise_of_a_step()).gradients["block.join.weight"]
    assert found[:, :64].abs().max() > 0
    assert found[:, 64:].abs().max() > 0


def test_an_image_shaped_latent_drops_nothing_out_on_its_way():
    """Fresh masks at each look would make another function of the rate every time, there and back."""
    rule, net = built(embedding="prototype", steps=2)
    rule.estimate(net, batch(), noise_of_a_step())
    assert net.block.image.training
    assert not any(module.training for module in net.block.latent.modules())


class Kept:
    """A tensor that autograd keeps, and how many bytes it keeps in all."""

    now = most = 0

    def __init__(self, tensor):
        self.tensor, self.bytes = tensor.detach(), tensor.numel() * tensor.element_size()
        Kept.now += self.bytes
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self):
        Kept.now -= self.bytes


def most_kept(**options):
    rule, net = built(**options)
    Kept.now = Kept.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        rule.estimate(net, batch(), noise_of_a_step())
    assert Kept.now == 0
    return Kept.most


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_what_the_adjoint_keeps_does_not_grow_with_the_steps(method):
    assert most_kept(method=method, steps=3) == most_kept(method=method, steps=12)
    few, many = (most_kept(method=method, steps=steps, gradient="direct") for steps in (3, 12))
    assert many > 2 * few


@pytest.mark.parametrize("kind", ["adjoint", "direct"])
def test_the_rate_is_float32_there_and_back_under_autocast(kind):
    rule, net = built(steps=2, gradient=kind)
    seen = []
    net.block.fuse.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    net.block.image.dense.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rule.estimate(net, batch(), noise_of_a_step())
    evaluations = 4 if kind == "adjoint" else 2
    assert seen == [torch.bfloat16] + [torch.float32] * evaluations


def test_unit_norm_holds_after_a_step():
    rule, net = built(embedding="learned", unit_norm=True, steps=2)
    rule.apply(net, rule.estimate(net, batch(), noise_of_a_step()), rule.optimizer(net))
    torch.testing.assert_close(net.embedding.norm(dim=1), torch.ones(4))


def test_noise_starts_do_not_depend_on_the_batching():
    rule, net = built(steps=3)
    images = batch().inputs
    whole = rule.predict(net, images, Noise(3), names=["from noise"])["from noise"]
    later = rule.predict(net, images[5:], Noise(3), start=5, names=["from noise"])["from noise"]
    torch.testing.assert_close(later, whole[5:])


@pytest.mark.usefixtures("slow_time")
def test_every_solver_finds_the_same_end():
    _, net = smooth()
    images = batch(4, torch.float64).inputs
    for method, steps in (("euler", 200), ("midpoint", 20), ("rk4", 5), ("dopri5", 1)):
        found = NeuralODE(method=method, steps=steps).predict(net, images, Noise(0))
        torch.testing.assert_close(found["from zero"], found["adaptive"], rtol=1e-2, atol=1e-3)


@pytest.mark.usefixtures("slow_time")
def test_the_adaptive_reading_takes_the_steps_that_its_tolerance_asks_for(monkeypatch):
    _, net = smooth()
    times, outputs = [], net.block.outputs
    monkeypatch.setattr(net.block, "outputs", lambda held, z, time: (times.append(time), outputs(held, z, time))[1])

    def evaluations(tolerance):
        times.clear()
        NeuralODE(tolerance=tolerance).predict(net, batch(4, torch.float64).inputs, Noise(0), names=["adaptive"])
        return len(times)

    assert evaluations(0.9) < evaluations(1e-6)


def test_a_module_with_batch_norm_trains_and_its_statistics_stay_where_they_are():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU())
    rule = NeuralODE(steps=2)
    net = rule.build(TASK, Noise(0), None, module)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    update = rule.estimate(net, batch(), noise_of_a_step())
    assert any(name.endswith("running_mean") for name in update.statistics)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": 1001},
        {"method": "heun"},
        {"gradient": "none"},
        {"tolerance": 0.0},
        {"tolerance": float("nan")},
        {"embedding": "random"},
        {"dimension": 0},
        {"readout": "linear"},
        {"path": "vgg"},
        {"learning_rate": -1.0},
        {"weight_decay": 1.5},
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(InputError, match=next(iter(options))):
        NeuralODE(**options)
