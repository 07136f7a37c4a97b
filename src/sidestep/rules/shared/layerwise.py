"""What rules on a layer-wise net share: how it is made, of stages of a kind or of the user's."""

from collections.abc import Collection
from typing import Any, ClassVar

from torch import Tensor

from sidestep.nets.stages.heads import answers_of_heads
from sidestep.nets.stages.layerwise import LayerwiseNet, check_hidden, layerwise_net, layerwise_own
from sidestep.rules.protocol import ImagePath, Noise, OutputRule, Takes, Task

__all__ = ["LayerwiseRule"]


class LayerwiseRule(OutputRule[LayerwiseNet]):
    """What rules have in common that train dense or convolutional stages, or the parts of an nn.Sequential."""

    net: Any
    hidden: tuple[int, ...]
    norm: Any

    takes: ClassVar[Takes] = Takes("stages", targets=("classes", "labels", "values", "own"))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hidden(self.hidden)

    def stages(self, task: Task, noise: Noise, module: ImagePath | None, local: bool) -> LayerwiseNet:
        """Return the net; with `local`, every stage has a head, and otherwise the last one alone."""
        if module is not None:
            return layerwise_own(module, task.shape, task.classes, local, noise)
        with noise.stream("layers").torch_seeded():
            return layerwise_net(self.net, task.shape, self.hidden, task.classes, self.norm, local)

    def predict(
        self, net: LayerwiseNet, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return what the last head says, and where that is a reading, the sum of all heads."""
        return answers_of_heads(net, images, self.readings if names is None else names)
