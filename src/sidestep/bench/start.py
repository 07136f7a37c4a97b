"""A net before its first step, for code that takes the steps itself."""

from sidestep.data import DataSet
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule, Task
from sidestep.training import Compute, Options
from sidestep.training.loop import Loop
from sidestep.training.state import State

__all__ = ["start"]


def start(rule: Rule, data: DataSet, options: Options) -> tuple[State, Loop]:
    """Return a new net with its optimiser, and the loop that trains it: as `train` starts them."""
    compute = Compute.find(options.device, options.precision)
    net = rule.build(Task.of(data), Noise(options.seed).stream("build"), data.train, None).to(compute.device)
    return State(net, rule.optimizer(net)), Loop(rule, data.to(compute.device), options, compute, None)
