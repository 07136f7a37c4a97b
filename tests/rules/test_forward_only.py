"""What is called forward-only takes no reverse derivative: torch's reverse mode is forbidden while it trains.

The same holds for weight probes, which in chains pass one layer backwards by hand, and are called mixed mode there.
"""

import dataclasses
import inspect
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sidestep.data.objective import Objective, set_objective
from sidestep.noise import Noise
from sidestep.rules import RULES, SPSA, Batch, Evolution, ForwardGradient, LocalLoss, NoiseStep, NoPropDT, Task

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
PROBED = ("weight-probes", "local-probes", "rank-one", "activity-probes")

# by the name of the rule, or of its option and choice, as its help has it
CASES = {
    **{f"noise-step {kind} {net}": NoiseStep(net=net, hidden=(6, 5), estimator=kind, probes=8, threshold=1)
       for kind in PROBED for net in ("mlp", "conv")},
    **{f"noise-step {kind} with {how}":
       NoiseStep(hidden=(6, 5), estimator=kind, update=how, probes=8, threshold=1, flip_share=0.02)
       for kind in PROBED for how in ("flips", "sets", "bop", "accumulators")},
    **{f"noise-step local-probes, 4 directions, guide {guide}":
       NoiseStep(hidden=(6, 5), estimator="local-probes", directions=4, guide=guide)
       for guide in ("feedback", "head")},
    **{f"forward-gradient {kind}": ForwardGradient(kind=kind, hidden=(8, 8), groups=2)
       for kind in ("local", "activities", "weights")},
    "evolution rank-one": Evolution(hidden=(6, 5)),
    "evolution full-rank": Evolution(hidden=(6, 5), noise_kind="full-rank", per="group", group=4),
    "evolution along the input": Evolution(hidden=(6, 5), columns="input"),
    "spsa": SPSA(hidden=(6,)),
    "noprop-dt noise-step": NoPropDT(blocks=2, solver="noise-step", hidden=(6, 5)),
}  # fmt: skip


class ReverseModeError(AssertionError):
    """Something was differentiated backwards."""


@contextmanager
def forbidden(monkeypatch):
    """Let nothing run backwards inside. What torch looks up once, by name, it must have looked up before."""

    def refuse(*_, **__):
        raise ReverseModeError

    with monkeypatch.context() as patch:
        for owner, name in (
            (torch.autograd, "grad"), (torch.autograd, "backward"), (torch.Tensor, "backward"), (torch.func, "grad"),
            (torch.func, "grad_and_value"), (torch.func, "vjp"), (torch.func, "jacrev"),
        ):  # fmt: skip
            patch.setattr(owner, name, refuse)
        with torch.autograd.graph.saved_tensors_hooks(refuse, refuse):  # called when a node of a graph keeps anything
            yield


def two_steps(rule, module=None, task=TASK, objective=None):
    net = rule.build(task, Noise(0), None, module)
    optimizer = rule.optimizer(net)
    targets = {"classes": torch.arange(8) % 4, "labels": (torch.arange(32).view(8, 4) % 3 == 0).float(),
               "values": Noise(4).normal(32).view(8, 4)}  # fmt: skip
    objective = objective or task.objective
    set_objective(net, objective)
    inputs = Noise(1).normal(8 * 64).view(8, 1, 8, 8)
    if task.inputs == "tokens":
        ids = Noise(1).integers(8 * 13, 4).view(8, 13)
        inputs, targets = ids[:, :-1], {"tokens": ids[:, 1:]}
    batch = Batch(inputs, targets[task.targets], objective)
    before = [p.detach().clone() for p in net.parameters()]
    for step in range(2):
        update = rule.decide(net, rule.estimate(net, batch, Noise(2).at(step)), optimizer)
        found = [v for v in vars(update).values() if isinstance(v, dict)]
        assert not any(t.requires_grad or t.grad_fn for d in found for t in d.values())
        rule.apply(net, update, optimizer)
    rule.predict(net, batch.inputs, Noise(3))
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_no_reverse_derivative_is_taken(name, monkeypatch):
    two_steps(CASES[name])
    with forbidden(monkeypatch):
        two_steps(CASES[name])


@pytest.mark.parametrize("targets", ["labels", "values"])
@pytest.mark.parametrize("name", CASES)
def test_nor_of_labels_and_values(name, targets, monkeypatch):
    task = dataclasses.replace(TASK, targets=targets)
    two_steps(CASES[name], task=task)
    with forbidden(monkeypatch):
        two_steps(CASES[name], task=task)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("noise-step")])
def test_nor_of_a_loss_of_ones_own(name, monkeypatch):
    own = Objective("apart", lambda outputs, targets: (outputs - F.one_hot(targets, 4)).abs().mean(dim=1))
    two_steps(CASES[name], objective=own)
    with forbidden(monkeypatch):
        two_steps(CASES[name], objective=own)


@pytest.mark.parametrize("kind", PROBED)
def test_nor_with_a_module_of_ones_own(kind, monkeypatch):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU())
    two_steps(NoiseStep(estimator=kind, probes=8, threshold=1), module)
    with forbidden(monkeypatch):
        two_steps(NoiseStep(estimator=kind, probes=8, threshold=1), module)


@pytest.mark.parametrize("scaling", ["layer", "rows-and-columns"])
def test_nor_of_next_tokens(scaling, monkeypatch):
    task = Task((12,), tuple("abcd"), (), (), "int64", "tokens", "tokens", vocabulary=4)
    rule = NoiseStep(hidden=(6, 5), estimator="local-probes", flip_scaling=scaling, flip_share=0.1)
    two_steps(rule, task=task)
    with forbidden(monkeypatch):
        two_steps(rule, task=task)


@pytest.mark.parametrize("rule", [NoiseStep(hidden=(6, 5)), LocalLoss(hidden=(6, 5))])
def test_local_losses_do_take_some_within_a_stage(rule, monkeypatch):
    two_steps(rule)
    with forbidden(monkeypatch), pytest.raises(ReverseModeError):
        two_steps(rule)


def test_every_rule_and_choice_that_says_so_is_among_the_cases():
    for name, rule in RULES.items():
        for line in [rule.summary, rule.__doc__ or "", *_helps(rule)]:
            if "forward-only" in line.lower():
                assert any(case.startswith(name) for case in CASES), f"{name} says it is forward-only: add it to CASES"
    (help_text,) = (text for text in _helps(NoiseStep) if "forward-only" in text.lower())
    before, _, after = help_text.partition('"""')[2].partition("Forward-only:")
    assert [kind in after for kind in ("local-losses", *PROBED)] == [False, False, True, True, True]
    assert [kind in before for kind in ("local-losses", *PROBED)] == [True, True, False, False, False]


def _helps(rule):
    """Return the strings below the fields, which become the help texts, each with its field's line."""
    source = inspect.getsource(rule)
    starts = [source.index(f"\n    {field.name}:") for field in dataclasses.fields(rule)]
    return [source[a:b] for a, b in zip(starts, [*starts[1:], source.index("name: ClassVar")], strict=True)]
