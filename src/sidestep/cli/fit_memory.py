"""`sidestep fit-memory`: which rules and modes fit into a budget of memory, and when backprop is the better choice."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from sidestep.bench.memory.fit import (
    Way,
    fit_memory,
    fit_record,
    fit_table,
    parse_bytes,
    small_batches,
    verdict,
)
from sidestep.bench.memory.model_ways import ModelWork, fit_model, model_record, model_table, recommended
from sidestep.bench.memory.step_cost import Work
from sidestep.bench.report import Table
from sidestep.checks import check_range
from sidestep.cli.help import named_apart
from sidestep.cli.options import DataOptions, last_value, rule_named
from sidestep.cli.output import fail, show, show_json, show_line, show_table
from sidestep.cli.parse import parsed_groups
from sidestep.cli.training_options import takes
from sidestep.cli.user_modules import ModuleOfFile
from sidestep.data import load, names
from sidestep.data.task import Task
from sidestep.errors import InputError
from sidestep.rules import RULES, SPSA, Backprop, ForwardGradient, Rule
from sidestep.rules.protocol import UnitByUnit
from sidestep.rules.record import hyper_parameters
from sidestep.training import Compute, Options
from sidestep.wording import suggestion

__all__ = ["fit_memory_command"]

_HELP = """\
Say which ways to train a net fit into a budget of memory: the rule with its units together, in turn, or one resident,
and back-propagation over the same net, plain, with activation checkpointing, and in micro-batches. Each way takes a few
steps on random images, in a process of its own; nothing is downloaded or kept. With --module: ways to train a model of
your own on its own data, by memory and by the loss after equal processor time.
"""
_EXAMPLES = 4096  # that a model of the user's learns, and is measured on
_MICRO = (2, 4, 8, 16, 32)


@takes("fit-memory", Options)
@dataclass(frozen=True)
class FitOptions:
    """What is to fit, and where."""

    budget: str = ""
    """Memory for the net, optimiser, gradients and activations, without Python, torch and the data: 512MiB, 2GB."""
    rule: str = "noprop-dt"
    """The rule; its own options, such as --blocks, can be given too."""
    batch: int = 128
    """Images per step."""
    steps: int = 2
    """Steps of each measurement, after a first that makes the optimiser's memory."""
    module: str | None = None
    """A whole model of your own, FILE.py:NAME, in place of a rule's net; with --data, whose examples it is given."""
    seconds: float = 5.0
    """With --module: processor seconds that every way trains for, before its loss is taken."""
    json: bool = False
    """Print the result as one JSON object on the last line of standard output."""


@takes("fit-memory", DataOptions)
@dataclass(frozen=True)
class ShapeOptions:
    """Which images the net is for."""

    data: str = "cifar10"
    """Name of the data set whose image shape and number of classes are taken; with --module, name or path of the set
    that the model learns."""
    image_size: int | None = None
    """Height and width of the images, where the data set has several."""


def fit_memory_command(arguments: list[str]) -> None:
    """Parse the options, measure, and print what fits."""
    kind = RULES[rule_named(last_value(arguments, "--rule") or "noprop-dt")]
    rule, given, shape = _parse(kind, arguments)
    if not given.budget:
        raise InputError("give the memory that training may take, for instance --budget 512MiB")
    budget = parse_bytes(given.budget)
    if given.module:
        _fit_module(rule, given, shape, budget, arguments)
        return
    check_range(1, 1000, steps=given.steps)
    ways = _ways(rule, given, shape)
    rows = fit_memory(ways, budget, show_line, given.steps)
    asked = {**dataclasses.asdict(given), **dataclasses.asdict(shape)}
    asked = {key: value for key, value in asked.items() if key not in ("json", "budget")}
    whys = [f"{row.label}: {row.why}" for row in rows if row.why]
    note = "A step is one update of all weights from one batch; what it teaches differs between rules."
    record = fit_record(rows, budget, {**asked, "options": hyper_parameters(rule)}) if given.json else None
    fits = any(row.fits(budget) for row in rows)
    _ended(record, fit_table(rows, budget), whys, verdict(rows, budget), note, fits)


