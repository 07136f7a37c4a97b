"""Forward-forward: every stage learns to be active for an image with its label, and quiet for it with a wrong one.

    L_l = softplus(a (t - g_l(x, y))) + softplus(a (g_l(x, y') - t))        with a threshold t
    L_l = softplus(a (g_l(x, y') - g_l(x, y)))                              without one (the default)

y' is never y, h_(l-1) is data, and g is the mean square of a stage's features. Two forward passes take the place of
forward and backward through the net; within a stage, one layer with its ReLU, reverse mode takes the derivative. To
predict, all labels are tried, and the one with the most goodness wins; or a linear layer reads
the features of the image alone. The label is shown in the input, or is the index of a group of features. Sources:
Hinton, "The forward-forward algorithm" (2022), equation 1 and section 3.3; the loss without a threshold: Lee and Song,
"SymBa" (2023). See `sidestep.nets.stages.goodness` for what else differs.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sidestep.checks import check_positive, check_range
from sidestep.errors import InputError
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.precision import at_least_float32
from sidestep.nets.stages.goodness import GoodnessNet, goodness_loss, wrong_labels
from sidestep.nets.trained import set_training
from sidestep.rules.protocol import Batch, Dense, ImagePath, Noise, Split, Takes, Task
from sidestep.rules.shared.on_stages import GoodnessOnStages, OnStages
from sidestep.rules.shared.stagewise import StagewiseRule

__all__ = ["ForwardForward"]


@dataclass(frozen=True)
class ForwardForward(StagewiseRule[GoodnessNet]):
    """Train every stage to tell true labels from wrong ones by its activity, with AdamW."""

    net: Literal["mlp", "conv"] = "mlp"
    """Network: dense layers with ReLU, or 3 x 3 convolutions with ReLU, the first ones pooled."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the MLP's hidden layers, or channels of the conv net's stages."""
    label: Literal["input", "head"] = "input"
    """Where the label is: a pattern in a further channel of the input, or a group of features in every stage."""
    negatives: Literal["hard", "uniform"] = "hard"
    """Wrong labels: those that the linear read-out takes for likely, or any."""
    threshold: float = 0.0
    """Goodness t that true labels are to pass and wrong ones to stay below (1 is a good one); 0 compares the two with
    each other."""
    sharpness: float = 4.0
    """Factor a on differences of goodness."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""

    name: ClassVar[str] = "forward-forward"
    summary: ClassVar[str] = "Stages that are active for true labels and quiet for wrong ones, each by its own gradient"
    takes: ClassVar[Takes] = Takes(no_module="a stage must be a layer with ReLU whose length can be taken off")
    readings: ClassVar[tuple[str, ...]] = ("goodness", "readout")
    form_on_stages: ClassVar[type[OnStages]] = GoodnessOnStages
    no_true_gradient: ClassVar[str] = (
        "a label is predicted by trying all, and its stages estimate gradients of their own goodness, not of that"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(100, sharpness=self.sharpness)
        check_range(0, 1000, threshold=self.threshold)

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> GoodnessNet:
        """Make the net; it has no place for a module of the user's."""
        if task.classes < 2:
            raise InputError("forward-forward needs two classes or more: a single label has no wrong one")
        return GoodnessNet(self.net, task.shape, self.hidden, task.classes, self.label == "input", noise)

    def fits(self, net: GoodnessNet) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return super().fits(net) and net.painted == (self.label == "input")

    def estimates(self, net: GoodnessNet, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield the read-out's update, then one stage's after another, whose input comes from the stages as they were.

        The read-out is first: what it takes for likely, by a pass without derivatives, are the hard negatives.
        """
        set_training(net)
        labels, parameters, units = batch.targets, dict(net.named_parameters()), self.units(net)
        logits = net(batch.inputs)
        loss = cross_entropy(logits, labels)
        readout = {name: parameters[name] for name in units["readout"]}
        yield "readout", Dense(gradients_of(loss, readout), {}, {"readout: cross-entropy": loss.detach()})
        likely = logits.detach() if self.negatives == "hard" else torch.zeros_like(logits.detach())
        wrong = wrong_labels(labels, likely, noise.stream("negatives"))
        outputs_of_stages = net.stage_outputs(net.inputs_of_pair(batch.inputs, labels, wrong))
        for (unit, names), outputs in zip(units.items(), outputs_of_stages, strict=False):
            loss = goodness_loss(*net.goodness_of_pair(outputs, labels, wrong), self.threshold, self.sharpness)
            del outputs
            found = {name: parameters[name] for name in names}
            yield unit, Dense(gradients_of(loss, found), {}, {f"{unit}: goodness": loss.detach()})

    def predict(
        self, net: GoodnessNet, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the softmax of every label's goodness, tried one after another, and of the linear read-out."""
        net.eval()
        found = {}
        with torch.no_grad():
            for name in self.readings if names is None else names:
                logits = self.sharpness * net.every_goodness(images) if name == "goodness" else net(images)
                found[name] = at_least_float32(logits).softmax(dim=1)
        return found
