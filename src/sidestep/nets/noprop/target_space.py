"""What targets are to a net that denoises them: their embedding u_y, its estimate from outputs, and the answer.

    classes        u_y = W_y                      uhat = softmax(outputs) W      answer: softmax(outputs)
    labels         u_y = 2 y - 1, in {-1, 1}^K    uhat = tanh(outputs / 2)       answer: sigmoid(outputs)
    values         u_y = (y - mean) / std         uhat = outputs                 answer: mean + std outputs

In each the estimate is `E[u_y | outputs]`: of labels that are independent given the outputs `2 sigmoid(o) - 1 =
tanh(o / 2)`, of values with normal errors the outputs. `q(z_t | y) = N(sqrt(abar_t) u_y, (1 - abar_t) I)` and
the squared error times the weight of the variational bound (Li et al. 2025, equation 8) go by u_y alone, so that they
hold as they do for classes. The read-out of z_T is linear, and its likelihood is the objective's: cross-entropy, binary
cross-entropy, or a normal density of variance K / 2, whose `-log p` is `|A z + b - u_y|^2 / K` and a constant.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from sidestep.data.objective import CLASSES, LABELS, Objective, values_objective
from sidestep.data.task import Task
from sidestep.nets.noprop.embeddings import expected_embedding

__all__ = ["CLASS_SPACE", "TargetSpace", "target_space"]


@dataclass(frozen=True)
class TargetSpace:
    """The embedding of targets, its estimate, and what outputs mean.

    objective: the loss of outputs, (batch, K), and the answer that they give.
    embed: (targets, rows W) -> u_y, (batch, dimension).
    estimate: (outputs, rows W) -> uhat, (batch, dimension).
    from_point: of labels and values: the factor that turns z into outputs in the read-out by distance. With
        `p(y | z) ~ exp(-|z - u_y|^2 / 2)` a label of -1 or 1 has log odds 2 z, and a value is likeliest at z.
    """

    objective: Objective
    embed: Callable[[Tensor, Tensor], Tensor]
    estimate: Callable[[Tensor, Tensor], Tensor]
    from_point: float = 1.0

    @property
    def classes(self) -> bool:
        """Whether a target is one of several classes."""
        return self.objective.kind == "classes"


def _class_rows(targets: Tensor, rows: Tensor) -> Tensor:
    return embedding(targets, rows)


def _signs(targets: Tensor, rows: Tensor) -> Tensor:
    return 2 * targets.to(rows.dtype) - 1


def _expected_signs(outputs: Tensor, rows: Tensor) -> Tensor:
    return torch.tanh(outputs / 2)


def _itself(outputs: Tensor, rows: Tensor) -> Tensor:
    return outputs


CLASS_SPACE = TargetSpace(CLASSES, _class_rows, expected_embedding)
_LABEL_SPACE = TargetSpace(LABELS, _signs, _expected_signs, from_point=2.0)


def target_space(task: Task) -> TargetSpace:
    """Return the space of a task's targets: classes, labels or values, of which some come without mean and deviation.

    >>> task = Task((2,), ("price",), (0.0,), (1.0,), targets="values", target_mean=(100.0,), target_std=(20.0,))
    >>> space = target_space(task)
    >>> space.embed(torch.tensor([[140.0]]), torch.eye(1)), space.objective.predictions(torch.tensor([[2.0]]))
    (tensor([[2.]]), tensor([[140.]]))
    """
    if task.targets == "classes":
        return CLASS_SPACE
    if task.targets == "labels":
        return _LABEL_SPACE
    mean, std = task.target_mean or (0.0,) * task.classes, task.target_std or (1.0,) * task.classes

    def scaled(targets: Tensor, rows: Tensor) -> Tensor:
        centre, unit = (torch.tensor(numbers, dtype=torch.float32, device=targets.device) for numbers in (mean, std))
        return ((targets.float() - centre) / unit).to(rows.dtype)

    return TargetSpace(values_objective(mean, std), scaled, _itself)
