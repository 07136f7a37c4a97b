"""Gradients estimated from the loss's derivatives along random directions, by forward mode.

weights:     g = (grad L . v) v                           v: a direction of all weights
activities:  g_W = 1/B sum_b alpha_b u_b x_b^T            u_b: on every layer's outputs; alpha_b: d loss_b along u_b
local:       the same, with losses of its own for every layer, or group of a layer's units
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import jvp

from sidestep.data.task import Batch
from sidestep.gradients.activities import activity_pass, at_layer, cotangent, output_gradients, tangent_of
from sidestep.gradients.directions import Directions
from sidestep.gradients.forward_mode import forward_mode
from sidestep.nets.check_module import inplace_explained
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.stages.staged import GroupHeads, StagedNet
from sidestep.nets.substituted import functional_call
from sidestep.nets.trained import set_training, trained
from sidestep.noise import Noise

__all__ = ["Found", "along_activities", "along_local", "along_weights", "gradients_along"]

Found = tuple[dict[str, Tensor], dict[str, Tensor]]  # gradients and losses, by name


def along_weights(net: StagedNet, batch: Batch, directions: Directions, tangents: range, noise: Noise) -> Found:
    """Return `(grad L . v) v` over all weights, the mean over the tangents, and the loss.

    Args:
        net: a staged net, in the mode that it trains in.
        batch: inputs and targets.
        directions: where the tangents are drawn.
        tangents: their numbers.
        noise: what the net draws itself, such as dropout.
    """
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


def along_activities(net: StagedNet, batch: Batch, directions: Directions, tangents: range, noise: Noise) -> Found:
    """Return the estimate from all layers' outputs at once, with arguments as `along_weights` has them.

    The read-out needs no direction, since its cotangent is known.
    """
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


def along_local(net: StagedNet, batch: Batch, directions: Directions, tangents: range, noise: Noise) -> Found:
    """Return the estimate of one stage after another, with arguments as `along_weights` has them.

    Each stage is under the losses of its own heads; the read-out is trained on the last one.

    A stage's layer runs once: its tangents start behind it, and end in one product.
    """
    gradients: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    inputs, batch_size = batch.inputs, len(batch.targets)
    for number, (stage, head) in enumerate(zip(net.stages, cast("list[GroupHeads]", net.heads), strict=True)):
        before, (name, layer), after = at_layer(stage)
        with noise.stream("before").sub(number).torch_seeded(inputs.device):
            seen = before(inputs)
        outputs, along = layer(seen), torch.zeros(())
        labels = batch.targets[:, None].expand(-1, len(head.weight), *batch.targets.shape[1:])
        moves = bool(trained(layer))
        if not moves:
            with noise.sub(number).torch_seeded(outputs.device):
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
    upstream, loss = cotangent(net.readout(features), batch.targets, batch.objective)
    losses[f"read-out: {batch.objective.name}"] = loss
    return gradients | _named("readout", output_gradients(net.readout, features, upstream / batch_size)), losses


_WAYS: dict[str, Callable[[StagedNet, Batch, Directions, range, Noise], Found]] = {
    "weights": along_weights,
    "activities": along_activities,
    "local": along_local,
}


def gradients_along(
    kind: str, net: StagedNet, batch: Batch, directions: Directions, tangents: range, noise: Noise
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return the estimate of that kind for what is not frozen, the buffers that changed, and the losses, all by name.

    The net is put into training mode and otherwise left as it was; arguments are as `along_weights` has them.
    """
    set_training(net)
    with torch.no_grad(), kept_statistics(net) as changed, forward_mode(net):
        gradients, losses = _WAYS[kind](net, batch, directions, tangents, noise)
        return {name: gradients[name] for name in trained(net) if name in gradients}, changed(), losses


def _named(prefix: str, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": gradient for name, gradient in gradients.items()}
