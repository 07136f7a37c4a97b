"""Hebbian learning: stages follow the correlations of their inputs, and a linear read-out learns the labels.

    Delta W of a stage: Oja's, Sanger's, or soft winner-take-all (equations in `sidestep.nets.stages.hebbian`)
    read-out:           Delta V = (onehot(y) - softmax(V h + c)) h^T          the delta rule

The stages never see a label or an error; the read-out, of all stages' features, is trained at the same time, or after
them (`stage_steps` and `readout_from`: the steps of one pass over the data, say). Minus Delta W stands in the place of
a gradient, so an optimiser's step along it has the rule's own fixed points. Sources: Oja (1982), Sanger (1989), Journé
et al., "Hebbian deep learning without feedback" (2023).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sidestep.checks import check_positive, check_range
from sidestep.data.objective import answers
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.precision import at_least_float32
from sidestep.nets.stages.hebbian import HebbianNet
from sidestep.nets.trained import set_training
from sidestep.rules.protocol import Batch, Dense, ImagePath, Noise, Split, Takes, Task
from sidestep.rules.shared.on_stages import HebbianOnStages, OnStages, stage_update
from sidestep.rules.shared.stagewise import StagewiseRule

__all__ = ["Hebbian"]

_FITTED = 1000  # images that the whitening of patches is taken from


@dataclass(frozen=True)
class Hebbian(StagewiseRule[HebbianNet]):
    """Train stages by correlation, without labels, and a linear read-out by the delta rule, with AdamW."""

    net: Literal["mlp", "conv"] = "mlp"
    """Network: dense stages, or stages that see patches: of the image, whitened, and then of pooled features."""
    hidden: tuple[int, ...] = (512, 512)
    """Units of the MLP's stages, or channels of the conv net's."""
    kind: Literal["winner", "against", "oja", "sanger"] = "winner"
    """Rule of the stages: soft winner-take-all, the same with the other units driven away, Oja's subspace, or Sanger's
    ordered components."""
    temperature: float = 0.1
    """Temperature T of the soft winner-take-all: small ones let one unit win."""
    stage_steps: int | None = None
    """Steps in which the stages learn; then they rest, and only the read-out learns on. Default: all."""
    readout_from: int = 0
    """Step from which the read-out learns; with stage_steps the same, the stages learn first and the read-out after. In
    a run of no more steps it stays at zero, where all classes are equally likely."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW on the read-out; the stages' rules bound their weights themselves."""

    name: ClassVar[str] = "hebbian"
    summary: ClassVar[str] = "Oja's, Sanger's or soft winner-take-all stages without labels, and a linear read-out"
    takes: ClassVar[Takes] = Takes(
        targets=("classes", "labels", "values", "own"),
        no_module="its stages are linear layers or convolutions without a bias",
    )
    readings: ClassVar[tuple[str, ...]] = ("readout",)
    form_on_stages: ClassVar[type[OnStages]] = HebbianOnStages
    no_true_gradient: ClassVar[str] = "its stages follow the correlations of their inputs and estimate no gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(1e6, temperature=self.temperature)
        check_range(0, 10**9, readout_from=self.readout_from)
        if self.stage_steps is not None:
            check_range(0, 10**9, stage_steps=self.stage_steps)

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> HebbianNet:
        """Make the net; it has no place for a module of the user's."""
        stages = noise.stream("stages")
        with noise.stream("readout").torch_seeded():
            net = HebbianNet(self.net, task.shape, self.hidden, task.classes, self.kind, stages)
        if examples is not None and self.net == "conv":
            some = noise.stream("whitening").permutation(len(examples))[:_FITTED].to(examples.images.device)
            net.fit(task.scaled(examples.images[some]).to("cpu"))
        return net

    def optimizer_of(self, net: nn.Module, units: Mapping[str, list[str]]) -> torch.optim.Optimizer:
        """Make AdamW, without weight decay on the stages: it would move their fixed points."""
        optimizer = super().optimizer_of(net, units)
        for group in optimizer.param_groups[:-1]:
            group["weight_decay"] = 0.0
        return optimizer

    def estimates(self, net: HebbianNet, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield one stage's update after another, and then the read-out's; each sees the stages as they were."""
        set_training(net)
        features, images = [], batch.inputs
        for index, stage in enumerate(net.stages):
            rows, images, summed, statistics = net.stage_pass(index, images)
            features.append(summed)
            layer: nn.Linear = stage.layer  # type: ignore[assignment]
            update = stage_update(self, f"stages.{index}.layer", layer, rows, statistics, noise)
            del rows
            yield f"stage {index}", update
            del update  # before the next one's activations are made
        loss = batch.objective.mean(at_least_float32(net.readout(torch.cat(features, dim=1))), batch.targets)
        readout = {f"readout.{name}": parameter for name, parameter in net.readout.named_parameters()}
        learned = gradients_of(loss, readout) if noise.step >= self.readout_from else {}
        yield "readout", Dense(learned, {}, {"readout: cross-entropy": loss.detach()})

    def predict(
        self, net: HebbianNet, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the softmax of the read-out."""
        return {"readout": answers(net, images)}

    def diagnostics(self, net: HebbianNet) -> dict[str, float]:
        """Return the mean length of each stage's weight rows, which the rules draw towards 1."""
        rows = [stage.layer.weight.detach().flatten(1) for stage in net.stages]  # type: ignore[union-attr, operator]
        return {f"stage {i}: mean length of weights": float(w.norm(dim=1).mean()) for i, w in enumerate(rows)}
