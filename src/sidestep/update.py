"""What one training step decides: the small value that is exchanged, logged, applied and replayed."""

from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

__all__ = ["Dense", "Seeded", "Update"]


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
    """One coefficient per probe; the probes' directions are regenerated from the seed and the step.

    coefs: shape (probes,), real before `decide` and usually one trit each after it.
    losses: named terms of the loss, shape () each, for display and for the check that all are finite.
    """

    coefs: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


Update: TypeAlias = Dense | Seeded
