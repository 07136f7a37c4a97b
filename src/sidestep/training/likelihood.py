"""What is added up, beside right answers, over a split's batches, so that its likelihood can be said.

Of classes: what likelihood and calibration error follow from. Of next tokens, bits a token:

    bits = -1 / (n log 2) sum over the n targets that count of log p(token)
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sidestep.data.objective import IGNORED
from sidestep.rules.protocol import Task
from sidestep.training.calibration import CONFIDENCE_SUMS, Quality, confidence_sums

__all__ = ["added_up", "bits_of", "quality_of"]

_TOKEN_SUMS = 2
_Sums = Callable[[str, Tensor, Tensor], Tensor]


def added_up(task: Task, temperatures: Mapping[str, float | None]) -> tuple[_Sums | None, int]:
    """Return (reading, probabilities, targets) -> what is added up over batches, and how many numbers it is.

    Of targets without a likelihood, such as values or a loss of the user's own, nothing is.
    """
    if task.likely:
        return (lambda name, p, labels: confidence_sums(p, labels, temperatures[name])), CONFIDENCE_SUMS
    if task.targets == "tokens" and task.own is None:
        return (lambda _, p, targets: _token_sums(p, targets)), _TOKEN_SUMS
    return None, 0


def quality_of(task: Task, accuracy: float, sums: list[float], temperature: float | None) -> Quality:
    """Return how good a reading is, from its accuracy or score and what was added up."""
    if task.targets != "tokens" or not sums:
        return Quality.of(accuracy, sums, temperature)
    nats = sums[0] / max(1.0, sums[1])
    return Quality(accuracy, nats, None, None, nats, None)


def bits_of(quality: Quality) -> float | None:
    """Return the negative log-likelihood in bits.

    >>> bits_of(Quality(0.5, math.log(8), None, None, None, None))
    3.0
    """
    return None if quality.nll is None else quality.nll / math.log(2)


def _token_sums(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of -log p(token) over the targets that count, and their number; (2,), float64."""
    counted = targets != IGNORED
    own = probabilities.gather(-1, targets.where(counted, 0).unsqueeze(-1)).squeeze(-1)[counted]
    smallest = torch.finfo(torch.float32).tiny  # what float32 has rounded to zero
    nats = -own.detach().cpu().double().clamp_min(smallest).log().sum()
    return torch.stack([nats, nats.new_tensor(int(counted.sum()))])
