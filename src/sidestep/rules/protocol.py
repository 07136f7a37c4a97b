"""What a learning rule is: a handful of functions around one small value, the Update."""

from collections.abc import Collection, Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sidestep.data import Split
from sidestep.data.task import Batch, Task
from sidestep.nets.own import ImagePath
from sidestep.noise import Noise
from sidestep.update import Dense, Update

__all__ = ["Batch", "Dividing", "Measurable", "Rule", "Task", "UnitByUnit"]


class Rule(Protocol):
    """A learning rule. Its dataclass fields are its hyper-parameters; they become the command line's options.

    The loop calls `estimate`, then `decide` on all ranks' updates, then `apply`. `estimate` writes neither weights nor
    buffers; `apply` sees no data and no learning rate that is not in the update, and is deterministic, so that updates
    can be logged and replayed.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    predictors: ClassVar[tuple[str, ...]]  # names of the readings that `predict` gives; the first is the default
    for_inference: ClassVar[tuple[str, ...]]  # hyper-parameters that `predict` can take at other values later
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> nn.Module:
        """Make the untrained net. `examples` are the training images, absent when weights are about to be loaded."""
        ...

    def units(self, net: nn.Module) -> dict[str, list[str]]:
        """Return unit name -> parameter names: the parts of the net that can be trained without the others."""
        ...

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make the optimiser that `apply` steps, one parameter group per unit."""
        ...

    def estimate(self, net: nn.Module, batch: Batch, noise: Noise) -> Update:
        """Estimate the update from one batch; `noise` stands at the current step."""
        ...

    def decide(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Turn the exchanged estimate of all ranks into what is logged and applied; for dense rules the identity.

        It may advance the optimiser's memory (momentum), but sees no data and writes no weights.
        """
        ...

    def apply(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Write the update into the net. Never sees data; deterministic."""
        ...

    def predict(
        self, net: nn.Module, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return class probabilities (batch, classes) for the wanted `predictors` (all by default), from images alone.

        `start` is the index of the first image in the whole set, so that samples do not depend on the batching.
        """
        ...

    def watch(self, net: nn.Module) -> dict[str, float]:
        """Return numbers worth watching, logged once an epoch, such as the smallest distance between embeddings."""
        ...


@runtime_checkable
class Measurable(Protocol):
    """What a rule may have besides: the gradient that its estimates can be measured against. It is never trained on.

    A rule without it may say why in a class variable `no_true_gradient`, a sentence that errors show.
    """

    def true_gradients(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the default reading's mean cross-entropy, end to end, by parameter name.

        Parameters that the reading does not depend on, such as heads beside the last, are left out.
        """
        ...


@runtime_checkable
class Dividing(Protocol):
    """What a rule has besides, which divides a batch into equal parts or groups: what its size is a multiple of."""

    @property
    def batch_multiple(self) -> tuple[str, int]:
        """The name and the value of the hyper-parameter that the size of a batch must be a multiple of."""
        ...


@runtime_checkable
class Checking(Protocol):
    """What a rule has besides, whose nets can get into a state from which they do not learn any more."""

    def broken(self, net: nn.Module) -> str | None:
        """Return what is wrong with a net and what helps, or None; asked after every epoch."""
        ...


@runtime_checkable
class UnitByUnit(Protocol):
    """What a rule has besides, whose units can take their steps one after another: less memory, the same numbers.

    The updates have named gradients: those of other kinds are logged, a whole step at a time.
    """

    def estimates(self, net: nn.Module, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield each unit's name and update; the loop applies it before it asks for the next one.

        Merged they are what `estimate` returns: nothing may be computed from another unit that was applied already. To
        take one unit's memory at a time, let go of what was yielded before the next is made.
        """
        ...
