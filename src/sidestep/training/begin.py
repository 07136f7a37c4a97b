"""The one door to a net before its first step: `begin` gives it with its optimiser and with the loop that trains it."""

from sidestep.data import DataSet
from sidestep.nets.user_modules import ImagePath
from sidestep.rules.protocol import Rule, Task
from sidestep.rules.untrained import untrained
from sidestep.training.folder import RunFolder
from sidestep.training.loop import Loop
from sidestep.training.options import Compute, Options
from sidestep.training.state import State
from sidestep.training.unit_modes import check_units, move_units

__all__ = ["begin"]


def begin(
    rule: Rule, data: DataSet, options: Options, module: ImagePath | None = None, folder: RunFolder | None = None
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

    Raises:
        InputError: for options, data, module or units that do not fit the rule.
    """
    compute = Compute.find(options.device, options.precision)
    check_units(rule, options.units, compute.device)
    net = untrained(rule, Task.of(data), options.seed, data.train, module).to(compute.device)
    state = State(net, rule.optimizer(net))
    if options.average:
        state.check_average()
    if folder is None:
        move_units(state, rule, options.units, None)
    return state, Loop(rule, data.to(compute.device), options, compute, folder)
