"""Optimisers and schedules of torch's by factory: the steps they take, going on to the same bits, and refusals."""

import pytest
import tomllib
import torch
from torch.optim import lr_scheduler

import sidestep
from sidestep import Options, data, load_run, train
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules import SPSA, Backprop, Hebbian, LocalLoss, NoPropDT
from sidestep.training import STOP
from sidestep.training.begin import begin


@pytest.fixture(scope="module")
def few():
    images, labels = Noise(0).normal(128 * 64).view(128, 1, 8, 8), torch.arange(128) % 4
    return data.from_arrays(images.numpy(), labels.numpy(), validation=0)


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def adam_by_shape(groups):
    every = [p for group in groups for p in group["params"]]
    return torch.optim.AdamW(
        [
            {"params": [p for p in every if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0, "lr": 1e-2},
        ],
        lr=1e-3,
    )


class StopAt:
    """An observer that ends the training once, as another process would be ended."""

    def __init__(self, step):
        self.step = step

    def on_step(self, event):
        return STOP if event.step == self.step else None


SCHEDULES = {
    "milestones": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 6]),
    "two": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 4), lr_scheduler.CosineAnnealingLR(optimizer, 6)], [4]
    ),
    "cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9, cycle_momentum=False),
}
RULES = [
    Backprop(net="mlp", hidden=(8,)),
    LocalLoss(hidden=(8, 8)),
    SPSA(hidden=(8,)),
    Hebbian(hidden=(8, 8)),
    NoPropDT(blocks=2),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("factory", [sgd, adam_by_shape, torch.optim.Adagrad, torch.optim.Adafactor])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(few, tmp_path, factory, schedule):
    rule, given = RULES[0], {"optimizer": factory, "scheduler": SCHEDULES[schedule]}
    whole = train(rule, few, Options(steps=8, batch=32), **given)
    train(rule, few, Options(steps=8, batch=32, out=tmp_path / "run"), observers=[StopAt(5)], **given)
    parts = train(rule, few, Options(steps=8, batch=32, out=tmp_path / "run", resume=True), **given)
    assert parts.step == whole.step == 8
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, parts.net.state_dict()[name]), name


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_kind_of_rule_goes_on_to_the_same_bits(few, tmp_path, rule):
    given = {"optimizer": sgd, "scheduler": SCHEDULES["milestones"], "readings": [rule.readings[0]]}
    whole = train(rule, few, Options(steps=6, batch=32), **given)
    train(rule, few, Options(steps=6, batch=32, out=tmp_path / "run"), observers=[StopAt(4)], **given)
    assert not (tmp_path / "run" / "steps.steplog").exists()
    parts = train(rule, few, Options(steps=6, batch=32, out=tmp_path / "run", resume=True), **given)
    assert all(torch.equal(v, parts.net.state_dict()[name]) for name, v in whole.net.state_dict().items())


