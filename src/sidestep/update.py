"""What one training step decides: the small value that is exchanged, logged, applied and replayed."""

from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from sidestep.probes import DenseProbes, Probes

__all__ = ["Dense", "Flips", "Seeded", "Update"]


@dataclass(frozen=True)
class Dense:
    """Gradients of named parameters, for the whole net or for one unit of it.

    gradients: by parameter name, each of its parameter's shape.
    statistics: new values of named buffers (a batch norm's running mean), each of its buffer's shape; they
        are part of the update because `estimate` writes nothing into the net.
    losses: named terms of the loss, shape () each, for display and for the check that all are finite.

    >>> import torch
    >>> update = Dense({"weight": torch.zeros(3, 2)}, losses={"cross entropy": torch.tensor(2.3)})
    >>> update.statistics
    {}
    """

    gradients: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Seeded:
    """One coefficient per probe; the probes' directions are made again from the seed and the step.

    coefs: shape (probes,), real before `decide`; after it one trit each, or still real along dense probes.
    probes: which directions they belong to.
    statistics: new values of named buffers, as in `Dense`.
    losses: named terms of the loss, shape () each, for display and for the check that all are finite.
    rate: the learning rate that `apply` steps with, which `decide` puts in where a replay cannot know it otherwise.
    """

    coefs: Tensor
    probes: Probes | DenseProbes
    statistics: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    rate: float | None = None


@dataclass(frozen=True)
class Flips:
    """Single weights of a ternary net that move one step up or down.

    positions: ascending places in all weights, one parameter after another, int64 of shape (flips,).
    moves: 1 or -1 each, int8 of shape (flips,).
    statistics: new values of named buffers, as in `Dense`.
    losses: named terms of the loss, shape () each, for display and for the check that all are finite.
    """

    positions: Tensor
    moves: Tensor
    statistics: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)


Update: TypeAlias = Dense | Seeded | Flips
