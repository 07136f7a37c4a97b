"""The peak of live tensors, held to allocations that are known to the byte."""

import contextlib
import threading

import pytest
import torch
from torch import nn

from sidestep.errors import InputError
from sidestep.measure import peak_allocation
from sidestep.nets.parallel import run_units
from sidestep.noise import Noise
from sidestep.rules import Backprop, Batch, NeuralODE, NoPropDT, Task

MEBIBYTE = 1 << 20


def mebibyte():
    return torch.zeros(MEBIBYTE, dtype=torch.uint8)


def test_three_mebibytes_of_which_two_live_at_once():
    with peak_allocation("cpu") as peak:
        first = mebibyte()
        second = mebibyte()
        del first
        third = mebibyte()
    assert peak.bytes == 2 * MEBIBYTE
    assert len(second) == len(third)


def test_nothing_made_takes_nothing():
    with peak_allocation() as peak:
        pass
    assert peak.bytes == 0


def test_what_was_there_before_does_not_count_nor_does_its_end():
    before = mebibyte()
    with peak_allocation() as peak:
        before.add_(1)
        before[10:].mul_(2)
        del before
        mebibyte()
    assert peak.bytes == MEBIBYTE


def test_views_count_once_and_hold_their_storage():
    with peak_allocation() as peak:
        whole = mebibyte()
        views = [whole.view(1024, 1024).T, whole[5:], whole.detach(), whole.expand(3, -1), *whole.chunk(4)]
        del whole
        other = mebibyte()
    assert peak.bytes == 2 * MEBIBYTE
    assert len(views) == 8
    assert len(other) == MEBIBYTE


def test_in_place_operations_and_given_outputs_take_nothing():
    out = torch.zeros(1000)
    with peak_allocation() as peak:
        values = torch.ones(1000)
        values.add_(1).relu_().clamp_(0, 1)
        torch.add(values, values, out=out)
        torch._foreach_mul_([values, out], 2.0)
    assert peak.bytes == 4000


def test_a_storage_that_grows_counts_with_its_new_size():
    with peak_allocation() as peak:
        torch.empty(10, dtype=torch.uint8).resize_(1000)
    assert peak.bytes == 1000


def test_tensors_made_from_lists_count():
    with peak_allocation() as peak:
        numbers = torch.tensor([1.0] * 100)
    assert peak.bytes == numbers.nbytes == 400


def test_activations_that_only_autograd_holds_count_until_the_way_back():
    net = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(50, 50, bias=False), nn.Tanh())])
    inputs, each = torch.ones(64, 50), 4 * 64 * 50
    with peak_allocation() as without, torch.no_grad():
        net(inputs)
    assert without.bytes == 2 * each  # a layer's input and its output
    with peak_allocation() as held:
        result = net(inputs)
    assert held.bytes == 4 * each  # and the outputs of tanh, from which its derivative is made
    with peak_allocation() as back:
        found = torch.autograd.grad(result.sum(), list(net.parameters()))
    gradients = sum(gradient.nbytes for gradient in found)
    assert gradients <= back.bytes < gradients + 4 * each


def test_the_whole_training_step_is_seen():
    net = nn.Linear(1000, 1000, bias=False)
    inputs, optimizer = torch.ones(1, 1000), torch.optim.AdamW(net.parameters(), fused=True)
    with peak_allocation() as peak:
        net(inputs).sum().backward()
        optimizer.step()
    assert 3 * net.weight.nbytes <= peak.bytes < 3.1 * net.weight.nbytes  # the gradient and AdamW's two moments


def test_other_threads_are_not_seen_but_units_are():
    def make():
        return mebibyte()

    with peak_allocation(one_thread=False) as peak:
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    assert peak.bytes == 0
    threads = torch.get_num_threads()
    with peak_allocation() as peak:
        assert torch.get_num_threads() == 1
        run_units([make, make, make], torch.device("cpu"))
    assert torch.get_num_threads() == threads
    assert peak.bytes == 3 * MEBIBYTE


def test_the_peak_and_the_threads_come_back_also_after_an_error():
    threads = torch.get_num_threads()
    with contextlib.suppress(ZeroDivisionError), peak_allocation() as peak:
        mebibyte()
        _ = 1 / 0
    assert peak.bytes == MEBIBYTE
    assert torch.get_num_threads() == threads


def test_measures_within_measures_agree():
    with peak_allocation() as outer:
        first = mebibyte()
        with peak_allocation() as inner:
            mebibyte()
        del first
    assert (inner.bytes, outer.bytes) == (MEBIBYTE, 2 * MEBIBYTE)


def test_measuring_changes_no_number():
    images = Noise(1).normal(32 * 64).view(32, 1, 8, 8)  # all different: batch norm amplifies rounding on equal ones

    def step():
        rule = NoPropDT(blocks=1)
        net = rule.build(Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,)), Noise(0), None, None)
        return rule.estimate(net, Batch(images, torch.arange(32) % 4), Noise(0)).gradients

    plain = step()
    with peak_allocation():  # one thread, which adds in another order
        measured = step()
    for name in plain:
        assert (plain[name] - measured[name]).norm() <= 1e-3 * plain[name].norm() + 1e-5, name


def peak_of(rule):
    net = rule.build(Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,)), Noise(0), None, None)
    batch = Batch(torch.ones(64, 1, 8, 8), torch.arange(64) % 4)
    with peak_allocation() as peak:
        rule.estimate(net, batch, Noise(0))
    return peak.bytes


def test_known_differences_between_rules_show():
    plain, checkpointed = (peak_of(Backprop(blocks=2, activation_checkpointing=on)) for on in (False, True))
    assert checkpointed < 0.9 * plain
    few, many = (peak_of(NeuralODE(steps=steps)) for steps in (2, 8))
    assert many == pytest.approx(few, rel=1e-2)  # the adjoint method keeps no steps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_counts_as_torch_does():
    before = torch.ones(MEBIBYTE, dtype=torch.uint8, device="cuda")
    with peak_allocation("cuda") as peak:
        for _ in range(3):
            made = before + 1
    assert peak.bytes == 2 * MEBIBYTE
    assert len(made) == MEBIBYTE


def test_another_kind_of_device_is_refused():
    with pytest.raises(InputError, match="meta"), peak_allocation("meta"):
        pass
