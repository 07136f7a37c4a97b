"""The logits of a net in stages: of every head, with or without keeping what lies inside the stages.

Checkpointing keeps a stage's input and computes the rest again on the way back (Chen et al., "Training deep nets with
sublinear memory cost", 2016): a layer's output before its norm, and what pooling and ReLU remember, are not kept.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sidestep.nets.precision import at_least_float32

__all__ = ["logits_of_heads"]


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
