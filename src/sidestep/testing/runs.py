"""Checks of what lasts: hyper-parameters as a record, predictions, whole runs, resuming and replaying them."""

import dataclasses
import inspect
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules.record import hyper_parameters
from sidestep.steplog import LogReader, replay
from sidestep.testing.subject import Subject, copied, difference, expect
from sidestep.training import Options, train

__all__ = [
    "batch_of_one",
    "hyper_parameters_are_explained",
    "hyper_parameters_survive",
    "log_replays",
    "predictions_fit",
    "predictions_repeat",
    "rates_are_checked",
    "resume_has_the_same_bits",
]


def hyper_parameters_survive(subject: Subject) -> None:
    """A rule that was written down as JSON and made again equals the first, as `load_run` and `resume` need it."""
    rule = subject.rule
    record = json.loads(json.dumps(hyper_parameters(rule)))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    again = type(rule)(**values)
    expect(again == rule, f"the rule made again from its record is another one: {again}, and was {rule}")


def hyper_parameters_are_explained(subject: Subject) -> None:
    """Fields cannot be set anew, and each has a default and a string below it, its help text."""
    kind = type(subject.rule)
    fields = dataclasses.fields(subject.rule)
    expect(
        bool(vars(kind)["__dataclass_params__"].frozen), "the class must be a frozen dataclass, @dataclass(frozen=True)"
    )
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # typed into a prompt
        source = ""
    for field in fields:
        given = (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
        expect(given, f"the hyper-parameter {field.name} has no default")
        lines = source.split(f"    {field.name}: ", 1)[-1].splitlines()[1:2] if f"    {field.name}: " in source else []
        explained = not lines or lines[0].strip().startswith(('"""', "'''"))
        expect(explained, f"the hyper-parameter {field.name} has no string below it, which becomes its help text")


def rates_are_checked(subject: Subject) -> None:
    """A learning rate or weight decay that cannot work is refused by an InputError that names it."""
    for name, value in (("learning_rate", 0.0), ("learning_rate", float("nan")), ("weight_decay", 2.0)):
        if name not in {field.name for field in dataclasses.fields(subject.rule)}:
            continue
        try:
            dataclasses.replace(subject.rule, **{name: value})
        except InputError as error:
            expect(name in str(error), f"{name} = {value} is refused without its name: {error}")
        else:
            expect(False, f"{name} = {value} is taken; call super().__post_init__(), which checks it")


def predictions_fit(subject: Subject) -> None:
    """`predict` gives one tensor for each of `readings`, (examples, outputs): of classes, numbers that add up to 1."""
    rule, inputs, net = subject.rule, subject.inputs(), subject.net()
    count, wanted = len(subject.data.test), tuple(rule.readings)
    readings = rule.predict(net, inputs, Noise(0))
    unknown = [name for name in getattr(rule, "at_end", ()) if name not in wanted]
    expect(not unknown, f"at_end names {unknown}, which `readings` does not: {wanted}")
    expect(tuple(readings) == wanted, f"predict gives the readings {tuple(readings)}, and `readings` says {wanted}")
    for name, scores in readings.items():
        shape, needed = tuple(scores.shape), (count, subject.task.classes)
        expect(shape == needed, f"the reading {name} has shape {shape}, and must have {needed}")
        if subject.task.targets == "classes":
            sums = scores.float().sum(dim=1)
            proper = bool((scores >= 0).all()) and bool(torch.isclose(sums, torch.ones_like(sums), atol=1e-4).all())
            expect(proper, f"the reading {name} must hold probabilities, from 0 up, that add up to 1")


def predictions_repeat(subject: Subject) -> None:
    """`predict` leaves the net as it was, repeats to the bit, and is the same for the examples in two parts."""
    rule, inputs, net = subject.rule, subject.inputs(), subject.net()
    before = copied(net)
    first, again = (rule.predict(net, inputs, Noise(0)) for _ in range(2))
    name = difference(before, net.state_dict())
    expect(name is None, f"predict has changed {name} of the net")
    name = difference(first, again)
    expect(name is None, f"the reading {name} is not the same when it is asked for again; draw from `noise`")
    parts = [rule.predict(net, inputs[:10], Noise(0)), rule.predict(net, inputs[10:], Noise(0), start=10)]
    for name, scores in first.items():
        joined = torch.cat([part[name] for part in parts])
        same = torch.allclose(joined, scores, rtol=1e-3, atol=1e-4)
        expect(same, f"the reading {name} of an example depends on the others of its batch, or on where it stands")


def batch_of_one(subject: Subject) -> None:
    """One example at a time is trained on, unless batch norm or the rule itself (`batch_multiple`) needs more."""
    try:
        run = train(subject.rule, subject.data, Options(steps=2, batch=1, device="cpu"))
    except InputError as error:
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in subject.net().modules())
        several = getattr(subject.rule, "batch_multiple", ("", 1))[1] > 1
        expect(norms or several, f"a batch of one is refused, though nothing in the net needs two examples: {error}")
        return
    lost = [name for name, value in run.net.state_dict().items() if not bool(value.isfinite().all())]
    expect(not lost, f"after two steps of one example {lost[:1]} is not finite")


def resume_has_the_same_bits(subject: Subject) -> None:
    """A run that was stopped and resumed ends with the bits of one that was not."""

    def trained(folder: Path, **options: Any) -> None:
        train(subject.rule, subject.data, Options(batch=subject.size, device="cpu", out=folder, **options))

    with TemporaryDirectory() as place:
        whole, parts = Path(place) / "whole", Path(place) / "parts"
        trained(whole, epochs=2)
        trained(parts, epochs=1)
        trained(parts, epochs=2, resume=True)
        one, two = ((folder / "model.safetensors").read_bytes() for folder in (whole, parts))
    expect(one == two, "a resumed run ends with other weights; what a rule remembers belongs to net or optimiser")


def log_replays(subject: Subject) -> None:
    """Where the rule leaves a step log, taking its steps again without data gives the run's weights, to the bit."""
    if subject.rule.takes.log != "yes":
        return
    with TemporaryDirectory() as place:
        options = Options(epochs=1, batch=subject.size, device="cpu", out=Path(place) / "run")
        run = train(subject.rule, subject.data, options)
        log = Path(place) / "run" / "steps.steplog"
        expect(log.exists(), "`takes` says log = yes, but the updates are of a kind that no log keeps")
        net = subject.net(options.seed)
        taken = replay(net, subject.rule, subject.rule.optimizer(net), LogReader(log))
    expect(taken == run.step, f"the log has {taken} steps, and the run {run.step}")
    name = difference(run.net.state_dict(), net.state_dict())
    expect(name is None, f"the log's steps lead to other bits of {name}; apply may use the net and the update alone")
