"""A batch of one image: fine, unless something in the net takes statistics of the batch."""

from contextlib import suppress

from torch import nn

from sidestep.errors import InputError, NonFiniteError
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule, Task

__all__ = ["check_single"]


def check_single(rule: Rule, net: nn.Module, task: Task, size: int) -> None:
    """Raise InputError if a net cannot be trained on one image at a time, which an estimate from one tells.

    Args:
        rule: of the net.
        net: before its first step; an estimate leaves it as it is.
        task: what images are like.
        size: of the batches; there is nothing to check but for 1.
    """
    if size > 1:
        return
    device = next(net.parameters()).device
    one = task.blank(1, device)
    try:
        with suppress(NonFiniteError):  # of a black image, which says nothing of others
            rule.estimate(net, one, Noise(0))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"this net of {rule.name} has batch norm, whose statistics need two images or more, got a batch of 1; take "
            "a larger batch, or a net without batch norm (another norm, where the rule has one)"
        ) from error
