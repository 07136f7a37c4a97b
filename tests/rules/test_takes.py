"""Every cell of what a rule says it takes is tried: what it names trains, and what it does not name is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sidestep import Options, attach, data, train
from sidestep.cli import main
from sidestep.data.objective import Objective, set_objective
from sidestep.data.task import Batch, Task
from sidestep.errors import InputError
from sidestep.nets.ternary.convert import ternarize
from sidestep.nets.trained import frozen, trained
from sidestep.noise import Noise
from sidestep.rules import RULES, Backprop, Evolution, ForwardGradient, NoiseStep, NoPropDT
from sidestep.rules.shared.any_module import trains_any
from sidestep.rules.support import support_of
from sidestep.steplog import LogReader

INPUTS = {"image": (1, 8, 8), "features": (6,), "tokens": (6,), "mapping": ()}
TARGETS = ("classes", "labels", "values", "tokens")
OWN = Objective("squares", lambda outputs, targets: (outputs - nn.functional.one_hot(targets, 4)).square().mean(dim=1))
each_rule = pytest.mark.parametrize("name", RULES)


class Branches(nn.Module):
    """A module that is no chain."""

    def __init__(self, features):
        super().__init__()
        self.left, self.right = nn.Linear(features, 12), nn.Linear(features, 12)

    def forward(self, inputs):
        flat = inputs.flatten(1)
        return self.left(flat).relu() + self.right(flat).tanh()


def chain(shape):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()
    )


def branches(shape):
    return Branches(torch.Size(shape).numel())


def task_of(inputs="image", targets="classes"):
    columns = {"image": 1, "features": 6}.get(inputs, 0)
    dtype = "int64" if inputs == "tokens" else "float32"
    named = ("ids: int64 6", "mask: bool 6") if inputs == "mapping" else ()
    scale = (0.0,) * columns, (1.0,) * columns
    names = tuple("abcdef" if targets == "tokens" else "abcd")
    return Task(INPUTS[inputs], names, *scale, dtype, inputs, targets, named=named, vocabulary=6 * (inputs == "tokens"))


def batch_of(task, objective):
    noise = Noise(1)
    targets = {
        "classes": torch.arange(8) % 4,
        "labels": (noise.stream("labels").normal(32).view(8, 4) > 0).float(),
        "values": noise.stream("values").normal(32).view(8, 4),
        "tokens": noise.stream("tokens").integers(48, 6).view(8, 6),
    }
    inputs = noise.stream("inputs").normal(8 * torch.Size(task.shape).numel()).view(8, *task.shape)
    inputs = (2 * inputs).long() % 6 if task.inputs == "tokens" else inputs
    return Batch(inputs, targets[task.targets], objective)


def able(name, targets="classes", module="none"):
    """The rule, small, with the choices by which it can do what its `takes` says."""
    kind = RULES[name]
    chosen = {
        NoiseStep: {"flip_share": 0.05},  # or nets as small as these have none to flip
        Backprop: {"net": "mlp"} if targets != "classes" or module == "any" else {},
        ForwardGradient: {"kind": "weights"} if targets == "own" or module == "any" else {},
    }.get(kind, {})
    if "blocks" in kind.__dataclass_fields__:
        chosen["blocks"] = 2
    if targets != "classes" and "label_smoothing" in kind.__dataclass_fields__:
        chosen["label_smoothing"] = 0.0
    return kind(**chosen)


def steps(rule, task, module=None, objective=None):
    """Two steps and a prediction; returns the net's parameters before and after, and the readings."""
    objective = objective or task.objective
    net = rule.build(task, Noise(0), None, module)
    set_objective(net, objective)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer, batch = rule.optimizer(net), batch_of(task, objective)
    for step in range(2):
        update = rule.decide(net, rule.estimate(net, batch, Noise(0).at(step)), optimizer)
        rule.apply(net, update, optimizer)
    assert all(value.isfinite().all() for value in rule.predict(net, batch.inputs, Noise(0)).values())
    return net, before


