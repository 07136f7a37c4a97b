"""Back-propagation on the net that another rule has built: the baseline that differs from it in the rule alone.

    g = d/dtheta CE(f(x), y)          f: the rule's own layers, `sidestep.nets.end_to_end`

with AdamW, and with those of the rule's hyper-parameters that back-propagation has too: learning rate, weight decay and
label smoothing. What the rule does not name has the value that stands beside it in `_DEFAULTS`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sidestep.data import Split
from sidestep.data.objective import answers
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.dropout import masks_from
from sidestep.nets.end_to_end import end_to_end_net
from sidestep.nets.noprop.chained_blocks import ChainedBlocks
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.trained import set_training
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Rule, Task
from sidestep.rules.shared.dense import adamw
from sidestep.rules.takes import Takes
from sidestep.update import Dense, Update

__all__ = ["SameNet"]

_DEFAULTS = {"learning_rate": 1e-3, "weight_decay": 1e-3, "label_smoothing": 0.0}


@dataclass(frozen=True)
class SameNet(Rule[nn.Module]):
    """Train the net of another rule end to end, by back-propagation with AdamW."""

    of: Rule
    """The rule whose net it is."""

    name: ClassVar[str] = "same-net"
    summary: ClassVar[str] = "Back-propagation on the net that another rule has built"
    takes: ClassVar[Takes] = Takes(  # whatever the other rule takes, which refuses the rest
        "any", ("image", "features", "tokens", "mapping"), ("classes", "labels", "values", "tokens", "own")
    )

    @property
    def shared(self) -> dict[str, float]:
        """The hyper-parameters that it has of the rule, by name."""
        own = {name: getattr(self.of, name, None) for name in _DEFAULTS}  # None also where a rule finds it out itself
        return {**_DEFAULTS, **{name: value for name, value in own.items() if value is not None}}

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> nn.Module:
        """Make the rule's net, around a module of the user's where one is given, and open it end to end."""
        net = self.of.build(task, noise, examples, module)
        return end_to_end_net(net, task.shape, noise.stream("same net"))

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make AdamW."""
        return adamw(net, self.units(net), self.shared["learning_rate"], self.shared["weight_decay"])

    def estimate(self, net: nn.Module, batch: Batch, noise: Noise) -> Update:
        """Return the gradient of the batch's mean loss."""
        set_training(net)
        device = batch.inputs.device
        generator = noise.generator(device)
        with kept_statistics(net) as changed, masks_from(generator), noise.stream("module").torch_seeded(device):
            if isinstance(net, ChainedBlocks):  # see there: training starts from noise
                start = net.embedding.new_empty(len(batch.targets), net.dimension)
                logits = net(batch.inputs, start.normal_(generator=generator))
            else:
                logits = net(batch.inputs)
            loss = batch.objective.mean(logits, batch.targets, self.shared["label_smoothing"])
            statistics = changed()
            gradients = gradients_of(loss, dict(net.named_parameters()))
        return Dense(gradients, statistics, {f"net: {batch.objective.name}": loss.detach()})

    def predict(
        self, net: nn.Module, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the softmax of the net's output."""
        return {"forward": answers(net, images)}
