"""Feedback alignment: the error goes back through matrices that are not the transposed weights.

    delta_l = (B_(l+1)^T delta_(l+1)) * f'(z_l)          dL/dW_l := delta_l h_(l-1)^T

`random`: B fixed (Lillicrap et al. 2016, equation 1); `sign-symmetric`: B = sign(W) mean |W| (Liao et al. 2016);
`kolen-pollack`: B starts at random and gets every step that W gets (Akrout et al. 2019, section 4). So W - B changes by
weight decay alone, by the factor 1 - learning_rate * weight_decay a step: 1 - 1e-6 at the defaults, where the two do
not meet in a run of usual length. Each layer's derivative but the one by its inputs is the ordinary one.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from sidestep.data import Split
from sidestep.data.objective import objective_of
from sidestep.nets.around import layerwise_around, twin_of
from sidestep.nets.feedback import FeedbackLayer, exact_errors, feedback_kinds, with_feedback
from sidestep.nets.layerwise import LayerwiseNet, check_hidden, layerwise_net, layerwise_own
from sidestep.nets.own import ImagePath
from sidestep.nets.trained import first_names, trained
from sidestep.nets.units import kept_statistics
from sidestep.noise import Noise
from sidestep.rules.built import built
from sidestep.rules.dense import adamw, apply_dense, check_choice, check_positive, check_range, gradients_of
from sidestep.rules.protocol import Batch, Task
from sidestep.rules.true_gradient import end_to_end
from sidestep.update import Dense, Update

__all__ = ["FeedbackAlignment"]


@dataclass(frozen=True)
class FeedbackAlignment:
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
    predictors: ClassVar[tuple[str, ...]] = ("forward",)
    for_inference: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_choice(self)
        check_hidden(self.hidden)
        check_positive(100, learning_rate=self.learning_rate)
        check_range(0, 1, weight_decay=self.weight_decay)
        check_range(0, 0.99, label_smoothing=self.label_smoothing)

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> nn.Module:
        """Make the net; a module of the user's, an nn.Sequential, takes the place of its stages."""
        if module is not None:
            net = layerwise_own(module, task.shape, task.classes, False, noise)
        else:
            with noise.stream("layers").torch_seeded():
                net = layerwise_net(self.net, task.shape, self.hidden, task.classes, self.norm, False)
        with_feedback(net, self.feedback, noise.stream("feedback"))
        return net

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> nn.Module:
        """Return a net of copies of the model's layers with its own weights, whose errors come back by feedback."""
        twin = twin_of(model)  # whose layers give way to feedback layers; the model keeps its own
        net = layerwise_around(twin, example, False, noise)
        net.modes_of(model, twin)
        with_feedback(net, self.feedback, noise.stream("feedback"))
        return net.to(example.device)

    def _own(self, net: nn.Module) -> LayerwiseNet:
        return built(net, LayerwiseNet, self, lambda own: feedback_kinds(own) == {self.feedback})

    def units(self, net: nn.Module) -> dict[str, list[str]]:
        """Return the one unit, all parameters: an error needs the layers above it."""
        net = self._own(net)
        return {"net": list(trained(net))}

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make AdamW; B and W of kolen-pollack get the same gradients, so their moments are the same too."""
        return adamw(net, self.units(net), self.learning_rate, self.weight_decay)

    def estimate(self, net: nn.Module, batch: Batch, noise: Noise) -> Update:
        """Return what the carried-back errors make of the gradient of the batch's mean cross-entropy."""
        net = self._own(net)
        net.train()
        device = batch.inputs.device
        with kept_statistics(net) as changed, noise.stream("module").torch_seeded(device):
            loss = batch.objective.mean(net(batch.inputs), batch.targets, self.label_smoothing)
            gradients = gradients_of(loss, dict(net.named_parameters()))
            statistics = changed()
        if self.feedback == "kolen-pollack":
            names = first_names(net)
            for name, layer in _feedback_layers(net).items():
                if layer.layer.weight.requires_grad:
                    gradients[f"{name}.feedback"] = gradients[names[id(layer.layer.weight)]].clone()
        return Dense(gradients, statistics, {"net: cross-entropy": loss.detach()})

    def true_gradients(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the mean cross-entropy, whose errors come back through the weights."""
        net = self._own(net)
        with exact_errors(net):
            return end_to_end(net, batch, net)

    def decide(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Return the update as it is."""
        self._own(net)
        return update

    def apply(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take one AdamW step along the gradient."""
        net = self._own(net)
        apply_dense(net, update, optimizer)

    def predict(
        self, net: nn.Module, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the softmax of the net's output; feedback has no part in it."""
        net = self._own(net)
        net.eval()
        with torch.no_grad():
            return {"forward": objective_of(net).predictions(net(images))}

    def watch(self, net: nn.Module) -> dict[str, float]:
        """Return each layer's cosine between B and W: 0 at first for random matrices, 1 is backprop."""
        net = self._own(net)
        return {
            f"{name}: cosine of feedback and weights": float(
                cosine_similarity(layer.matrix().flatten(), layer.layer.weight.detach().flatten(), dim=0)
            )
            for name, layer in list(_feedback_layers(net).items())[1:]  # nothing comes back through the first
        }


def _feedback_layers(net: nn.Module) -> dict[str, FeedbackLayer]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, FeedbackLayer)}
