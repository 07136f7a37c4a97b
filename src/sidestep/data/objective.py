"""What is made small, and what is counted: from a net's outputs and the targets to one loss per example."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.errors import InputError

__all__ = [
    "CLASSES",
    "IGNORED",
    "LABELS",
    "NEXT_TOKENS",
    "OBJECTIVES",
    "VALUES",
    "Objective",
    "answers",
    "objective_of",
    "set_objective",
    "values_objective",
]

IGNORED = -100  # a target that does not count, such as padding: torch's own convention

PairFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """One loss per example from outputs and targets, and what a net's answers are and how good.

        loss of a batch = mean over its examples of losses(outputs, targets)

    name: of the loss, as it stands in metrics.
    losses: (outputs, targets) -> (batch,), to be made small. Need be differentiable only for rules that differentiate.
    predictions: outputs -> what `predict` returns, such as probabilities.
    scores: (predictions, targets) -> (batch,), each from 0 to 1 where `score_name` is an accuracy.
    score_name: of the scores' mean over a split.
    kind: which targets it is for: classes, labels, values, tokens, or own.
    cotangent: (outputs (..., k), targets) -> derivative of each example's loss by its outputs, in closed form; without
        it `derivative` takes k directional ones.

    >>> apart = Objective("absolute error", lambda outputs, targets: (outputs - targets).abs().mean(dim=1))
    >>> apart.mean(torch.tensor([[1.0], [4.0]]), torch.zeros(2, 1))
    tensor(2.5000)
    """

    name: str
    losses: PairFunction
    predictions: Callable[[Tensor], Tensor] = lambda outputs: outputs
    scores: PairFunction | None = None
    score_name: str = "loss"
    kind: str = "own"
    cotangent: PairFunction | None = None

    def each(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return one loss per example, (batch,), in a float dtype.

        Raises:
            InputError: if the loss gives anything else.
        """
        losses = self.losses(outputs, targets)
        if not isinstance(losses, Tensor) or losses.shape != outputs.shape[:1]:
            shape = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            if isinstance(losses, Tensor) and losses.ndim:
                advice = (
                    "average it for each example: lambda outputs, targets: loss(...).reshape(len(outputs), -1).mean(1)"
                )
            else:
                advice = (
                    'leave out the mean over the batch: reduction="none", and .flatten(1).mean(1) of what that gives'
                )
            raise InputError(
                f"the loss {self.name!r} must give one number per example, shape ({len(outputs)},), got {shape}; "
                f"{advice}"
            )
        return losses if losses.is_floating_point() else losses.to(outputs.dtype)

    def mean(self, outputs: Tensor, targets: Any, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean loss, shape ().

        Args:
            outputs: of the net, (batch, ...).
            targets: (batch, ...).
            label_smoothing: share of a class label that is spread over all classes; other targets are not spread.
        """
        if self.kind == "classes":
            return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)
        return self.each(outputs, targets).mean()

    @property
    def unless_classes(self) -> "Objective | None":
        """The objective, or None for classes, whose cross-entropy has a path of its own where speed counts."""
        return None if self is CLASSES else self

    def derivative(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivative of each example's loss by its outputs, (..., k), and the mean loss, shape ().

        No derivative is taken backwards: the closed form where there is one, else forward mode along each of the k
        outputs, of all examples at once, whose losses do not depend on each other.
        """
        if self.kind == "tokens" and self.cotangent is not None:  # a loss per row, of all its places
            return self.cotangent(outputs, targets), self.mean(outputs, targets)
        rows = outputs.flatten(0, -2)
        wanted = targets.flatten(0, -2) if targets.ndim == outputs.ndim else targets.flatten()
        loss = self.each(rows, wanted).mean()
        if self.cotangent is not None:
            return self.cotangent(outputs, targets), loss
        along = [
            torch.func.jvp(lambda moved: self.each(moved, wanted), (rows,), (direction.expand_as(rows),))[1]
            for direction in torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        ]
        return torch.stack(along, dim=-1).view_as(outputs), loss

    def scored(self, predictions: Tensor, targets: Any) -> Tensor:
        """Return one score per example, (batch,): of a loss of the user's without a score, the loss itself."""
        return (self.scores or self.losses)(predictions, targets)


def _classes_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _right_class(probabilities: Tensor, targets: Tensor) -> Tensor:
    return (probabilities.argmax(dim=1) == targets).float()


def _paired(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return one target for each output; torch would spread (n,) over (n, 1), and compare all with all."""
    if targets.shape == outputs.shape:
        return targets
    if targets.shape == outputs.shape[:1] and outputs.numel() == len(outputs):
        return targets.view_as(outputs)
    raise InputError(
        f"the outputs have shape {tuple(outputs.shape)} and the targets {tuple(targets.shape)}, but each output needs "
        "one target; give targets (batch, columns), and take a model with one output for each column"
    )


def _labels_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted = _paired(outputs, targets).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").mean(dim=1)


def _right_labels(probabilities: Tensor, targets: Tensor) -> Tensor:
    return ((probabilities > 0.5) == (targets > 0.5)).float().mean(dim=1)


def _values_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - _paired(outputs, targets).to(outputs.dtype)).square().flatten(1).mean(dim=1)


def _tokens_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over an example's counted tokens of -log p(token): outputs (batch, length, vocabulary)."""
    each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
    counted = (targets != IGNORED).to(each.dtype)
    return each.view_as(counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)


def _right_tokens(probabilities: Tensor, targets: Tensor) -> Tensor:
    counted = targets != IGNORED
    right = (probabilities.argmax(dim=-1) == targets) & counted
    return right.sum(dim=1).float() / counted.sum(dim=1).clamp_min(1)


def _values_slope(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.to(outputs.dtype)) * (2 / outputs.shape[-1])


def _labels_slope(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.sigmoid() - targets.to(outputs.dtype)) / outputs.shape[-1]


def _classes_slope(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.softmax(dim=-1) - F.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)


def _tokens_slope(outputs: Tensor, targets: Tensor) -> Tensor:
    counted = targets != IGNORED
    slope = _classes_slope(outputs, targets.where(counted, 0)) * counted.unsqueeze(-1)
    return slope / counted.sum(dim=1).clamp_min(1).to(slope.dtype)[:, None, None]


def _softmax(outputs: Tensor) -> Tensor:
    return outputs.softmax(dim=-1)


CLASSES = Objective(
    "cross-entropy", _classes_loss, _softmax, _right_class, "accuracy", "classes", cotangent=_classes_slope
)
LABELS = Objective(
    "binary cross-entropy", _labels_loss, torch.sigmoid, _right_labels, "label accuracy", "labels", _labels_slope
)
VALUES = Objective(
    "squared error",
    _values_loss,
    scores=lambda predictions, targets: 1 - _values_loss(predictions, targets),
    score_name="R2",
    kind="values",
    cotangent=_values_slope,
)
NEXT_TOKENS = Objective(
    "cross-entropy", _tokens_loss, _softmax, _right_tokens, "token accuracy", "tokens", cotangent=_tokens_slope
)
OBJECTIVES = {found.kind: found for found in (CLASSES, LABELS, VALUES, NEXT_TOKENS)}


@lru_cache(maxsize=64)  # so that equal tasks have one and the same
def values_objective(mean: tuple[float, ...], std: tuple[float, ...]) -> Objective:
    """Return the squared error of real values in units of their standard deviation; predictions are in the values' own.

        loss = mean over values of (output - (y - mean) / std)^2       prediction = mean + std output

    The score, R2, is `1 - squared error / variance` with the variance over the train split, a mean over the values.

    >>> values_objective((10.0,), (2.0,)).predictions(torch.tensor([[1.0]]))
    tensor([[12.]])
    """

    def scaled(values: Tensor) -> Tensor:
        centre, unit = (torch.tensor(numbers, dtype=torch.float32, device=values.device) for numbers in (mean, std))
        return (values.float() - centre) / unit

    def back(outputs: Tensor) -> Tensor:
        centre, unit = (torch.tensor(numbers, dtype=torch.float32, device=outputs.device) for numbers in (mean, std))
        return centre + unit * outputs

    return replace(
        VALUES,
        losses=lambda outputs, targets: _values_loss(outputs, scaled(_paired(outputs, targets))),
        cotangent=lambda outputs, targets: _values_slope(outputs, scaled(targets)),
        predictions=back,
        scores=lambda predictions, targets: 1 - _values_loss(scaled(predictions), scaled(targets)),
    )


def set_objective(net: nn.Module, objective: Objective) -> None:
    """Note at a net what its outputs mean, which `predict` goes by; it is no part of the net's state."""
    object.__setattr__(net, "objective", objective)


def objective_of(net: nn.Module) -> Objective:
    """Return the objective that a net was made for: what its outputs mean. Of classes where nothing else was said."""
    found = getattr(net, "objective", CLASSES)
    return found if isinstance(found, Objective) else CLASSES


def answers(net: nn.Module, inputs: Any) -> Tensor:
    """Return what a net says of inputs in evaluation mode, as its objective has it: probabilities, or values."""
    net.eval()
    with torch.no_grad():
        return objective_of(net).predictions(net(inputs))
