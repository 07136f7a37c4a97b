"""A rule, the data that it is tried on, and what the checks ask of the two."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.data import DataSet, from_arrays
from sidestep.errors import InputError, SidestepError
from sidestep.nets.trained import trained
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Rule, Task
from sidestep.rules.untrained import untrained
from sidestep.training.loop import Loop
from sidestep.training.options import Compute, Options
from sidestep.update import Dense, Flips, Seeded, Update

__all__ = ["CheckFailedError", "Subject", "copied", "difference", "expect", "small_data", "tensors_of", "weights_of"]

BATCH = 16


class CheckFailedError(SidestepError, AssertionError):
    """A rule does not keep what every rule promises."""


def expect(kept: bool, otherwise: str) -> None:
    """Raise CheckFailedError with the sentence `otherwise` unless what is promised was kept."""
    if not kept:
        raise CheckFailedError(otherwise)


def small_data(rule: Rule) -> DataSet:
    """Return 96 training examples and 32 test examples, of the first kind of inputs and targets that the rule takes.

    Images are 8 x 8 and rows of features have 12 columns; there are four classes, labels or values.

    Raises:
        InputError: for a rule that takes neither images nor features, which needs data of its own.
    """
    takes, noise = rule.takes, Noise(0).stream("small data")
    kinds = [kind for kind in ("classes", "values", "labels") if kind in takes.targets]
    if not kinds or not {"image", "features"} & set(takes.inputs):
        raise InputError(
            f"{rule.name} takes {' or '.join(takes.inputs)} and {' or '.join(takes.targets)}, of which no small set is "
            "made; give a data set, data="
        )
    classes = noise.stream("classes").integers(128, 4)
    shape = (128, 1, 8, 8) if "image" in takes.inputs else (128, 12)
    inputs = noise.normal(torch.Size(shape).numel()).view(shape) + classes.view(-1, *[1] * (len(shape) - 1))
    several = torch.eye(4, dtype=torch.int64)[classes]
    targets = {"classes": classes, "labels": several, "values": several + 0.1 * noise.uniform(4)}[kinds[0]]
    arrays = (inputs[:96].numpy(), targets[:96].numpy(), inputs[96:].numpy(), targets[96:].numpy())
    return from_arrays(*arrays, name="small", targets=kinds[0])


@dataclass(frozen=True)
class Subject:
    """A rule, and a data set."""

    rule: Rule
    data: DataSet

    @cached_property
    def task(self) -> Task:
        """What a net has to know of the data."""
        return Task.of(self.data)

    @cached_property
    def size(self) -> int:
        """How many examples a batch has: 16, or the next multiple of what the rule needs."""
        multiple = int(getattr(self.rule, "batch_multiple", ("", 1))[1])
        return -(-BATCH // multiple) * multiple

    def net(self, seed: int = 0) -> nn.Module:
        """Return the net before its first step, as a run of this seed has it."""
        return untrained(self.rule, self.task, seed, self.data.train)

    def batch(self, step: int = 0) -> Batch:
        """Return the batch of a step."""
        loop = Loop(self.rule, self.data, Options(batch=self.size), Compute.find("cpu", "float32"), None)
        return loop.batch(step)

    def estimate(self, net: nn.Module, step: int = 0, seed: int = 0) -> Update:
        """Return the rule's estimate of a step."""
        return self.rule.estimate(net, self.batch(step), Noise(seed).stream("estimate").at(step))

    def inputs(self) -> Any:
        """Return the test split's inputs, as predictions get them."""
        return self.task.scaled(self.data.test.images)


def copied(net: nn.Module) -> dict[str, Tensor]:
    """Return copies of a net's weights and buffers."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def tensors_of(update: Update) -> dict[str, Tensor]:
    """Return all that an update has, by name."""
    common = {f"loss {name}": value for name, value in update.losses.items()} | dict(update.statistics)
    if isinstance(update, Seeded):
        return {f"coefficients along {update.probes!r}": update.coefs, **common}
    if isinstance(update, Flips):
        return {"positions": update.positions, "moves": update.moves, **common}
    if isinstance(update, Dense):
        return {**update.gradients, **common}
    raise CheckFailedError(f"estimate returned {type(update).__name__}, and an update is Dense, Seeded or Flips")


def difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> str | None:
    """Return the first name whose tensors do not have the same bits, or None."""
    for name in [*first, *(name for name in second if name not in first)]:
        if name not in first or name not in second or not torch.equal(first[name], second[name]):
            return name
    return None


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """Return copies of what is trained."""
    return {name: parameter.detach().clone() for name, parameter in trained(net).items()}
