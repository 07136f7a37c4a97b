"""What a tuned net is made of, but for the weights: it stands in a run's folder and in the header of its log."""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidestep.errors import CheckpointError

__all__ = ["Recipe", "layer_of_text", "text_of_layer", "without_head"]


@dataclass(frozen=True)
class Recipe:
    """How to make the net from the folder of its base model."""

    base: str  # where the base model was; another place will do
    labels: tuple[str, ...]  # empty for a model of next tokens
    part: str
    lora: int
    length: int
    seed: int
    reads: str = "own"  # what a new output layer reads: own, last or layers
    head: tuple[str, ...] = ()  # the fitted output layer, weight and bias, as text; empty for a drawn one

    @property
    def tokens(self) -> bool:
        """Whether the net tells next tokens."""
        return not self.labels

    def record(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, record: Any, where: Any) -> "Recipe":
        """Return what `record` gave; raises CheckpointError, which names `where` it stood, for anything else."""
        try:
            given: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
            }
            found = cls(**given)
            whole = all(isinstance(number, int) for number in (found.lora, found.length, found.seed))
            texts = all(isinstance(text, str) for text in (found.base, found.part, *found.labels, *found.head))
            if whole and texts and len(found.head) in (0, 2):
                return found
        except (AttributeError, TypeError):
            pass
        raise CheckpointError(f"{where} does not say how its net is made: it was not written by sidestep tune")


def text_of_layer(values: Tensor) -> str:
    """Return a fitted weight or bias, (classes, ...), as text: float16, without the last class."""
    return base64.b64encode(values[:-1].detach().cpu().numpy().astype("<f2").tobytes()).decode()


def layer_of_text(text: str, like: Tensor) -> Tensor:
    """Return what a text holds in the shape of `like`; the last class is minus the sum of the others.

    Raises CheckpointError for another number of them.
    """
    try:
        found = torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float32))
        others = found.view(len(like) - 1, *like.shape[1:])
        return torch.cat([others, -others.sum(0, keepdim=True)])
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"the fitted output layer of a log or run is damaged: {error}") from error


def without_head(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record for people, without the numbers of the fitted layer."""
    return {name: value for name, value in record.items() if name != "head"}
