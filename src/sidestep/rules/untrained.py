"""The net that a rule starts from: a function of the rule, the task and the seed, and of the images for some rules."""

from torch import nn

from sidestep.data import Split
from sidestep.data.objective import set_objective
from sidestep.data.task import Task
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule
from sidestep.rules.takes import check_quantized

__all__ = ["untrained"]


def untrained(
    rule: Rule, task: Task, seed: int, examples: Split | None = None, module: ImagePath | None = None
) -> nn.Module:
    """Return a rule's net before its first step, on the CPU, with the task's objective.

    Args:
        rule: what builds it.
        task: what its inputs and targets are.
        seed: of the run.
        examples: the training images, absent when weights are about to be loaded.
        module: an image path of the user's own.

    Raises:
        InputError: for a task or a module that the rule does not take.
    """
    net = rule.build(task, Noise(seed).stream("build"), examples, module)
    check_quantized(rule, net)
    set_objective(net, task.objective)
    return net
