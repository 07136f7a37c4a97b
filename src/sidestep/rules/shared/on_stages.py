"""Forward-forward and Hebbian learning on the stages of a user's own chain, whose last part is the read-out.

    goodness:  L_l = loss of (g_l(x, y), g_l(x, y'))          g_l(x, y): mean square of class y's share of features
    hebbian:   Delta W of the one layer of a stage, from what it sees
    read-out:  the gradient of the model's own loss by its last part, with the features before it as data

No derivative passes from one part to another. What a stage sees is what the part before it gives, as it is: lengths and
means are the model's own affair (a norm in each stage).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from sidestep.data import Split
from sidestep.data.objective import answers
from sidestep.errors import InputError
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import at_least_float32
from sidestep.nets.stages.around import Around, layerwise_around, shapes_along
from sidestep.nets.stages.goodness import goodness_loss, goodness_of_shares, wrong_labels
from sidestep.nets.stages.hebbian import hebbian_change, some_rows
from sidestep.nets.trained import parameters_of, trained
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Rule, Task
from sidestep.rules.shared.dense import merged
from sidestep.update import Dense, Update

__all__ = ["GoodnessOnStages", "HebbianOnStages", "OnStages", "stage_update"]


@dataclass(frozen=True)
class OnStages(Rule[Around]):
    """What the two have in common: units, the read-out's update, and predictions by the model's output."""

    rule: Any
    """The rule, with its hyper-parameters."""

    name: ClassVar[str] = "on stages"
    summary: ClassVar[str] = "A rule on the stages of a module of the user's"

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> Around:
        """Refuse: the stages are the user's."""
        raise InputError(f"{self.rule.name} on stages of yours is attached to them, sidestep.attach(model, rule)")

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> Around:
        """Return a net of the model's own stages, with its own output as the read-out."""
        raise NotImplementedError

    def units(self, net: Around) -> dict[str, list[str]]:
        """Return one unit for each stage, and the read-out."""
        names = self.moved(net)
        stages = {f"stage {i}": [n for n in names if n.startswith(f"stages.{i}.")] for i in range(len(net.stages))}
        return {**stages, "readout": [name for name in names if name.startswith("heads.")]}

    def moved(self, net: Around) -> list[str]:
        """Return the names of the parameters that are trained: all that are not frozen."""
        return list(trained(net))

    def optimizer(self, net: Around) -> torch.optim.Optimizer:
        """Make the rule's optimiser."""
        made: torch.optim.Optimizer = self.rule.optimizer_of(net, self.units(net))
        return made

    def estimate(self, net: Around, batch: Batch, noise: Noise) -> Update:
        """Return each stage's update and the read-out's."""
        return merged(self.estimates(net, batch, noise))

    def estimates(self, net: Around, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield one unit's update after another."""
        raise NotImplementedError

    def predict(
        self, net: Around, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return what the objective makes of the model's outputs."""
        return {"forward": answers(net, images)}

    def readout(self, net: Around, features: Tensor, batch: Batch, noise: Noise) -> tuple[Dense, Tensor]:
        """Return the read-out's update from the last stage's features, and its outputs as data."""
        own = {name: p for name, p in parameters_of(net).items() if name.startswith("heads.")}
        with noise.stream("readout").torch_seeded(features.device):
            outputs = at_least_float32(net.heads[-1](features))
            loss = batch.objective.mean(outputs, batch.targets)
            found = gradients_of(loss, own)
            return Dense(found, {}, {f"readout: {batch.objective.name}": loss.detach()}), outputs.detach()


@dataclass(frozen=True)
class GoodnessOnStages(OnStages):
    """Train every stage to be active in the features of the true label, and quiet in those of a wrong one."""

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> Around:
        """Return a net of the model's own stages, with its own output as the read-out."""
        if self.rule.label != "head":
            raise InputError(
                f"on stages of yours {self.rule.name} needs the label as a group of features of each stage, since the "
                "inputs are yours: ForwardForward(label='head')"
            )
        net = layerwise_around(model, example, False, noise)
        shapes, output = shapes_along([*net.stages, net.heads[-1]], example, noise)
        if len(output) != 1 or output[0] < 2:
            raise InputError(f"the model's outputs must be (batch, classes), 2 or more, got {tuple(output)} for one")
        for number, shape in enumerate(shapes, start=1):
            if not shape or shape[0] < output[0]:
                raise InputError(
                    f"each stage needs a feature for every class, {output[0]}, but stage {number} gives features of "
                    f"shape {tuple(shape)}; make it wider"
                )
        return net

    def estimates(self, net: Around, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield one stage's update after another, and the read-out's; each sees the stages as they were."""
        if batch.objective.kind != "classes":
            raise InputError(f"{self.rule.name} learns classes, of which some are wrong, got {batch.objective.name}")
        parameters, units = parameters_of(net), self.units(net)
        found, inputs, updates = list[Tensor](), batch.inputs, dict[str, Dense]()
        with kept_statistics(net) as changed:  # to the end: putting buffers back would break what derivatives need
            for index, stage in enumerate(net.stages):
                with noise.stream("module").sub(index).torch_seeded(inputs.device):
                    found.append(stage(inputs))
                inputs = found[-1].detach()
            readout, logits = self.readout(net, inputs, batch, noise)
            likely = logits if self.rule.negatives == "hard" else torch.zeros_like(logits)
            wrong = wrong_labels(batch.targets, likely, noise.stream("negatives"))
            for index, outputs in enumerate(found):
                goodness = goodness_of_shares(outputs, logits.shape[1])
                right, other = (goodness.gather(1, labels[:, None])[:, 0] for labels in (batch.targets, wrong))
                loss = goodness_loss(right, other, self.rule.threshold, self.rule.sharpness)
                gradients = gradients_of(loss, {name: parameters[name] for name in units[f"stage {index}"]})
                updates[f"stage {index}"] = Dense(gradients, {}, {f"stage {index}: goodness": loss.detach()})
            updates["readout"] = replace(readout, statistics=changed())
        yield from updates.items()


@dataclass(frozen=True)
class HebbianOnStages(OnStages):
    """Move the one layer of every stage by the correlations of what it sees."""

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> Around:
        """Return a net of the model's own stages, with its own output as the read-out."""
        net = layerwise_around(model, example, False, noise)
        for index in range(len(net.stages)):
            _layer_of(net, index)
        return net

    def moved(self, net: Around) -> list[str]:
        """Return the weight of each stage's layer, and the read-out's parameters: a bias of a stage stays as it is."""
        layers = [f"stages.{index}.{_layer_of(net, index)[0]}.weight" for index in range(len(net.stages))]
        names = list(trained(net))
        return [name for name in names if name in layers or name.startswith("heads.")]

    def estimates(self, net: Around, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield one stage's update after another, and the read-out's; each sees the stages as they were."""
        rule, inputs = self.rule, batch.inputs
        for index, stage in enumerate(net.stages):
            path, layer = _layer_of(net, index)
            seen: list[Tensor] = []
            hook = layer.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
            own = noise.stream("module").sub(index)
            try:
                with (
                    kept_statistics(stage, f"stages.{index}.") as changed, torch.no_grad(),
                    own.torch_seeded(inputs.device),
                ):  # fmt: skip
                    inputs = stage(inputs)
                    statistics = changed()
            finally:
                hook.remove()
            rows = _rows_of(layer, seen[0])
            yield f"stage {index}", stage_update(rule, f"stages.{index}.{path}", layer, rows, statistics, noise)
        with kept_statistics(net.heads, "heads.") as changed:
            update, _ = self.readout(net, inputs, batch, noise)
            update = replace(update, statistics=changed())
        yield "readout", update if noise.step >= rule.readout_from else replace(update, gradients={})


def stage_update(
    rule: Any, path: str, layer: nn.Linear | nn.Conv2d, rows: Tensor, statistics: dict[str, Tensor], noise: Noise
) -> Dense:
    """Return the Hebbian update of one stage: minus Delta W of its layer, or nothing where the stages rest by now.

    Args:
        rule: the rule, with its hyper-parameters.
        path: of the layer in the net, `stages.0.layer`; the number is the stage's.
        layer: what moves.
        rows: what the layer sees, (examples or patches, inputs).
        statistics: new values of the stage's buffers, by name.
        noise: at the current step.
    """
    index = int(path.split(".")[1])
    rows, weight = some_rows(rows, noise.sub(index)), layer.weight
    resting = rule.stage_steps is not None and noise.step >= rule.stage_steps
    change = torch.zeros_like(weight)
    if not resting:
        change = hebbian_change(rule.kind, layer, rows, rule.temperature).view_as(weight)
    losses = {f"stage {index}: change": change.square().mean().sqrt()}
    return Dense({} if resting else {f"{path}.weight": -change.to(weight.dtype)}, statistics, losses)


def _layer_of(net: Around, index: int) -> tuple[str, Any]:
    """The path in a stage, and the module, of its one layer whose weight is trained."""
    stage, found = net.stages[index], []
    for path, layer in stage.named_modules():
        if any(p.requires_grad and p.ndim > 1 for p in layer.parameters(recurse=False)):
            found.append((path, layer))
    kinds = [type(layer).__name__ for _, layer in found]
    if len(found) != 1 or not isinstance(found[0][1], nn.Linear | nn.Conv2d):
        raise InputError(
            f"Hebbian learning moves one nn.Linear or nn.Conv2d in each stage, but stage {index + 1} has "
            f"{', '.join(kinds) or 'none'} that is not frozen; write the model so, or freeze the others"
        )
    path, layer = found[0]
    if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros"):
        raise InputError(f"the Conv2d of stage {index + 1} needs groups = 1 and padding_mode = 'zeros' for its patches")
    return path, layer


def _rows_of(layer: nn.Module, seen: Tensor) -> Tensor:
    """What a layer sees, row by row: of a convolution its patches, (rows, inputs)."""
    if isinstance(layer, nn.Conv2d):
        padding: Any = layer.padding
        if isinstance(padding, str):
            same = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            padding = same if padding == "same" else 0
        patches = unfold(seen, layer.kernel_size, layer.dilation, padding, layer.stride)
        return patches.transpose(1, 2).flatten(0, 1)
    return seen.flatten(0, -2)
