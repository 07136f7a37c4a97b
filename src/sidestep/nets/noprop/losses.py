"""The denoising losses, all that a block can be trained with to recover the label."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from sidestep.errors import InputError
from sidestep.nets.noprop.target_space import CLASS_SPACE, TargetSpace

__all__ = ["LOSSES", "check_smoothing", "denoising_loss"]

LOSSES: tuple[str, ...] = ("paper", "clipped", "unweighted", "cross-entropy")


def check_smoothing(loss: str, smoothing: float) -> None:
    """Raise InputError for a share of smoothing outside [0, 0.99], or one that the loss would not use."""
    if not 0 <= smoothing <= 0.99:
        raise InputError(f"label_smoothing must lie between 0 and 0.99, got {smoothing}")
    if smoothing and loss != "cross-entropy":
        raise InputError(
            f"label_smoothing = {smoothing} needs loss = cross-entropy, got {loss}; the others have no use for it"
        )


def denoising_loss(
    kind: str,
    logits: Tensor,
    rows: Tensor,
    labels: Tensor,
    weight: Tensor,
    largest: float,
    smoothing: float = 0.0,
    space: TargetSpace = CLASS_SPACE,
) -> Tensor:  # long: the seven things a loss depends on, and its kind
    """Return each example's loss, (batch,).

    `paper`: `w |uhat - u_y|^2`; `clipped`: `min(w, largest) |uhat - u_y|^2`; `unweighted`: `|uhat - u_y|^2`, with
    `uhat = softmax(logits) W`; `cross-entropy`: `-log softmax(logits)_y`, of labels smoothed by `smoothing`; of other
    targets their own loss: binary cross-entropy, or the squared error of values (a normal density of fixed width).

    Args:
        kind: one of LOSSES.
        logits: the block's class logits, (batch, classes).
        rows: the class embeddings W, (classes, dimension).
        labels: int64, (batch,).
        weight: the weight w that the variational bound gives: () or (batch,).
        largest: the most a clipped weight can be.
        smoothing: the share of a label that is spread evenly over all classes.
        space: what the targets are.

    >>> import torch
    >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> weights = torch.tensor(100.0), 5.0
    >>> [round(float(denoising_loss(k, logits, torch.eye(2), labels, *weights)), 3) for k in LOSSES]
    [2.842, 0.142, 0.028, 0.127]
    """
    if kind == "cross-entropy" and not space.classes:
        return space.objective.each(logits, labels)
    if kind == "cross-entropy":
        return cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    squared = (space.estimate(logits, rows) - space.embed(labels, rows)).square().sum(dim=1)
    if kind == "unweighted":
        return squared
    return (weight if kind == "paper" else weight.clamp(max=largest)) * squared
