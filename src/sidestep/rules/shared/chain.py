"""What a rule has that trains a chain of stages which it did not build: a net of the stages, where they are."""

from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from sidestep.noise import Noise

__all__ = ["ChainOfStages", "HasFormOnStages"]


@runtime_checkable
class ChainOfStages(Protocol):
    """What a rule has besides, that trains the stages of a module in place, under the loss of its outputs."""

    name: ClassVar[str]

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> nn.Module:
        """Return a net for `estimate` and `apply` that has the model's own parameters, and what the rule adds to them.

        Args:
            model: an nn.Sequential of stages, the last of which gives the outputs.
            example: inputs, (batch, ...), from which sizes follow.
            noise: where the weights of what is added come from.

        Raises:
            InputError: for a module that this rule cannot train.
        """
        ...


@runtime_checkable
class HasFormOnStages(Protocol):
    """What such a rule has besides, whose own nets are of another kind: a rule for the nets that it adopts."""

    def on_stages(self) -> Any:
        """Return the rule that trains what `adopt` returns."""
        ...
