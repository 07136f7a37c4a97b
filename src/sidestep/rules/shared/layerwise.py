"""What rules on a layer-wise net share: how it is made, of stages of a kind or of the user's."""

from typing import Any, ClassVar

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
