"""The logits of a net in stages, and what they say: of every head, with or without keeping what lies inside the stages.

Checkpointing keeps a stage's input and computes the rest again on the way back (Chen et al., "Training deep nets with
sublinear memory cost", 2016): a layer's output before its norm, and what pooling and ReLU remember, are not kept.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sidestep.data.objective import objective_of
from sidestep.nets.precision import at_least_float32

__all__ = ["answers_of_heads", "logits_of_heads"]


def logits_of_heads(
    stages: Sequence[nn.Module] | nn.ModuleList,
    heads: Sequence[nn.Module] | nn.ModuleList,
    images: Tensor,
    checkpointing: bool = False,
) -> list[Tensor]:
    """Return the logits of every head, (batch, classes) each; heads belong to the last stages, one each.

    >>> import torch
    >>> stages = [nn.Linear(3, 4), nn.Linear(4, 4)]
    >>> [tuple(logits.shape) for logits in logits_of_heads(stages, [nn.Linear(4, 2)], torch.zeros(5, 3))]
    [(5, 2)]
    """
    found, without = [], len(stages) - len(heads)
    for index, stage in enumerate(stages):
        images = checkpoint(stage, images, use_reentrant=False) if checkpointing else stage(images)
        if index >= without:
            found.append(at_least_float32(heads[index - without](images)))
    return found


def answers_of_heads(net: Any, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """Return what a net in stages says in evaluation mode, (batch, classes), by the `names` of readings.

    forward: by its last head; heads: by the sum of all heads' logits.
    """
    net.eval()
    with torch.no_grad():
        logits = net.every_logits(images) if "heads" in names else [net(images)]
        readings = {"forward": logits[-1], "heads": torch.stack(logits).sum(dim=0)}
        return {name: objective_of(net).predictions(readings[name]) for name in names}
