"""The optimizers are torch's to the bit but for denormal numbers, take torch's states, and import no compiler."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sidestep.noise import Noise
from sidestep.rules.shared import optimizers
from sidestep.rules.shared.forward_only import OPTIMIZERS

KINDS = {
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "adam": (torch.optim.Adam, {"fused": True}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "plain-sgd": (torch.optim.SGD, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adadelta": (torch.optim.Adadelta, {}),
    "adafactor": (torch.optim.Adafactor, {}),
    "adamax": (torch.optim.Adamax, {}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "asgd": (torch.optim.ASGD, {}),
}
SHAPES = ((7, 5), (5,), (3, 5, 2), (3,))
RUNS = """
import json, pathlib, sys
from sidestep import Options, rules, train
kinds = rules.NoPropDT(blocks=2), rules.SPSA(), rules.NoiseStep(hidden=(8,)), rules.Backprop()
for rule in kinds:
    train(rule, "digits", Options(steps=2, batch=16, out=pathlib.Path({out!r}) / type(rule).__name__))
print(json.dumps([name for name in ("torch._dynamo", "sympy") if name in sys.modules]))
"""


def weights() -> list[nn.Parameter]:
    noise = Noise(5).stream("weights")
    return [nn.Parameter(noise.sub(i).normal(torch.Size(shape).numel()).view(shape)) for i, shape in enumerate(SHAPES)]


def groups(parameters: list[nn.Parameter]) -> list[dict[str, object]]:
    last = {"params": parameters[2:], "weight_decay": 0.0}
    return [{"params": parameters[:1]}, {"params": parameters[1:2]}, last]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    for index, parameter in enumerate(parameters):
        noise = Noise(6).sub(index).at(step)
        parameter.grad = None if (index, step) == (1, 3) else noise.normal(parameter.numel()).view_as(parameter)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_state_that_was_json_goes_on(kind: str) -> None:
    theirs, given = KINDS[kind]
    found = []
    for make in (theirs, OPTIMIZERS[kind]):
        parameters = weights()
        optimizer = make(groups(parameters), lr=0.1, weight_decay=0.1, **(given if make is theirs else {}))
        plain = json.loads(json.dumps(optimizer.state_dict()))
        assert plain["param_groups"][0]["betas"] == [0.9, 0.999]
        optimizer.load_state_dict(plain)
        set_gradients(parameters, 0)
        optimizer.step()
        found.append(parameters)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def is_denormal(numbers: Tensor) -> Tensor:
    return (numbers != 0) & (numbers.abs() < torch.finfo(numbers.dtype).smallest_normal)


def faded(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], first: int, last: int) -> None:
    """Take steps in which the first rows of two parameters have a gradient at the first step alone."""
    gradients = [parameter.detach() for parameter in weights()]
    for step in range(first, last):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.roll(step % 7) * (1 + step % 3)
        for parameter in (parameters[0], parameters[2]):
            assert parameter.grad is not None
            parameter.grad[0] *= 1e-3 * (step == 0)
        optimizer.step()


@pytest.mark.parametrize("way", ["together", "apart", "hooked", "unfused"])
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_denormal_numbers_become_zero_and_other_weights_keep_their_bits(kind: str, way: str) -> None:
    """Rows without a gradient: their first moments and, by L2 decay, their weights fade away."""
    theirs, given = KINDS[kind][0], {"fused": way != "unfused"}
    found = []
    for make in (theirs, getattr(optimizers, theirs.__name__)):
        parameters = weights()
        optimizer = make(groups(parameters) if way == "apart" else parameters, lr=0.01, weight_decay=0.1, **given)
        if way == "hooked":
            optimizer.register_step_post_hook(lambda *_: None)
        faded(optimizer, parameters, 0, 2_048)  # a multiple of 64
        kept = [optimizer.state[each][name] for each in parameters for name in ("exp_avg", "exp_avg_sq")]
        found.append((parameters, [*(each.detach() for each in parameters), *kept]))
    (one, torchs), (other, ours) = found
    assert sum(bool(is_denormal(each).any()) for each in torchs) >= 2
    assert not any(is_denormal(each).any() for each in ours)
    for index, (before, after) in enumerate(zip(one, other, strict=True)):
        rows = slice(1, None) if index in (0, 2) else slice(None)
        assert torch.equal(before[rows].view(torch.int32), after[rows].view(torch.int32))
    decayed = is_denormal(one[0][0])
    if kind == "adam":
        assert decayed.any()
        assert (other[0][0] == 0)[decayed].all()
    else:
        assert torch.equal(one[0][0], other[0][0])  # a moment that small moves no weight


def test_a_weight_that_steps_at_every_other_call_loses_its_denormal_numbers_too() -> None:
    often, seldom = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = OPTIMIZERS["adamw"]([often, seldom])
    for call in range(2 * 1_024):
        often.grad = torch.ones(3)
        seldom.grad = torch.full((3,), float(call == 0)) if call % 2 == 0 else None
        optimizer.step()
    assert optimizer.state[seldom]["exp_avg"].tolist() == [0.0] * 3


@pytest.mark.parametrize("stop", [40, 1_000])
def test_a_run_that_goes_on_drops_the_same_numbers(stop: int) -> None:
    ends = []
    for at in (None, stop):
        parameters = weights()
        optimizer = OPTIMIZERS["adam"](parameters, lr=0.01, weight_decay=0.1)
        faded(optimizer, parameters, 0, at or 2_000)
        if at:
            state, parameters = copy.deepcopy(optimizer.state_dict()), [nn.Parameter(p.detach()) for p in parameters]
            optimizer = OPTIMIZERS["adam"](parameters, lr=0.01, weight_decay=0.1)
            optimizer.load_state_dict(state)
            faded(optimizer, parameters, at, 2_000)
        ends.append(torch.cat([p.detach().flatten().view(torch.int32) for p in parameters]))
    assert torch.equal(*ends)


def test_small_numbers_in_half_precision_stay() -> None:
    weight = nn.Parameter(torch.full((4,), 3e-5, dtype=torch.float16))
    optimizer = OPTIMIZERS["adam"]([weight], lr=0.0)
    for _ in range(64):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.tolist() == [weight[0].item()] * 4
    assert weight[0] != 0


def same_state(first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> bool:
    one, other = first.state_dict(), second.state_dict()
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for index, entries in one["state"].items():
        for key, value in entries.items():
            found = other["state"][index][key]
            assert torch.equal(value, found) if isinstance(value, Tensor) else value == found
    return True


def test_every_optimizer_is_compared() -> None:
    assert OPTIMIZERS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_many_steps_are_those_of_torch(kind: str) -> None:
    plain_class, options = KINDS[kind]
    ours_at, theirs_at = weights(), weights()
    ours = OPTIMIZERS[kind](groups(ours_at), lr=0.03, weight_decay=0.1)
    theirs = plain_class(groups(theirs_at), lr=0.03, weight_decay=0.1, **options)
    assert isinstance(ours, optimizers.WithoutCompiler)
    assert type(ours).__name__ == plain_class.__name__
    assert ours.defaults == theirs.defaults
    schedules = [torch.optim.lr_scheduler.StepLR(one, 7, 0.5) for one in (ours, theirs)]
    for step in range(25):
        for parameters, optimizer, schedule in ((ours_at, ours, schedules[0]), (theirs_at, theirs, schedules[1])):
            set_gradients(parameters, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            assert all(one.grad is None or not one.grad.any() for one in parameters)
            schedule.step()
        assert all(torch.equal(one, other) for one, other in zip(ours_at, theirs_at, strict=True))
        assert same_state(ours, theirs)
        if step == 12:  # each goes on from the other's state, as a run from an earlier version does
            states = copy.deepcopy((ours.state_dict(), theirs.state_dict()))
            ours.load_state_dict(states[1])
            theirs.load_state_dict(states[0])
    assert ours.param_groups[0]["lr"] == pytest.approx(0.03 * 0.5**3)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("special", ["none", "amsgrad", "maximize", "mixed", "tensor rate", "scaled"])
def test_steps_on_a_cpu_leave_out_what_is_for_other_devices(kind: str, special: str, monkeypatch) -> None:
    made, slow = [], []
    through_torch = optimizers._Fused._step_groups
    monkeypatch.setattr(optimizers._Fused, "_step_groups", lambda *a: (slow.append(1), through_torch(*a)))
    for make in (OPTIMIZERS[kind], lambda *a, **named: KINDS[kind][0](*a, fused=True, **named)):
        parameters = weights()
        if special == "mixed":
            parameters[1] = nn.Parameter(parameters[1].detach().double())
        options = {special: True} if special in ("amsgrad", "maximize") else {}
        rate = torch.tensor(0.03) if special == "tensor rate" else 0.03
        optimizer = make([{"params": [each]} for each in parameters], lr=rate, weight_decay=0.1)
        for group in optimizer.param_groups:
            group.update(options)
        made.append((optimizer, parameters))
    for step in range(6):
        for optimizer, parameters in made:
            set_gradients([each for each in parameters if each.dtype == torch.float32], step)
            for each in parameters:
                each.grad = torch.full_like(each, step - 2.5) if each.dtype == torch.float64 else each.grad
            if special == "scaled" and step > 2:  # as torch's own scaler sets them
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
            optimizer.step()
        assert all(torch.equal(one, other) for one, other in zip(made[0][1], made[1][1], strict=True))
    assert same_state(made[0][0], made[1][0])
    expected = {"none": 1, "maximize": 1, "scaled": 4}.get(special, 6)  # the first makes the states
    assert len(slow) == expected, len(slow)


def test_hooks_and_closures_are_called_and_gradients_are_not_recorded() -> None:
    parameters, seen = weights(), []
    optimizer = optimizers.AdamW(parameters, fused=True)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> float:
        assert torch.is_grad_enabled()
        set_gradients(parameters, 0)
        return 4.0

    assert optimizer.step(closure) == 4.0
    assert seen == ["before", "after"]
    assert torch.is_grad_enabled()
    copied = copy.deepcopy(optimizer)
    assert same_state(copied, optimizer)


def test_hooks_of_all_optimizers_are_called_and_units_stay_apart() -> None:
    parameters, seen = weights(), []
    optimizer = optimizers.AdamW(groups(parameters), fused=True)
    handle = register_optimizer_step_post_hook(lambda *_: seen.append("after"))
    try:
        set_gradients(parameters, 0)
        optimizer.step()
    finally:
        handle.remove()
    optimizer.zero_grad()
    before = [parameter.detach().clone() for parameter in parameters]
    parameters[1].grad = torch.ones_like(parameters[1])  # one unit of those that are stepped together
    optimizer.step()
    moved = [not torch.equal(one, other) for one, other in zip(before, parameters, strict=True)]
    assert seen == ["after"]
    assert moved == [False, True, False, False]


def test_runs_that_compile_nothing_import_no_compiler(tmp_path: Path) -> None:
    program = RUNS.format(out=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