def test_the_steps_are_those_of_a_loop_of_one_s_own(few):
    def model():
        with Noise(7).torch_seeded():
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))

    options = Options(steps=5, batch=32, precision="float32")
    given = {"optimizer": sgd, "scheduler": SCHEDULES["milestones"]}
    run = train(Backprop(net="mlp"), few, options, model=model, **given)
    own = model()
    optimizer = sgd([{"params": list(own.parameters())}])
    scheduler = SCHEDULES["milestones"](optimizer)
    _, loop = begin(Backprop(net="mlp", hidden=(8,)), few, options)
    for step in range(5):
        batch = loop.batch(step)
        torch.nn.functional.cross_entropy(own(batch.inputs), batch.targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    for one, other in zip(run.net.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_schedule_for_the_rule_s_own_optimiser_leaves_the_log_that_replays(few, tmp_path):
    given = {"scheduler": SCHEDULES["milestones"]}
    rule = SPSA(hidden=(8,), learning_rate=0.05)  # without one the running means of its step size are not in the log
    run = train(rule, few, Options(steps=8, batch=32, out=tmp_path / "run"), **given)
    other = train(rule, few, Options(steps=8, batch=32))
    replayed = sidestep.steplog.rebuild(tmp_path / "run" / "steps.steplog").net
    assert all(torch.equal(value, replayed.state_dict()[name]) for name, value in run.net.state_dict().items())
    assert any(not torch.equal(value, other.net.state_dict()[name]) for name, value in run.net.state_dict().items())
    with pytest.raises(InputError, match=r"OneCycleLR moves other options.*cycle_momentum=False"):
        train(rule, few, Options(steps=8, batch=32, out=tmp_path / "other"),
              scheduler=lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9))  # fmt: skip
    (tmp_path / "run" / "state.safetensors").unlink()
    (tmp_path / "run" / "model.safetensors").unlink()
    further = train(rule, few, Options(steps=10, batch=32, out=tmp_path / "run", resume=True), **given)
    whole = train(rule, few, Options(steps=10, batch=32), **given)
    assert all(torch.equal(value, further.net.state_dict()[name]) for name, value in whole.net.state_dict().items())


def test_a_run_says_what_it_was_trained_with_and_asks_for_it_again(few, tmp_path):
    rule, place = RULES[0], {"batch": 32, "out": tmp_path / "run"}
    run = train(rule, few, Options(steps=3, **place), optimizer=sgd, scheduler=SCHEDULES["milestones"])
    with open(tmp_path / "run" / "config.toml", "rb") as file:
        written = tomllib.load(file)
    assert (written["optimizer"]["name"], written["optimizer"]["class"]) == ("sgd", "SGD")
    assert (written["optimizer"]["lr"], written["optimizer"]["momentum"]) == (0.05, 0.9)
    assert written["scheduler"]["class"] == "MultiStepLR"
    more = Options(steps=6, resume=True, **place)
    with pytest.raises(InputError, match=r"optimizer = sgd, of its own.*train\(\.\.\., optimizer=sgd\)"):
        train(rule, few, more)
    with pytest.raises(InputError, match="scheduler = "):
        train(rule, few, more, optimizer=sgd)
    with pytest.raises(InputError, match=r"optimizer\.momentum: was 0\.9, given 0"):
        train(rule, few, more, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05),
              scheduler=SCHEDULES["milestones"])  # fmt: skip
    train(rule, few, Options(steps=3, batch=32, out=tmp_path / "plain"))
    with pytest.raises(InputError, match=r"optimizer\.class: was absent, given SGD"):
        train(rule, few, Options(steps=6, batch=32, out=tmp_path / "plain", resume=True), optimizer=sgd)
    loaded = load_run(tmp_path / "run")  # predictions need neither
    assert all(torch.equal(value, loaded.net.state_dict()[name]) for name, value in run.net.state_dict().items())


def test_units_in_turn_take_the_same_steps(few):
    rule = LocalLoss(hidden=(8, 8))
    together, in_turn = (
        train(rule, few, Options(steps=4, batch=32, units=units), optimizer=sgd) for units in ("together", "in-turn")
    )
    for name, value in together.net.state_dict().items():
        torch.testing.assert_close(value, in_turn.net.state_dict()[name])


class Forgetful(torch.optim.SGD):
    """An optimiser that remembers something that no file of plain values holds."""

    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["seen"] = {1, 2}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": torch.optim.SGD([torch.zeros(2)], lr=0.1)}, "optimizer must be a function.*got SGD"),
        ({"optimizer": lambda groups: None}, "must make an optimiser of torch's.*got NoneType"),
        (
            {"optimizer": lambda groups: torch.optim.LBFGS([p for g in groups for p in g["params"]])},
            "LBFGS asks for a loss",
        ),
        ({"optimizer": lambda groups: sgd(groups[:1])}, "of 4 of the 8 parameters"),
        ({"optimizer": Forgetful}, "what Forgetful remembers cannot be kept"),
        ({"scheduler": lambda optimizer: 3}, "must make a schedule of torch's.*got int"),
        ({"scheduler": lr_scheduler.ReduceLROnPlateau}, "ReduceLROnPlateau waits for a score"),
        ({"scheduler": SCHEDULES["two"], "decay": "cosine"}, "sets the learning rate of every step"),
        ({"optimizer": sgd, "units": "one-resident"}, "one-resident moves the memory of the rule's own"),
    ],
)
def test_what_cannot_take_the_steps_is_refused_and_nothing_is_written(few, tmp_path, given, said):
    options = Options(steps=3, batch=32, out=tmp_path / "run",
                      **{name: given[name] for name in ("decay", "units") if name in given})  # fmt: skip
    own = {name: given[name] for name in ("optimizer", "scheduler") if name in given}
    with pytest.raises(InputError, match=said):
        train(LocalLoss(hidden=(8, 8), norm="none"), few, options, **own)
    assert not (tmp_path / "run").exists()
