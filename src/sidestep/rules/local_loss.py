"""Local losses: every stage has a head and a loss of its own, and no derivative passes between stages.

    L_l = (1 - s) CE(V_l h_l, y) + s |C(A(P_l h_l)) - C(Y)|^2 / n^2          h_(l-1) is data

C is the matrix of the cosines between the examples of a batch, after their mean is taken off, and Y the one-hot labels:
examples of one class are to look alike. P_l is a linear layer; for maps it is a 3 x 3 convolution, and A the standard
deviation over places. Source: Nøkland and Eidnes, "Training neural networks with local error signals" (2019), section 2
(`predsim`; its s is 0.99, since the similarity term is small).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from sidestep.checks import check_range
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import at_least_float32
from sidestep.nets.stages.around import layerwise_around, shapes_along
from sidestep.nets.stages.feedback import feedback_kinds
from sidestep.nets.stages.layerwise import LayerwiseNet, shapes_of
from sidestep.nets.stages.similarity import add_projections, similarity_loss
from sidestep.nets.trained import set_training
from sidestep.rules.protocol import Batch, Dense, ImagePath, Noise, Split, Task, Update
from sidestep.rules.shared.dense import merged, numbered_units
from sidestep.rules.shared.layerwise import LayerwiseRule

__all__ = ["LocalLoss"]


@dataclass(frozen=True)
class LocalLoss(LayerwiseRule):
    """Train every stage of a net on the loss of its own head, with AdamW."""

    net: Literal["mlp", "conv"] = "mlp"
    """Network: dense layers with ReLU, or 3 x 3 convolutions with ReLU, the first ones pooled."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the MLP's hidden layers, or channels of the conv net's stages."""
    norm: Literal["none", "layer", "batch"] = "batch"
    """Norm before each ReLU: none, over an example's features, or over the batch with running statistics."""
    similarity: float = 0.0
    """Share s of the similarity loss (0.99 in the paper); 0 leaves it and its projections out."""
    label_smoothing: float = 0.1
    """Share of a label that is spread over all classes, in the cross-entropies."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""

    name: ClassVar[str] = "local-loss"
    summary: ClassVar[str] = "A head and a loss per stage; no derivative passes between stages"
    readings: ClassVar[tuple[str, ...]] = ("forward", "heads")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, 0.9999, similarity=self.similarity)

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> LayerwiseNet:
        """Make the net; a module of the user's, an nn.Sequential, takes the place of its stages."""
        net = self.stages(task, noise, module, local=True)
        if self.similarity:
            add_projections(net, shapes_of(net.stages, task.shape), noise)
        return net

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> nn.Module:
        """Return a net of the model's own stages, whose last head is the model's output; the other heads are new."""
        net = layerwise_around(model, example, True, noise)
        if self.similarity:
            shapes, last = shapes_along(list(net.stages), example, noise)
            add_projections(net, [*shapes, last], noise).to(example.device)
        return net

    def fits(self, net: LayerwiseNet) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        projected = not self.similarity or hasattr(net, "projections")
        return len(net.heads) == len(net.stages) and projected and not feedback_kinds(net)

    def units(self, net: LayerwiseNet) -> dict[str, list[str]]:
        """Return one unit per stage, with its head."""
        return {unit: list(own) for unit, own in numbered_units(net, len(net.stages)).items()}

    def estimate(self, net: LayerwiseNet, batch: Batch, noise: Noise) -> Update:
        """Return the gradient of each stage's own loss; one stage's activations at a time are kept."""
        return merged(self.estimates(net, batch, noise))

    def estimates(self, net: LayerwiseNet, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield one stage's update after another; a stage's input comes from the stages as they were."""
        set_training(net)
        inputs, module = batch.inputs, noise.stream("module")
        for index, (stage, (unit, weights)) in enumerate(
            zip(net.stages, numbered_units(net, len(net.stages)).items(), strict=True)
        ):
            own = module.sub(index)  # for modules of the user's that draw from torch's own generator
            with kept_statistics(stage, f"stages.{index}.") as changed, own.torch_seeded(inputs.device):
                outputs = stage(inputs)
                inputs = outputs.detach()
                loss, terms = self._loss(net, index, outputs, batch)
                del outputs
                gradients = gradients_of(loss, weights)
                update = Dense(gradients, changed(), {f"{unit}: {term}": value for term, value in terms.items()})
            del gradients
            yield unit, update
            del update  # before the next one's activations are made

    def _loss(self, net: LayerwiseNet, index: int, outputs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a stage's loss, (), and its terms."""
        logits = at_least_float32(net.heads[index](outputs))
        loss = batch.objective.mean(logits, batch.targets, self.label_smoothing)
        losses = {batch.objective.name: loss.detach()}
        if self.similarity:
            alike = similarity_loss(net.projections[index], outputs, logits.shape[1], batch.targets)  # type: ignore
            losses["similarity"] = alike.detach()
            loss = (1 - self.similarity) * loss + self.similarity * alike
        return loss, losses
