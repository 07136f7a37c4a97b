"""A net before its first step, for code that takes the steps itself."""

from sidestep.data import DataSet
from sidestep.nets.own import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule, Task
from sidestep.training import Compute, Options
from sidestep.training.loop import Loop
from sidestep.training.state import State
from sidestep.training.units import begin_units, place_units

__all__ = ["start"]


def start(rule: Rule, data: DataSet, options: Options, module: ImagePath | None = None) -> tuple[State, Loop]:
    """Return a new net with its optimiser, and the loop that trains it: as `train` starts them, but without a folder.

    With `units = one-resident` the units are in temporary files, which `state.files.close` removes.

    Raises:
        InputError: for options, data or units that do not fit the rule.
    """
    compute = Compute.find(options.device, options.precision)
    begin_units(rule, options.units, compute.device)
    net = rule.build(Task.of(data), Noise(options.seed).stream("build"), data.train, module).to(compute.device)
    state = State(net, rule.optimizer(net))
    if options.average:
        state.check_average()
    place_units(state, rule, options.units, None)
    return state, Loop(rule, data.to(compute.device), options, compute, None)
