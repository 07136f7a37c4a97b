"""What rules share whose stages, and a read-out of them, take steps without each other."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sidestep.nets.stages.layerwise import check_hidden
from sidestep.rules.protocol import Batch, Dense, Net, Noise, Rule, Update
from sidestep.rules.shared.dense import adamw, merged, stage_units
from sidestep.rules.shared.on_stages import OnStages

__all__ = ["StagewiseRule"]


class StagewiseRule(Rule[Net]):
    """What rules have in common whose update is that of one stage after another, and of a read-out."""

    hidden: tuple[int, ...]
    learning_rate: float
    weight_decay: float

    form_on_stages: ClassVar[type[OnStages]]  # what trains the stages of a chain of the user's

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hidden(self.hidden)

    def fits(self, net: Any) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return len(net.stages) == len(self.hidden)

    def on_stages(self) -> OnStages:
        """Return the rule on the stages of a chain of the user's."""
        return self.form_on_stages(self)

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> nn.Module:
        """Return a net of the model's own stages, with its own output as the read-out."""
        return self.on_stages().adopt(model, example, noise)

    def units(self, net: Any) -> dict[str, list[str]]:
        """Return one unit per stage, and the read-out."""
        return stage_units(net, len(self.hidden))

    def optimizer(self, net: Any) -> torch.optim.Optimizer:
        """Make the optimiser for the net's units."""
        return self.optimizer_of(net, self.units(net))

    def optimizer_of(self, net: nn.Module, units: Mapping[str, list[str]]) -> torch.optim.Optimizer:
        """Make AdamW for these units, of which the last is the read-out."""
        return adamw(net, units, self.learning_rate, self.weight_decay)

    def estimate(self, net: Any, batch: Batch, noise: Noise) -> Update:
        """Return the updates of all units as one."""
        return merged(self.estimates(net, batch, noise))

    def estimates(self, net: Any, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield each unit's name and update; none depends on another that was applied already."""
        raise NotImplementedError