def _fit_module(rule: Rule, given: Any, images: ShapeOptions, budget: int, arguments: list[str]) -> None:
    """Measure the ways to train a model of the user's, and recommend one."""
    if last_value(arguments, "--data") is None:
        raise InputError("--module needs examples that the model learns: --data with a name or a path")
    if last_value(arguments, "--rule") is not None or rule != type(rule)():
        raise InputError("with --module every way has its own settings; leave --rule and its options out")
    check_range(1, 1 << 20, batch=given.batch)
    check_range(0, 3600, seconds=given.seconds)
    make, data = ModuleOfFile(given.module), load(images.data, size=images.image_size)
    rows = slice(0, _EXAMPLES)
    work = ModelWork(
        make, Task.of(data), torch.as_tensor(data.train.images[rows]), data.train.targets[rows], given.batch,
        {"forward gradient": ForwardGradient(kind="weights"), "zeroth order": SPSA()}, given.seconds,
    )  # fmt: skip
    found = fit_model(work, show_line)
    asked = {"module": given.module, "data": images.data, "batch": given.batch, "seconds": given.seconds}
    whys = [f"{way.label}: {way.why}" for way in found if way.why]
    note = "Learning rates are defaults: a way that is tuned may end lower."
    record = model_record(found, budget, asked) if given.json else None
    fits = any(way.fits(budget) for way in found)
    _ended(record, model_table(found, budget), whys, recommended(found, budget), note, fits)


def _ended(  # long: all that is said at the end
    record: dict[str, Any] | None, table: Table, whys: list[str], verdict: str, note: str, fits: bool
) -> None:
    """Print a record, or else the table with what is to be said of it; end with 1 where nothing fits."""
    if record is not None:
        show_json(record)
    else:
        show_table(table.title, table.columns, table.rows)
        show("", *whys, verdict, note)
    if not fits:
        fail(verdict, 1)


def _parse(kind: type[Rule], arguments: list[str]) -> tuple[Rule, Any, ShapeOptions]:
    groups = {"run": (named_apart(FitOptions, kind), None), "data": (ShapeOptions, None), "rule": (kind, None)}
    options, shape, rule = parsed_groups(groups, "sidestep fit-memory", arguments, _HELP)
    return rule, options, shape


def _ways(rule: Rule, given: Any, images: ShapeOptions) -> list[Way]:
    """Return the rule's own ways, and back-propagation's over the same net."""
    known = {known.name: known for known in names()}
    if images.data not in known:
        said = suggestion(images.data, known, f"there are: {', '.join(known)}")
        raise InputError(f"--data must be the name of a known set, got {images.data!r}: {said}")
    small_batches(given.batch)
    found = known[images.data]
    shape = found.image_shape(images.image_size or found.sizes[0])
    compute = Compute.find(given.device, given.precision)
    plain = Work(
        rule, shape, len(found.class_names), given.batch, device=str(compute.device), precision=compute.precision,
        average=given.average,
    )  # fmt: skip
    modes = ("together", "in-turn", "one-resident") if isinstance(rule, UnitByUnit) else ("together",)
    own = [Way(f"{rule.name}, {units}", dataclasses.replace(plain, units=units)) for units in modes]
    return own + _baselines(rule, plain)


def _baselines(rule: Rule, work: Work) -> list[Way]:
    """Return back-propagation over the net that the rule trains, or the nearest that it has."""
    values, ways = _net_of(rule), []
    for checkpointing in (False, True):
        label = "backprop, checkpointed" if checkpointing else "backprop"
        try:
            plain = Backprop(**{**values, "activation_checkpointing": checkpointing})
        except InputError as error:  # checkpointing needs blocks or stages; other nets go without
            ways.append(Way(label, work, own=False, unsupported_reason=f"not there: {error}"))
            continue
        like = f"{rule.name}, together" if plain == rule else label
        if plain != rule:
            ways.append(Way(label, dataclasses.replace(work, rule=plain), own=False))
        for micro in (count for count in _MICRO if work.batch >= 2 * count and work.batch % count == 0):
            cut = dataclasses.replace(work, rule=dataclasses.replace(plain, accumulate=micro))
            ways.append(Way(f"{label}, {micro} micro-batches", cut, False, micro, like))
    return [way for way in ways if way.work.rule != rule or way.unsupported_reason]


def _net_of(rule: Rule) -> dict[str, Any]:
    """Return the options by which Backprop makes the rule's net, with its recipe."""
    own, ours = ({field.name for field in dataclasses.fields(kind)} for kind in (rule, Backprop))
    values = {name: getattr(rule, name) for name in own & ours - {"activation_checkpointing", "accumulate"}}
    if values.get("learning_rate", 0) is None:  # a rule whose steps find their size
        del values["learning_rate"]
    if "blocks" not in own:  # one block, which the rule runs many times; or layers
        values |= {"blocks": 1} if "path" in own else {"net": values.get("net", "mlp")}
    if {"width", "depth"} <= own:  # residual blocks, which it has not: dense layers, as many and as wide
        width, depth = (getattr(rule, name) for name in ("width", "depth"))
        values |= {"net": "mlp", "hidden": (width,) * depth, "norm": "layer"}
    if values.get("net") != "mlp":  # the other nets have norms of their own
        values.pop("norm", None)
    elif values.get("norm") in (True, False, "auto"):  # a rule's only norm of dense layers is that over features
        values["norm"] = "layer" if values["norm"] else "none"
    return values
