"""Forward gradients: how the loss changes along random directions, by forward-mode differentiation.

    weights:     g = (grad L . v) v                           v: a direction of all weights
    activities:  g_W = 1/B sum_b alpha_b u_b x_b^T            u_b: on every layer's outputs; alpha_b: d loss_b along u_b
    local:       the same, with losses of its own for every layer, or group of a layer's units: u_b is as short as they

All are unbiased, `local` for its own losses and not for the net's; the mean over K tangents has 1/K of the variance.
Sources: Baydin et al., "Gradients without backpropagation" (2022), algorithm 1; Ren et al., "Scaling forward gradient
with local losses" (2022), sections 3 and 4.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import jvp

from sidestep.data import Split
from sidestep.errors import InputError
from sidestep.nets.activity import activity_pass, at_layer, check_activity, cotangent, output_gradients, tangent_of
from sidestep.nets.any_module import Losses, check_trainable, derivatives_along
from sidestep.nets.check_module import inplace_explained
from sidestep.nets.directions import Directions
from sidestep.nets.forward_mode import forward_mode
from sidestep.nets.own import ImagePath
from sidestep.nets.staged import GroupHeads, StagedNet
from sidestep.nets.substituted import functional_call
from sidestep.nets.trained import check_unshared, trained
from sidestep.nets.units import kept_statistics
from sidestep.noise import Noise
from sidestep.probes import Distribution
from sidestep.rules.any_module import seeded
from sidestep.rules.dense import check_range
from sidestep.rules.forward_only import ForwardOnlyRule, check_named, make_net
from sidestep.rules.protocol import Batch, Task
from sidestep.rules.takes import Takes
from sidestep.update import Dense, Update

__all__ = ["ForwardGradient"]

Found = tuple[dict[str, Tensor], dict[str, Tensor]]  # gradients and losses, by name


@dataclass(frozen=True)
class ForwardGradient(ForwardOnlyRule):
    """Train by directional derivatives along random directions of weights or activities."""

    kind: Literal["local", "activities", "weights"] = "local"
    """What is perturbed: every layer's outputs under losses of its own, all layers' outputs, or all weights."""
    tangents: int = 4
    """Directions per step, K."""
    groups: int = 16
    """With kind = local: groups of units per layer, each with a head and a loss of its own; a divisor of the widths."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the MLP's hidden layers."""
    norm: bool = True
    """Norm without parameters after every hidden layer: over the layer, or with kind = local over each group."""
    distribution: Distribution = "rademacher"
    """Fair signs, or normal values."""
    optimizer_kind: str = "adamw"
    """Optimiser: adamw, sgd (with momentum 0.9), plain-sgd, adam, rmsprop, adagrad, adadelta, adafactor, adamax, nadam,
    radam or asgd, as torch.optim has them; or one that was added in Python."""
    learning_rate: float = 2e-3
    """Step size."""
    weight_decay: float = 0.0
    """Weight decay of the optimiser."""

    name: ClassVar[str] = "forward-gradient"
    summary: ClassVar[str] = "Forward gradients: along random weights, activities, or activities under local losses"
    takes: ClassVar[Takes] = Takes("any", targets=("classes", "labels", "values", "own"), log="own loop")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, 100_000, tangents=self.tangents, groups=self.groups)
        check_named("cross-entropy", self.optimizer_kind)

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> StagedNet:
        """Make the MLP; a module of the user's takes the place of its hidden layers, with one head per stage."""
        net = make_net(task, self.hidden, self.norm, noise, module, self.groups if self.kind == "local" else 0)
        if self.kind != "weights":
            check_unshared(net.stages, again=False, instead="kind = weights")
            for stage in net.stages:
                check_activity(stage)
        if self.kind == "local":
            for stage in net.stages:
                at_layer(stage)
        return net

    def fits(self, net: StagedNet) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return self.kind != "local" or len(net.heads) == len(net.stages)

    def units(self, net: StagedNet) -> dict[str, list[str]]:
        """Return every stage with its head, and the read-out, for local losses; otherwise the one unit."""
        names = list(trained(net))
        if self.kind != "local":
            return {"net": names}
        units: dict[str, list[str]] = {}
        for name in names:
            part, number = name.split(".")[:2]
            units.setdefault("read-out" if part == "readout" else f"stage {number}", []).append(name)
        return units

    def estimate(self, net: StagedNet, batch: Batch, noise: Noise) -> Update:
        """Return the mean estimate of the tangents, as gradients."""
        net.train()
        directions = Directions(noise.stream("directions"), self.distribution)
        way = {"weights": _along_weights, "activities": _along_activities, "local": _along_local}[self.kind]
        with torch.no_grad(), kept_statistics(net) as changed, forward_mode(net):
            gradients, losses = way(net, batch, directions, range(self.tangents), noise.stream("module"))
            kept = {name: gradients[name] for name in trained(net) if name in gradients}
            return Dense(kept, changed(), losses)

    def check_any(self, net: nn.Module) -> None:
        """Raise InputError for a module that cannot be trained so: of any module only the weights are known."""
        if self.kind != "weights":
            raise InputError(
                f"on a whole model only weights can be given directions, got kind = {self.kind}: "
                "ForwardGradient(kind='weights')"
            )
        check_trainable(net)

    def estimate_any(self, net: nn.Module, losses: Losses, noise: Noise) -> Update:
        """Return one number per direction of all weights: the loss's derivative along it."""
        directions = Directions(noise.stream("directions"), self.distribution)
        found, loss, statistics = derivatives_along(net, losses, directions, self.tangents, noise.stream("module"))
        return seeded(net, found / self.tangents, noise, self.distribution, statistics, loss)


