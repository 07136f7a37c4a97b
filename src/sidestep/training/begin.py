"""The one door to a net before its first step: `begin` gives it with its optimiser and with the loop that trains it."""

from contextlib import nullcontext

from sidestep.data import DataSet
from sidestep.errors import InputError
from sidestep.nets.noprop.spread_blocks import building, moved
from sidestep.nets.user_modules import ImagePath
from sidestep.rules.protocol import Rule, Task
from sidestep.rules.untrained import untrained
from sidestep.steplog.header import digest_of
from sidestep.training.folder import RunFolder
from sidestep.training.loop import Loop
from sidestep.training.options import Compute, Options
from sidestep.training.own_optimizer import (
    OptimizerFactory,
    SchedulerFactory,
    check_kept,
    check_steps_along_gradients,
    made_optimizer,
    made_scheduler,
)
from sidestep.training.parts import Parts
from sidestep.training.state import State
from sidestep.training.unit_modes import check_units, move_units
from sidestep.training.unit_ranks import UnitRanks

__all__ = ["begin"]


def begin(  # long: what a run is made from
    rule: Rule,
    data: DataSet,
    options: Options,
    module: ImagePath | None = None,
    folder: RunFolder | None = None,
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    parts: Parts | UnitRanks | None = None,
) -> tuple[State, Loop]:
    """Return a new net with its optimiser, and the loop that trains it, on the device of the options.

    With `units = one-resident` the units are in temporary files, which `state.files.close` removes. With a folder they
    are still in memory: `move_units` puts them there, once the folder may be written to.

    Args:
        rule: the rule.
        data: the data set; the loop holds it on the device.
        options: seed, batch, device and so on.
        module: an image path of the user's own.
        folder: where the loop writes; nothing is written before it runs.
        optimizer: makes an optimiser from parameter groups, in place of the rule's own.
        scheduler: makes a learning-rate schedule for the optimiser.
        parts: what estimates a divided step; of units over ranks, only this rank's get weights.

    Raises:
        InputError: for options, data, module, units, optimiser or schedule that do not fit the rule.
    """
    _check_own(rule, options, optimizer, scheduler)
    compute = Compute.find(options.device, options.precision)
    check_units(rule, options.units, compute.device)
    with building(parts.share, digest_of) if isinstance(parts, UnitRanks) else nullcontext():
        net = untrained(rule, Task.of(data), options.seed, data.train, module)
    net = moved(net, compute.device)
    own = rule.optimizer(net)
    state = State(net, made_optimizer(optimizer, own), own_optimizer=optimizer is not None)
    logged = folder is not None and optimizer is None and rule.takes.log == "yes"
    state.scheduler = made_scheduler(scheduler, state.optimizer, logged)
    if folder:
        check_kept(optimizer, own, state.scheduler)
    if options.average:
        state.check_average()
    if folder is None:
        move_units(state, rule, options.units, None)
    loop = Loop(rule, data.to(compute.device), options, compute, folder)
    loop.parts = parts
    return state, loop


def _check_own(
    rule: Rule, options: Options, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None
) -> None:
    """Refuse an optimiser or a schedule of the user's that the rule or another option leaves no room for."""
    for what, factory in (("optimizer", optimizer), ("scheduler", scheduler)):
        if factory is not None:
            check_steps_along_gradients(rule, what)
    if scheduler is not None and (options.decay != "none" or options.warmup):
        raise InputError(
            f"scheduler sets the learning rate of every step, and so do decay = {options.decay} and warmup = "
            f"{options.warmup}: give one of the two"
        )
    if optimizer is not None and options.units == "one-resident":
        raise InputError(
            "units = one-resident moves the memory of the rule's own optimiser into files, and does not know one of "
            "yours: leave optimizer out, or take units = in-turn"
        )