@each_rule
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("targets", TARGETS)
def test_the_inputs_and_targets_that_a_rule_names_train_and_the_others_are_refused(name, inputs, targets):
    rule, task = able(name, targets), task_of(inputs, targets)
    apart = targets == "tokens" and inputs != "tokens"  # there are no next tokens but in rows of tokens
    if inputs in rule.takes.inputs and targets in rule.takes.targets and not apart:
        net, before = steps(rule, task)
        assert any(not torch.equal(value, before[key]) for key, value in net.named_parameters())
    else:
        wrong = targets if inputs in rule.takes.inputs and targets not in rule.takes.targets else inputs
        with pytest.raises(InputError, match=f"^{rule.name} takes .*but the data have {wrong}; take another rule"):
            rule.build(task, Noise(0), None, None)


@each_rule
def test_a_loss_of_the_user_s_own_is_what_is_trained_or_it_is_refused(name):
    rule, task = able(name, "own"), task_of()

    def trained_by(objective):
        return [value.detach() for value in steps(rule, task, objective=objective)[0].parameters()]

    if "own" in rule.takes.targets:
        usual, own = trained_by(task.objective), trained_by(OWN)
        assert any(not torch.equal(a, b) for a, b in zip(usual, own, strict=True))
    else:  # never left out in silence
        with pytest.raises(InputError, match=f"^{rule.name} trains on losses of its own .* got objective = squares"):
            rule.build(replace(task, own=OWN), Noise(0), None, None)


@each_rule
@pytest.mark.parametrize("module", [branches, chain], ids=["any", "chain"])
@pytest.mark.parametrize("inputs", ["image", "features"])
def test_the_modules_that_a_rule_names_train_and_the_others_are_refused(name, module, inputs):
    rule, task = able(name, module="any"), task_of(inputs)
    takes_it = rule.takes.module in ("any", "blocks") or (rule.takes.module == "stages" and module is chain)
    if takes_it:
        net, before = steps(rule, task, lambda: module(task.shape))
        assert any(not torch.equal(value, before[key]) for key, value in net.named_parameters())
    else:
        expected = "has no place for a module of your own" if rule.takes.module == "none" else "nn.Sequential"
        with pytest.raises(InputError, match=expected):
            rule.build(task, Noise(0), None, lambda: module(task.shape))


@each_rule
def test_frozen_parameters_keep_their_bits_where_a_rule_says_so(name):
    rule, task = able(name), task_of()

    def first_frozen():
        layers = nn.Sequential(*chain(task.shape), nn.Linear(12, 12), nn.ReLU())
        layers[1].requires_grad_(False)
        return layers

    module = None if rule.takes.module in ("none", "residual") else first_frozen
    net = rule.build(task, Noise(0), None, module)
    if module is None:
        next(net.parameters()).requires_grad_(False)
    still = {key: value.detach().clone() for key, value in frozen(net).items()}
    moving = {key: value.detach().clone() for key, value in trained(net).items()}
    optimizer, batch = rule.optimizer(net), batch_of(task, task.objective)
    for step in range(2):
        rule.apply(net, rule.decide(net, rule.estimate(net, batch, Noise(0).at(step)), optimizer), optimizer)
    found = dict(net.named_parameters())
    assert still
    assert any(not torch.equal(found[key], value) for key, value in moving.items())
    assert all(torch.equal(found[key], value) for key, value in still.items()) == rule.takes.frozen


@pytest.fixture(scope="module")
def few():
    images, labels = Noise(0).normal(96 * 64).view(96, 1, 8, 8), torch.arange(96) % 4
    return data.from_arrays(images[:64].numpy(), labels[:64].numpy(), images[64:].numpy(), labels[64:].numpy())


