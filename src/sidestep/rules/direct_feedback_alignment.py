"""Direct feedback alignment: the output's error goes straight to every stage through a fixed random matrix.

    e = dL/dlogits          dL/dh_l := B_l^T e          dL/dW_l := (dh_l/dW_l)^T B_l^T e

The last layer has its ordinary gradient, and within a stage (layer, norm, ReLU) there is ordinary back-propagation; no
error passes from one stage to another, so all stages can be updated at once. Source: Nøkland, "Direct feedback
alignment provides learning in deep neural networks" (2016), section 2, equation 6.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.nets.stages.around import layerwise_around, shapes_along
from sidestep.nets.stages.layerwise import LayerwiseNet, shapes_of
from sidestep.nets.trained import first_names
from sidestep.nets.training_pass import training_pass
from sidestep.rules.protocol import Batch, Dense, ImagePath, Noise, Split, Task, Update
from sidestep.rules.shared.layerwise import LayerwiseRule

__all__ = ["DirectFeedbackAlignment"]


@dataclass(frozen=True)
class DirectFeedbackAlignment(LayerwiseRule):
    """Train every stage with the output's error, carried there by a fixed random matrix, with AdamW."""

    net: Literal["mlp", "conv"] = "mlp"
    """Network: dense layers with ReLU, or 3 x 3 convolutions with ReLU, the first ones pooled."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the MLP's hidden layers, or channels of the conv net's stages."""
    norm: Literal["none", "layer", "batch"] = "batch"
    """Norm before each ReLU: none, over an example's features, or over the batch with running statistics."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""

    name: ClassVar[str] = "direct-feedback-alignment"
    summary: ClassVar[str] = "The output's error goes straight to every stage through a fixed random matrix"

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> LayerwiseNet:
        """Make the net and its feedback; a module of the user's, an nn.Sequential, takes the place of the stages."""
        net = self.stages(task, noise, module, local=False)
        return _with_feedback(net, shapes_of(net.stages, task.shape), task.classes, noise, torch.device("cpu"))

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> nn.Module:
        """Return a net of the model's own stages, whose one head is the model's output, with feedback of its own."""
        net = layerwise_around(model, example, False, noise)
        shapes, output = shapes_along([*net.stages, net.heads[0]], example, noise)
        if len(output) != 1:
            raise InputError(
                f"the outputs must be (batch, width) to be carried back, got (batch, {str(output)[12:-2]})"
            )
        return _with_feedback(net, shapes, output[0], noise, example.device)

    def fits(self, net: LayerwiseNet) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return hasattr(net, "feedback_0")

    def estimate(self, net: LayerwiseNet, batch: Batch, noise: Noise) -> Update:
        """Return each stage's gradient under the error that its feedback matrix brings, and the head's own."""
        names = first_names(net)
        with training_pass(net, batch.inputs.device, noise) as changed:
            outputs, inputs = [], batch.inputs
            for stage in net.stages:
                outputs.append(stage(inputs))
                inputs = outputs[-1].detach()
            logits = at_least_float32(net.heads[-1](inputs))
            loss = batch.objective.mean(logits, batch.targets, self.label_smoothing)
            statistics = changed()
            error = torch.autograd.grad(loss, logits, retain_graph=True)[0]  # (batch, classes)
            gradients = gradients_of(loss, {names[id(parameter)]: parameter for parameter in net.heads.parameters()})
            for index, output in enumerate(outputs):
                brought = _agreement(output, error, net.get_buffer(f"feedback_{index}"))
                wanted = {names[id(parameter)]: parameter for parameter in net.stages[index].parameters()}
                for name, gradient in gradients_of(brought, wanted).items():  # a weight may stand in several stages
                    gradients[name] = gradients[name] + gradient if name in gradients else gradient
        return Dense(gradients, statistics, {"net: cross-entropy": loss.detach()})


def _with_feedback(
    net: LayerwiseNet, shapes: Iterable[tuple[int, ...]], width: int, noise: Noise, device: torch.device
) -> LayerwiseNet:
    """Give a net one matrix for each of its stages, (width, features), with rows of length 1."""
    for index, shape in enumerate(shapes):
        size = torch.Size(shape).numel()
        drawn = noise.stream("feedback").sub(index).normal(width * size).view(width, size)
        net.register_buffer(f"feedback_{index}", (drawn / size**0.5).to(device))
    return net


def _agreement(output: Tensor, error: Tensor, feedback: Tensor) -> Tensor:
    """`sum <h_l, e B_l>`, whose derivative by h_l, (batch, ...), is the error that the matrix brings."""
    with full_precision(output):
        brought = error @ feedback.to(error.dtype)  # (batch, features)
        return (at_least_float32(output).flatten(1) * brought).sum()
