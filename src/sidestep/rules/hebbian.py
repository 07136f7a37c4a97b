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
from sidestep.data import Split
from sidestep.data.objective import answers
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import at_least_float32
from sidestep.nets.stages.hebbian import HebbianNet, hebbian_change, some_rows
from sidestep.nets.stages.layerwise import check_hidden
from sidestep.nets.trained import set_training
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Rule, Task
from sidestep.rules.shared.dense import adamw, merged, stage_units
from sidestep.rules.shared.on_stages import HebbianOnStages
from sidestep.rules.takes import Takes
from sidestep.update import Dense, Update

__all__ = ["Hebbian"]

_FITTED = 1000  # images that the whitening of patches is taken from


@dataclass(frozen=True)
class Hebbian(Rule[HebbianNet]):
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
    no_true_gradient: ClassVar[str] = "its stages follow the correlations of their inputs and estimate no gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hidden(self.hidden)
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

    def on_stages(self) -> HebbianOnStages:
        """Return the rule on the stages of a chain of the user's."""
        return HebbianOnStages(self)

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> nn.Module:
        """Return a net of the model's own stages, with its own output as the read-out."""
        return self.on_stages().adopt(model, example, noise)

    def fits(self, net: HebbianNet) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return len(net.stages) == len(self.hidden)

    def units(self, net: HebbianNet) -> dict[str, list[str]]:
        """Return one unit per stage, and the read-out."""
        return stage_units(net, len(self.hidden))

    def optimizer(self, net: HebbianNet) -> torch.optim.Optimizer:
        """Make AdamW, without weight decay on the stages: it would move their fixed points."""
        return self.optimizer_of(net, self.units(net))

    def optimizer_of(self, net: nn.Module, units: Mapping[str, list[str]]) -> torch.optim.Optimizer:
        """Make the optimiser for these units, of which the last is the read-out."""
        optimizer = adamw(net, units, self.learning_rate, self.weight_decay)
        for group in optimizer.param_groups[:-1]:
            group["weight_decay"] = 0.0
        return optimizer

    def estimate(self, net: HebbianNet, batch: Batch, noise: Noise) -> Update:
        """Return minus each stage's Hebbian change, and the gradient of the read-out's cross-entropy."""
        return merged(self.estimates(net, batch, noise))

    def estimates(self, net: HebbianNet, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield one stage's update after another, and then the read-out's; each sees the stages as they were."""
        set_training(net)
        features, images = [], batch.inputs
        resting = self.stage_steps is not None and noise.step >= self.stage_steps
        for index, (stage, summary) in enumerate(zip(net.stages, net.summaries, strict=True)):
            own = (kept_statistics(stage, f"stages.{index}."), kept_statistics(summary, f"summaries.{index}."))
            with own[0] as of_stage, own[1] as of_summary, torch.no_grad():
                seen, images = stage(images)
                features.append(summary(images))
                statistics = {**of_stage(), **of_summary()}
            layer: nn.Linear = stage.layer  # type: ignore[assignment]
            rows = some_rows(seen.flatten(0, -2), noise.sub(index))
            change = torch.zeros_like(layer.weight) if resting else self._change(layer, rows)
            losses = {f"stage {index}: change": change.square().mean().sqrt()}
            update = Dense({} if resting else {f"stages.{index}.layer.weight": -change}, statistics, losses)
            del seen, rows, change
            yield f"stage {index}", update
            del update  # before the next one's activations are made
        loss = batch.objective.mean(at_least_float32(net.readout(torch.cat(features, dim=1))), batch.targets)
        readout = {f"readout.{name}": parameter for name, parameter in net.readout.named_parameters()}
        learned = gradients_of(loss, readout) if noise.step >= self.readout_from else {}
        yield "readout", Dense(learned, {}, {"readout: cross-entropy": loss.detach()})

    def _change(self, layer: nn.Linear, rows: Tensor) -> Tensor:
        return hebbian_change(self.kind, layer, rows, self.temperature)

    def predict(
        self, net: HebbianNet, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the softmax of the read-out."""
        return {"readout": answers(net, images)}

    def diagnostics(self, net: HebbianNet) -> dict[str, float]:
        """Return the mean length of each stage's weight rows, which the rules draw towards 1."""
        rows = [stage.layer.weight.detach().flatten(1) for stage in net.stages]  # type: ignore[union-attr, operator]
        return {f"stage {i}: mean length of weights": float(w.norm(dim=1).mean()) for i, w in enumerate(rows)}
