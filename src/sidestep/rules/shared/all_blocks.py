"""The estimates of all of NoProp-DT's blocks in one pass: equal to block by block, to rounding."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sidestep.data.task import Batch
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.noprop.batched_blocks import BlocksTogether, drawn_masks
from sidestep.nets.noprop.captured_pass import captured_logits
from sidestep.nets.noprop.losses import denoising_loss
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.noise import Noise

__all__ = ["DenoisingLoss", "UnitEstimate", "loss_of_each", "together_estimate"]


class UnitEstimate(NamedTuple):
    """One unit's part of an estimate."""

    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]
    embedding: Tensor | None


class DenoisingLoss(Protocol):
    """The hyper-parameters of a rule that its denoising loss depends on."""

    @property
    def loss(self) -> str: ...

    @property
    def eta(self) -> float: ...

    @property
    def largest_weight(self) -> float: ...

    @property
    def label_smoothing(self) -> float: ...


def loss_of_each(rule: DenoisingLoss, net: DenoisingStack, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the denoising loss of each example, from a block's logits and the weight of its squared error."""
    return denoising_loss(
        rule.loss, logits, net.embedding, labels, weights, rule.largest_weight, rule.label_smoothing, net.space
    )


def together_estimate(
    rule: DenoisingLoss, net: DenoisingStack, batch: Batch, noise: Noise, execution: str
) -> tuple[list[UnitEstimate], dict[str, Tensor]]:
    """Return the blocks' shares as one, computed in one pass, and the new statistics; equal to rounding."""
    count, labels = len(net.blocks), batch.targets
    generators = [noise.sub(index).generator(batch.inputs.device) for index in range(count)]
    latents = torch.stack([net.drawn_label(labels, index, one) for index, one in enumerate(generators)])
    run, masks = BlocksTogether.copied([net.block(index) for index in range(count)]), drawn_masks(generators)
    if execution == "together":
        logits = run.logits(batch.inputs, latents, masks)
    else:
        logits = captured_logits(run, execution, batch.inputs, latents, masks)
    weights = net.loss_weights(rule.eta).to(logits).repeat_interleave(len(labels))
    each = loss_of_each(rule, net, logits.flatten(0, 1), torch.cat([labels] * count), weights)
    losses = each.view(count, -1).mean(dim=1)
    gradients = gradients_of(losses.sum(), {**run.weights, "embedding": net.embedding})
    embedding = gradients.pop("embedding", None)
    if execution == "graph":  # which writes its gradients to the same place again
        gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    names = {f"block {index + 1}: denoising": loss for index, loss in enumerate(losses.detach())}
    return [UnitEstimate(names, run.by_block(gradients), embedding)], run.by_block(run.statistics)
