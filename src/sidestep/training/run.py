"""`train`: from a rule and data to a trained run."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidestep.checks import check_multiple
from sidestep.data import DataSet
from sidestep.data.objective import Objective
from sidestep.errors import InputError
from sidestep.keywords import known_keywords
from sidestep.nets.user_modules import ImagePath
from sidestep.rules.protocol import HasBatchMultiple, Rule, Task
from sidestep.rules.record import rule_record
from sidestep.rules.shared.whole_model import on_whole_model
from sidestep.steplog import Header, Recorder
from sidestep.training.alignment_watch import AlignmentMonitor, check_alignment_options
from sidestep.training.attached_rule import as_objective
from sidestep.training.begin import begin
from sidestep.training.compatibility import data_record, in_saved_units
from sidestep.training.early_stop import EarlyStop
from sidestep.training.evaluate import check_readings, check_rule
from sidestep.training.folder import RunFolder
from sidestep.training.given import given_data, given_options, settled_options
from sidestep.training.hosting import hosted_options, hosting, welcome_of
from sidestep.training.loop import Loop
from sidestep.training.observers import End, Observers, check_observers
from sidestep.training.options import Compute, Options
from sidestep.training.own_optimizer import OptimizerFactory, SchedulerFactory, own_record
from sidestep.training.parts import Parts, parts_of, with_parts
from sidestep.training.progress import Progress, Reporting, Silent
from sidestep.training.ranks import check_same_everywhere, share_kept, share_start, spread_units
from sidestep.training.result import finish
from sidestep.training.resume import log_identity, restore
from sidestep.training.signs import WITHOUT
from sidestep.training.single import check_single
from sidestep.training.spread_run import ended_run
from sidestep.training.state import State
from sidestep.training.stopping import Stopped, stop_on_signals
from sidestep.training.trained import Run
from sidestep.training.unit_modes import move_units
from sidestep.training.unit_ranks import UnitRanks
from sidestep.version import __version__
from sidestep.wording import counted
from sidestep.world import Host, World, world_here

__all__ = ["train"]


@known_keywords(Options)
def train(  # long: rule, data and options, three hooks for own code, and what is read at the end
    rule: Rule,
    data: DataSet | str | os.PathLike[str] | Iterable[Any] = "digits",
    options: Options | None = None,
    *,
    module: ImagePath | None = None,
    model: ImagePath | None = None,
    objective: Objective | Callable[[Tensor, Tensor], Tensor] | None = None,
    steps: int | None = None,
    target: str | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    source: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    observers: Sequence[Any] = (),
    readings: Sequence[str] | None = None,
    host: Host | None = None,
) -> Run:
    """Train a net by a rule, and evaluate it.

    On Linux, this tells the C library to keep freed memory for the rest of the process (`measure.keep_freed_memory`),
    which saves a fifth of the time, unless units take their steps one after another, to save memory. The train
    accuracy is counted on the first 10,000 images of the split. Temperatures, which make probabilities of what the
    readings give, are fitted on up to 3,000 validation images; with fewer than 50 there are none.

    Of several processes that a launcher such as torchrun has started, or that have joined a process group, each
    estimates some parts of every step; the first alone writes, and tells `progress` and `observers`.

    Args:
        rule: one of `sidestep.rules`, with its hyper-parameters.
        data: a data set, the name of one, the path to one (see `sidestep.data.load`), or a loader (`data.from_loader`).
        options: epochs, batch, seed, folder and so on; without a folder (`out`) nothing is written.
        module: an image path of your own, (batch, channels, height, width) -> (batch, ...): a function or class that
            makes a module, or a module, which is copied for every block and *started anew* (to keep weights that you
            have loaded, give a function).
        model: a whole model of your own, inputs -> outputs, or a function that makes one, for the rules that train any
            module: spsa, evolution, forward-gradient, backprop, and noise-step with weight probes (ternary ones). It is
            trained as it is given, with its weights.
        objective: a loss of your own, (outputs, targets) -> (batch,), in place of that of the data's targets.
        steps: training steps, in place of those that the options ask for.
        target: of a table in a file, `data="iris.csv"`, the column to be predicted.
        optimizer: makes an optimiser of torch's from parameter groups, in place of the rule's own, for rules that step
            along gradients: `lambda groups: torch.optim.SGD(groups, lr=0.1)`. Its steps are not logged.
        scheduler: makes a schedule of torch's for the optimiser, stepped after every training step, in place of
            `decay` and `warmup`: `lambda optimizer: StepLR(optimizer, 1000)`.
        source: how `data` can be loaded again, written to the run's configuration.
        progress: told of steps and epochs, of the evaluation and in sentences; silent by default.
        observers: objects with any of the methods on_begin, on_step, on_epoch and on_end, told what `Begin`, `StepEnd`,
            `EpochEnd` and `End` hold; the training ends at once, and is evaluated, where one returns `STOP`.
        readings: of the rule's, which are calibrated and counted at the end beside its first; by default `rule.at_end`.
        host: where others may join, `sidestep.world.Host(address, token)`, and take some parts of every step.

    Returns:
        The run: net, predictions, and `result` with the accuracies.

    Raises:
        InputError: for options, data or modules that do not fit together; BusyError: if another process writes there.
        CheckpointError: if a file in the folder is damaged, was changed, or is a link.
        NonFiniteError: if the loss stops being a number; RankError: if another rank has failed or has gone.
        ObserverError, BatchError, StepError: if an observer, a loader, or other code of yours, such as a loss or a
            model, raises an error; the run is saved, and can be resumed.
        Stopped: after Ctrl-C, SIGTERM or SIGHUP, when the step (or, at the end, the batch of the evaluation) under way
            is done and what a resumed run needs is written.
    """
    options = given_options(options, steps)
    check_rule(rule)
    check_observers(observers)
    data = given_data(data, loaders=True, target=target)
    data = data if objective is None else dataclasses.replace(data, objective=as_objective(objective))
    rule, module = (rule, module) if model is None else (on_whole_model(rule, module), model)
    options = settled_options(options, data)
    _check(rule, data, options, readings or [])
    with ExitStack() as stack:
        world, together = world_here(), stack.enter_context(ExitStack())
        together.enter_context(world.together())  # until each rank goes on alone
        _begin_loader(data, options, world)
        folder = RunFolder(Path(options.out)) if options.out else None
        data = in_saved_units(folder, data) if folder and options.resume else data
        folder, progress = (folder, progress or Silent()) if world.leads else (None, Silent())
        task, batch = Task.of(data), min(options.batch, len(data.train))
        options = with_parts(_followed(options, rule, data, world, optimizer, host), rule, world, batch, bool(host))
        record = data_record(data, source or {})
        parts = parts_of(options, rule, world)
        state, loop = begin(rule, data, options, module, folder, optimizer, scheduler, parts)
        data = loop.data  # on the device
        config = _config(rule, task, options, loop.compute, record, module)
        config |= _own_records(optimizer, scheduler, state)
        check_single(rule, state.net, task, batch)
        check_same_everywhere(world, config, state.net, lambda said: progress.notice(said))
        welcome = welcome_of(config, state.net, data) if host else b""
        spread_units(loop.parts, rule, state)
        kept_metrics, recorder = 0, None
        if folder:
            stack.enter_context(folder.prepared(config, options.resume, options.overwrite, progress))
            move_units(state, rule, options.units, folder.path)
            own, name, same = _module_name(module), data.name, log_identity(options, len(data.train))
            recorder = Recorder(folder.log_file, lambda net: Header.of(net, rule, task, name, options.seed, own, same))
            kept_metrics = restore(folder, options, state, rule, recorder, progress)
        share_start(loop.parts, world, folder, state)
        # a log gives the weights that trained, no average, and is replayed by the rule's own optimiser
        loop.recorder = None if options.average or optimizer else recorder
        _check_left(loop, state)
        _take_over(loop, state, recorder, config)
        loop.parts = together.enter_context(hosting(host, loop, progress, welcome, state.net)) if host else loop.parts
        told = _observers(loop, progress, observers)
        return _to_its_end(loop, state, kept_metrics, progress, told, readings, together)


def _followed(
    options: Options, rule: Rule, data: DataSet, world: World, optimizer: OptimizerFactory | None, host: Host | None
) -> Options:
    """Return the options, for a run that others may join such that they can."""
    return hosted_options(options, rule, data, world, optimizer is not None) if host else options


def _own_records(
    optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None, state: State
) -> dict[str, Any]:
    yours = {"optimizer": (optimizer, state.optimizer), "scheduler": (scheduler, state.scheduler)}
    return {name: own_record(*each) for name, each in yours.items()}


def _take_over(loop: Loop, state: State, recorder: Recorder | None, config: Mapping[str, Any]) -> None:
    """Let the folder of a run that goes on be written to again."""
    if loop.folder and recorder and loop.options.resume:
        loop.folder.take_over(config, finished=state.step == loop.total_steps)
        recorder.open()


def _to_its_end(  # long: what runs, and who is told
    loop: Loop,
    state: State,
    kept_metrics: int,
    progress: Progress,
    observers: Observers,
    readings: Sequence[str] | None,
    together: ExitStack,
) -> Run:
    """Take the steps that are left, evaluate what came of them, and keep it in the folder, if there is one."""
    if isinstance(loop.parts, Parts):
        if loop.parts.signs and loop.parts.signs.window != 1 and state.step and not state.unsent:
            progress.notice(WITHOUT)
        loop.parts.restore(state.unsent.items())
        state.unsent = {}
    with observers.of_the_end(state):
        with stop_on_signals() as stop:
            loop.run(state, kept_metrics, observers, stop)
        if isinstance(loop.parts, UnitRanks):
            loop.parts.settle(state, stop)
        else:
            share_kept(loop.world, state)
            together.close()
        if stop.requested:
            raise Stopped(f"stopped after step {state.step} of {loop.total_steps}", state.step, stop.signal_number)
        state.adopt_average()
        state.adopt_kept()
        run = ended_run(loop, state)
        run.result, run.calibration = finish(loop, state, progress, readings)
        if isinstance(loop.parts, UnitRanks) and not loop.options.out:
            loop.parts.whole(state)  # nobody has all of it
        together.close()
        if state.files:
            state.files.leave()
        if loop.folder:
            loop.folder.save_result(run.result)
        observers.end(End(state.step, state.seconds, "finished", run.result))
    return run


def _observers(loop: Loop, progress: Progress, given: Sequence[Any]) -> Observers:
    """Return all that are told of a run: what its options ask for, then what the user gave.

    Of several ranks the first tells the user's, and measures alignments; all of them stop early by the same numbers.
    """
    options, leads = loop.options, loop.world.leads
    found: list[Any] = [] if type(progress) is Silent else [Reporting(progress)]
    if options.align and leads:
        found.append(AlignmentMonitor(loop.rule, loop.data, options, loop.compute))
    if options.patience:
        found.append(EarlyStop(options.patience))
    return Observers([*found, *(given if leads else ())])


def _check(rule: Rule, data: DataSet, options: Options, readings: Sequence[str]) -> None:
    """Refuse what cannot work before the data are looked at."""
    check_readings(rule, readings)
    if isinstance(rule, HasBatchMultiple):
        check_multiple(min(options.batch, len(data.train)), *rule.batch_multiple)
    check_alignment_options(rule, data, options)
    task, patience = Task.of(data), options.patience
    if options.augment != "none" and task.inputs != "image":
        raise InputError(
            f"augment = {options.augment} moves and mirrors pictures, and the data have {task.inputs}: leave it at none"
        )
    if patience and not len(data.validation):
        raise InputError(f"patience = {patience} needs {task.example}s that are not trained on: give validation = 0.1")


def _begin_loader(data: DataSet, options: Options, world: World) -> None:
    """Bring a loader to its first batch, before anything is removed for the new run; where one goes on, it waits."""
    if data.feed and world.size > 1:
        raise InputError(
            f"{data.name} would give each of {world.size} processes batches of its own; train in one process, or give "
            "data that all can draw from: arrays, or memory maps"
        )
    if data.feed and not (options.out and options.resume):
        data.feed.begin(0)


def _config(
    rule: Rule, task: Task, options: Options, compute: Compute, source: Mapping[str, Any], module: ImagePath | None
) -> dict[str, Any]:
    written = {
        key: value for key, value in dataclasses.asdict(options).items() if key not in ("out", "resume", "overwrite")
    }
    return {
        "rule": rule_record(rule),
        "data": {key: str(value) if isinstance(value, Path) else value for key, value in source.items()},
        "task": {key: list(v) if isinstance(v, tuple) else v for key, v in task.record().items()},
        "train": {**written, "device": str(compute.device), "precision": compute.precision},
        "module": None if module is None else {"name": _module_name(module)},
        "versions": {"sidestep": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()},
    }


def _check_left(loop: Loop, state: State) -> None:
    """Refuse to train for fewer steps than were taken already."""
    if state.step > loop.total_steps:
        raise InputError(
            f"{loop.options.out} has been trained for {counted(state.step, 'step')} already, more than the "
            f"{loop.total_steps:,}{_end(loop.options)}"
        )
    if loop.data.feed and state.step < loop.total_steps:
        loop.data.feed.begin(state.step, state.loader)


def _end(options: Options) -> str:
    if options.steps is not None:
        return "; give more --steps"
    return f" of {counted(options.epochs or 0, 'epoch')}; give more --epochs"


def _module_name(module: ImagePath | None) -> str | None:
    return None if module is None else getattr(module, "__qualname__", type(module).__qualname__)