def _along_weights(net: StagedNet, batch: Batch, directions: Directions, tangents: range, noise: Noise) -> Found:
    """`(grad L . v) v` over all weights."""
    weights = {name: parameter.detach() for name, parameter in trained(net).items()}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def loss_at(values: dict[str, Tensor]) -> Tensor:
        with noise.torch_seeded(batch.inputs.device):  # dropout: one mask for all tangents
            return batch.objective.mean(functional_call(net, values, (batch.inputs,)), batch.targets)

    for index in tangents:
        along = {name: directions.draw(name, weight.shape, index, weight) for name, weight in weights.items()}
        with inplace_explained():
            loss, derivative = jvp(loss_at, (weights,), (along,))[:2]
        for name, v in along.items():
            sums[name] += v * (derivative / len(tangents))
    return sums, {f"net: {batch.objective.name}": loss}


def _along_activities(net: StagedNet, batch: Batch, directions: Directions, tangents: range, noise: Noise) -> Found:
    """All layers' outputs at once; the read-out needs no direction, since its cotangent is known."""
    stages = nn.Sequential(*net.stages)
    sums: dict[str, Tensor] = {}
    for index in tangents:
        with noise.torch_seeded(batch.inputs.device):
            features, tangent, seen = activity_pass(stages, batch.inputs, "stages", directions, index)
        features = features.flatten(1)
        upstream, loss = cotangent(net.readout(features), batch.targets, batch.objective)
        moved = tangent.flatten(1) @ net.readout.weight.T.to(tangent.dtype)
        alpha = (upstream * moved).sum(dim=1) / (len(features) * len(tangents))
        for name, layer in seen.items():
            along = layer.direction * alpha.to(layer.direction.dtype).view(-1, *[1] * (layer.direction.ndim - 1))
            for whole, gradient in _named(name, output_gradients(layer.layer, layer.inputs, along)).items():
                sums[whole] = sums[whole] + gradient if whole in sums else gradient
    exact = output_gradients(net.readout, features, upstream / len(features))
    return sums | _named("readout", exact), {f"net: {batch.objective.name}": loss}


def _along_local(net: StagedNet, batch: Batch, directions: Directions, tangents: range, noise: Noise) -> Found:
    """One stage after another, each under the losses of its own heads; the read-out is trained on the last one.

    A stage's layer runs once: its tangents start behind it, and end in one product.
    """
    gradients: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    inputs, batch_size = batch.inputs, len(batch.targets)
    for number, (stage, head) in enumerate(zip(net.stages, cast("list[GroupHeads]", net.heads), strict=True)):
        before, (name, layer), after = at_layer(stage)
        seen = before(inputs)
        outputs, along = layer(seen), torch.zeros(())
        labels = batch.targets[:, None].expand(-1, len(head.weight), *batch.targets.shape[1:])
        moves = bool(trained(layer))
        if not moves:
            features = after(outputs)
            upstream, loss = cotangent(head(features), labels, batch.objective)
        for index in tangents if moves else range(0):
            direction = directions.draw(f"stages.{number}.{name}", outputs.shape, index, outputs)
            with noise.sub(number).torch_seeded(outputs.device):
                features, tangent = tangent_of(after, outputs, direction)
            upstream, loss = cotangent(head(features), labels, batch.objective)
            alpha = (upstream * head.linear(tangent)).sum(dim=2) / (batch_size * len(tangents))  # (batch, groups)
            along = along + direction.view(*alpha.shape, -1) * alpha[:, :, None]
        losses[f"stage {number}: {batch.objective.name}"] = loss
        if moves:
            gradients |= _named(f"stages.{number}.{name}", output_gradients(layer, seen, along.view(outputs.shape)))
        gradients |= _named(f"heads.{number}", head.gradients(features, upstream / batch_size))
        inputs = features
    features = inputs.flatten(1)
    upstream, losses["read-out: cross-entropy"] = cotangent(net.readout(features), batch.targets, batch.objective)
    return gradients | _named("readout", output_gradients(net.readout, features, upstream / batch_size)), losses


def _named(prefix: str, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": gradient for name, gradient in gradients.items()}
