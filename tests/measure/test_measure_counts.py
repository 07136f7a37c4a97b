"""Operations and bytes, counted: exact numbers of known nets, in every way that rules compute."""

import mmap
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vmap
from torch.utils.checkpoint import checkpoint

from sidestep.measure import count_operations, peak_memory_bytes, processor_name, restart_peak_memory, update_bytes
from sidestep.nets import MLP
from sidestep.nets.parallel import run_units
from sidestep.noise import Noise
from sidestep.probes import SparseProbes
from sidestep.rules import Backprop, Batch, Task
from sidestep.update import Dense, Flips, Seeded

TASK = Task((1, 4, 4), ("a", "b", "c"), (0.0,), (1.0,))
SIZES = (16 * 7, 7 * 5, 5 * 3)  # weights of the layers of an MLP with hidden = 7, 5


def test_backprop_of_an_mlp_takes_three_forward_passes_less_the_first_layers_input_gradient():
    rule = Backprop(net="mlp", hidden=(7, 5))
    net = rule.build(TASK, Noise(0), None, None)
    batch = Batch(torch.ones(6, 1, 4, 4), torch.arange(6) % 3)
    with count_operations() as estimated:
        rule.estimate(net, batch, Noise(0))
    with count_operations() as forward:
        rule.predict(net, batch.inputs, Noise(0))
    assert forward.count == 2 * 6 * sum(SIZES)
    assert estimated.count == 3 * forward.count - 2 * 6 * SIZES[0]


def test_what_is_computed_again_is_counted_again():
    net = MLP((1, 4, 4), (7, 5), 3)
    images = torch.ones(6, 1, 4, 4)
    with count_operations() as plain:
        net(images).sum().backward()
    with count_operations() as again:
        checkpoint(net, images, use_reentrant=False).sum().backward()
    assert 0 <= plain.count + 2 * 6 * sum(SIZES) - again.count < 2 * 6 * sum(SIZES)  # it may stop early
    assert again.count > plain.count


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, weight):
        ctx.save_for_backward(images, weight)
        return images @ weight

    @staticmethod
    def backward(ctx, grad):
        images, _ = ctx.saved_tensors
        return None, images.T @ grad + images.T @ grad


@pytest.mark.parametrize(
    ("work", "count"),
    [
        (lambda: Doubled.apply(torch.ones(2, 3), torch.ones(3, 5, requires_grad=True)).sum().backward(), 3 * 60),
        (lambda: vmap(lambda x: x @ torch.ones(3, 5))(torch.ones(4, 2, 3)), 4 * 60),
        (lambda: vmap(lambda x: torch.ones(2, 3) @ x)(torch.ones(4, 3, 5)), 4 * 60),
        (lambda: torch.ones(2, 3) @ torch.ones(3), 12),
        (lambda: torch.ones(3) @ torch.ones(3), 6),
        (lambda: torch.einsum("bi,ij->bj", torch.ones(2, 3), torch.ones(3, 5)), 60),
        (lambda: torch.ones(2, 3) + torch.ones(2, 3), 0),
        (lambda: nn.functional.conv2d(torch.ones(2, 3, 4, 4), torch.ones(5, 3, 3, 3)), 2 * 2 * 5 * 4 * 27),
    ],
    ids=["function", "vmap", "vmap-weights", "vector", "dot", "einsum", "sum", "convolution"],
)
def test_every_way_to_a_product_is_counted(work, count):
    with count_operations() as operations:
        work()
    assert operations.count == count


def test_inference_mode_and_forward_mode():
    ones = torch.ones(2, 3)
    with count_operations() as operations:
        jvp(lambda left, right: left @ right, (ones, ones.T), (ones, ones.T))
    assert operations.count == 3 * 2 * 2 * 2 * 3  # the product, and one for the tangent of either side
    layer = nn.Linear(3, 5)
    with count_operations() as operations, torch.inference_mode():
        layer(torch.ones(2, 3))
    assert operations.count == 60
    values = {name: value.detach() for name, value in layer.named_parameters()}
    with count_operations() as operations:
        jvp(lambda weights: functional_call(layer, weights, torch.ones(2, 3)), (values,), (values,))
    assert operations.count in (2 * 60, 3 * 60)  # torch may multiply with the images' tangent, zeros, too


def test_units_that_would_run_in_threads_are_counted_and_the_threads_come_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with count_operations() as operations:
            run_units([lambda: torch.ones(2, 3) @ torch.ones(3, 5)] * 3, torch.device("cpu"))
        assert operations.count == 3 * 60
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_bytes_of_updates():
    gradients = {"weight": torch.zeros(3, 2), "half": torch.zeros(5, dtype=torch.bfloat16)}
    mean = {"mean": torch.zeros(4)}
    probes = SparseProbes(Noise(0), 100, 12, 0.1)
    assert update_bytes(Dense(gradients)) == 24 + 10
    assert update_bytes(Dense(gradients, mean, {"loss": torch.zeros(())})) == 24 + 10 + 16
    assert update_bytes(Seeded(torch.zeros(12), probes)) == 48
    assert update_bytes(Seeded(torch.zeros(12, dtype=torch.int8), probes, mean)) == 3 + 16
    moves = torch.ones(9, dtype=torch.int8)
    assert update_bytes(Flips(torch.arange(9), moves)) == 36 + 2
    assert update_bytes(Flips(torch.arange(9) + (1 << 32), moves)) == 72 + 2
    assert update_bytes(Flips(torch.arange(0), moves[:0])) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there the peak of a process can be reset")
def test_the_peak_begins_anew():
    def touch(size):  # not through the C library, which may keep what was freed
        with mmap.mmap(-1, size) as memory:
            for page in range(0, size, 4096):
                memory[page] = 1

    restart_peak_memory()
    touch(64 << 20)
    high = peak_memory_bytes()
    before = restart_peak_memory()
    assert high - before > 60 << 20
    touch(32 << 20)
    assert 30 << 20 < peak_memory_bytes() - before < 40 << 20


def test_the_processor_has_a_name():
    assert processor_name().strip()
