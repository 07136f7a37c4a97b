"""What changes while training: the net, the optimiser, the position, and the average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sidestep import checkpoint
from sidestep.errors import CheckpointError, InputError

__all__ = ["AVERAGE", "State"]

AVERAGE = "average/"  # what the names of averaged weights begin with in a checkpoint


@dataclass
class State:
    """What changes while training; with the configuration, all that a resumed run needs."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0  # spent training, over all resumptions
    sums: dict[str, Tensor] = field(default_factory=dict)  # of each loss over this epoch, float64, on the CPU
    average: dict[str, Tensor] = field(default_factory=dict)  # of the weights, by name; empty if none is kept
    saved_step: int = -1

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]  # before a checkpoint is restored

    @property
    def net_device(self) -> torch.device:
        """Where the net's parameters lie."""
        return next(self.net.parameters()).device

    def check_average(self) -> None:
        """Raise InputError if the net has parameters that no moving average can be taken of."""
        for name, parameter in self.net.named_parameters():
            if not parameter.is_floating_point():
                raise InputError(
                    f"a moving average needs float weights, but {name} is {parameter.dtype}: leave --average out"
                )

    def set_rate(self, factor: float) -> None:
        """Multiply the learning rates that the rule gave by `factor`."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def move_average(self, decay: float) -> None:
        """Take one step of the weights' average, `w <- a w + (1 - a) w_step`; a is smaller in the first steps.

        `a = min(decay, (1 + step) / (10 + step))`, so that the random weights of the start are soon forgotten.
        """
        weight = min(decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                if name not in self.average:
                    self.average[name] = parameter.detach().clone()
                self.average[name].lerp_(parameter, 1 - weight)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The net with its averaged weights, or as it is if none are kept; afterwards it is as before."""
        parameters = dict(self.net.named_parameters())
        kept = {name: parameters[name].detach().clone() for name in self.average}
        self.adopt_average()
        try:
            yield self.net
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)

    def adopt_average(self) -> None:
        """Put the averaged weights, if any are kept, into the net for good."""
        parameters = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, value in self.average.items():
                parameters[name].copy_(value)

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything as named tensors and a JSON record."""
        moments, record = checkpoint.optimizer_tensors(self.optimizer)
        tensors = {f"net/{name}": tensor for name, tensor in self.net.state_dict().items()}
        tensors.update({f"optimizer/{name}": tensor for name, tensor in moments.items()})
        tensors.update({f"sum/{name}": tensor for name, tensor in self.sums.items()})
        tensors.update({f"{AVERAGE}{name}": tensor for name, tensor in self.average.items()})
        return tensors, {"step": self.step, "seconds": self.seconds, "optimizer": record}

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Take over what `tensors` returned earlier."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        try:
            self.net.load_state_dict(part("net/"))
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint belongs to another net: {error}") from error
        checkpoint.restore_optimizer(self.optimizer, part("optimizer/"), record["optimizer"])
        self.sums = part("sum/")
        self.average = {name: tensor.to(self.net_device) for name, tensor in part(AVERAGE).items()}
        self.step = self.saved_step = int(record["step"])
        self.seconds = float(record["seconds"])
