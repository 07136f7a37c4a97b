"""Feedback alignment: the error goes back through matrices that are not the transposed weights.

    delta_l = (B_(l+1)^T delta_(l+1)) * f'(z_l)          dL/dW_l := delta_l h_(l-1)^T

`random`: B fixed (Lillicrap et al. 2016, equation 1); `sign-symmetric`: B = sign(W) mean |W| (Liao et al. 2016);
`kolen-pollack`: B starts at random and gets every step that W gets (Akrout et al. 2019, section 4). So W - B changes by
weight decay alone, by the factor 1 - learning_rate * weight_decay a step: 1 - 1e-6 at the defaults, where the two do
not meet in a run of usual length. Each layer's derivative but the one by its inputs is the ordinary one.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from sidestep.gradients.end_to_end import end_to_end, gradients_of
from sidestep.nets.stages.around import layerwise_around, twin_of
from sidestep.nets.stages.feedback import FeedbackLayer, exact_errors, feedback_kinds, with_feedback
from sidestep.nets.stages.layerwise import LayerwiseNet
from sidestep.nets.trained import first_names
from sidestep.nets.training_pass import training_pass
from sidestep.rules.protocol import Batch, Dense, ImagePath, Noise, Split, Task, Update
from sidestep.rules.shared.layerwise import LayerwiseRule

__all__ = ["FeedbackAlignment"]


@dataclass(frozen=True)
class FeedbackAlignment(LayerwiseRule):
    """Train a net with errors that come back through feedback matrices of their own, with AdamW."""

    net: Literal["mlp", "conv"] = "mlp"
    """Network: dense layers with ReLU, or 3 x 3 convolutions with ReLU, the first ones pooled."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the MLP's hidden layers, or channels of the conv net's stages."""
    norm: Literal["none", "layer", "batch"] = "batch"
    """Norm before each ReLU: none, over an example's features, or over the batch with running statistics."""
    feedback: Literal["random", "sign-symmetric", "kolen-pollack"] = "random"
    """The matrices B: fixed and random, the signs of the weights, or trained with the steps that the weights get."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW; with kolen-pollack the only thing that brings B and W together."""

    name: ClassVar[str] = "feedback-alignment"
    summary: ClassVar[str] = "Errors come back through random, sign-symmetric or Kolen-Pollack feedback matrices"

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> LayerwiseNet:
        """Make the net; a module of the user's, an nn.Sequential, takes the place of its stages."""
        net = self.stages(task, noise, module, local=False)
        with_feedback(net, self.feedback, noise.stream("feedback"))
        return net

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> nn.Module:
        """Return a net of copies of the model's layers with its own weights, whose errors come back by feedback."""
        twin = twin_of(model)  # whose layers give way to feedback layers; the model keeps its own
        net = layerwise_around(twin, example, False, noise)
        net.modes_of(model, twin)
        with_feedback(net, self.feedback, noise.stream("feedback"))
        return net.to(example.device)

    def fits(self, net: LayerwiseNet) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return feedback_kinds(net) == {self.feedback}

    def estimate(self, net: LayerwiseNet, batch: Batch, noise: Noise) -> Update:
        """Return what the carried-back errors make of the gradient of the batch's mean cross-entropy."""
        with training_pass(net, batch.inputs.device, noise) as changed:
            loss = batch.objective.mean(net(batch.inputs), batch.targets, self.label_smoothing)
            gradients = gradients_of(loss, dict(net.named_parameters()))
            statistics = changed()
        if self.feedback == "kolen-pollack":
            names = first_names(net)
            for name, layer in _feedback_layers(net).items():
                if layer.layer.weight.requires_grad:
                    gradients[f"{name}.feedback"] = gradients[names[id(layer.layer.weight)]].clone()
        return Dense(gradients, statistics, {"net: cross-entropy": loss.detach()})

    def true_gradients(self, net: LayerwiseNet, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the mean cross-entropy, whose errors come back through the weights."""
        with exact_errors(net):
            return end_to_end(net, batch, net)

    def diagnostics(self, net: LayerwiseNet) -> dict[str, float]:
        """Return each layer's cosine between B and W: 0 at first for random matrices, 1 is backprop."""
        return {
            f"{name}: cosine of feedback and weights": float(
                cosine_similarity(layer.matrix().flatten(), layer.layer.weight.detach().flatten(), dim=0)
            )
            for name, layer in list(_feedback_layers(net).items())[1:]  # nothing comes back through the first
        }


def _feedback_layers(net: nn.Module) -> dict[str, FeedbackLayer]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, FeedbackLayer)}