@each_rule
def test_a_run_leaves_a_log_of_its_steps_where_a_rule_says_so(name, tmp_path, few):
    rule = able(name)
    train(rule, few, Options(epochs=1, batch=32, out=tmp_path / "run"), readings=[rule.readings[0]])
    log = tmp_path / "run" / "steps.steplog"
    steps = len(list(LogReader(log).records())) if log.exists() else 0
    assert steps == (len(few.train) // 32 if rule.takes.log == "yes" else 0)


@each_rule
def test_an_optimiser_and_a_schedule_of_torch_take_the_steps_where_a_rule_says_so(name, few):
    rule, rates = able(name), []
    options, readings = Options(epochs=1, batch=32), [rule.readings[0]]

    def factory(groups):
        return torch.optim.SGD(groups, lr=1e-2, momentum=0.9)

    def schedule(optimizer):
        made = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        rates.append(made)
        return made

    if rule.takes.optimizer:
        run = train(rule, few, options, optimizer=factory, scheduler=schedule, readings=readings)
        still = train(rule, few, options, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0), readings=readings)
        own = train(rule, few, options, readings=readings)
        assert rates[0].get_last_lr()[0] == pytest.approx(1e-2 * 0.5**run.step)
        moved, start, usual = (list(trained(each.net).values()) for each in (run, still, own))
        assert any(not torch.equal(one, other) for one, other in zip(moved, start, strict=True))
        assert any(not torch.equal(one, other) for one, other in zip(moved, usual, strict=True))
    else:
        for given in ({"optimizer": factory}, {"scheduler": schedule}):
            with pytest.raises(InputError, match=f"for rules that step along gradients.*{rule.name}"):
                train(rule, few, options, **given)


@each_rule
def test_a_loop_of_one_s_own_can_leave_a_log_where_a_rule_says_so(name, tmp_path):
    rule = {"evolution": Evolution(noise_kind="full-rank", per="group")}.get(name, able(name, module="any"))
    assert (support_of(RULES[name])["own_loop"] == "any") == (trains_any(rule) and name != "noise-step")
    if name == "noise-step":  # local losses on stages by default; weight probes take any module
        rule = NoiseStep(estimator="weight-probes", schedule="constant", probes=8)
    if not trains_any(rule):
        return
    model, log = nn.Linear(3, 2), tmp_path / "own.steplog"
    model = ternarize(model, Noise(0)) if name == "noise-step" else model
    logged = rule.takes.log in ("yes", "own loop")
    try:
        with attach(model, rule, log=log) as step:
            for _ in range(2):
                step(lambda: model(torch.ones(4, 3)).square().mean())
        assert len(list(LogReader(log).records())) == 2
    except InputError:
        assert not logged
    else:
        assert logged


BY_CHOICE = {
    "flips": NoPropDT(solver="noise-step", blocks=1, hidden=(16,), flip_share=0.05),
    "rank-1": Evolution(hidden=(8,)),
    "full-rank": Evolution(hidden=(8,), noise_kind="full-rank", per="group"),
    "sparse": Evolution(hidden=(8,), noise_kind="sparse", per="group"),
}


@pytest.mark.parametrize("rule", BY_CHOICE.values(), ids=BY_CHOICE)
def test_what_a_rule_says_of_log_and_optimiser_follows_its_hyper_parameters(rule, tmp_path, few):
    train(rule, few, Options(steps=2, batch=32, out=tmp_path / "run"), readings=[rule.readings[0]])
    assert (tmp_path / "run" / "steps.steplog").exists() == (rule.takes.log == "yes")
    assert rule.takes.optimizer == (rule is not BY_CHOICE["flips"])
    if not rule.takes.optimizer:
        asked = []
        with pytest.raises(InputError, match="the steps of noprop-dt with solver = noise-step are moves"):
            train(rule, few, Options(steps=2, out=tmp_path / "own"), optimizer=asked.append)
        assert not asked
        assert not (tmp_path / "own").exists()


def test_the_table_names_every_rule_with_what_it_takes(capsys):
    main(["rules"])
    shown = capsys.readouterr().out
    assert "module of yours" in shown
    table = shown.split("module of yours", 1)[1]
    assert "; yes with --solver noise-step" in table
    assert "; yes with --noise-kind full-rank or sparse" in table
    for name in RULES:
        found, row = support_of(RULES[name]), next(line for line in table.splitlines() if line.startswith(f"{name} "))
        assert ", ".join(found["targets"]) in row
        assert row.split()[-1] == ("yes" if found["true_gradient"] else "no")


def test_the_list_of_rules_takes_a_class_of_the_user_s_and_is_shown_as_a_dict():
    assert repr(RULES) == repr(dict(RULES))
    RULES["mine"] = RULES["spsa"]
    try:
        assert RULES["mine"] is RULES["spsa"]
        assert "mine" in list(RULES)
    finally:
        del RULES["mine"]
    assert "mine" not in RULES
