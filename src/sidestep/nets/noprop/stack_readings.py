"""Samplers: from an image to a label through the chain of blocks, with no label as input."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from sidestep.nets.noprop.samplers import ancestral_step, ddim_step
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.noise import Noise

__all__ = ["Chain", "ancestral_chain", "ddim_chain", "ddim_course", "ddim_logits", "stack_predictions"]


class Chain(NamedTuple):
    """One pass through the chain."""

    latent: Tensor  # z_T, (batch, dimension)
    logits: Tensor  # every block's own class logits on the way, (blocks, batch, classes)


def ancestral_chain(stack: DenoisingStack, features: list[Tensor], noise: Noise, start: int = 0) -> Chain:
    """Sample as the paper does: `z_t = a_t uhat_t + b_t z_(t-1) + sqrt(c_t) eps` from `z_0 ~ N(0, I)` (eq. 3).

    Args:
        stack: the blocks.
        features: each block's image features, T tensors (batch, features).
        noise: the point in noise space; example i uses the elements from (start + i) * dimension on, so that a
            prediction does not depend on the batch it is made in.
        start: index of the first example of this batch within the whole set.
    """
    batch = len(features[0])

    def normal(level: int) -> Tensor:
        count, first = batch * stack.dimension, start * stack.dimension
        drawn = noise.sub(level).normal(count, start=first, device=stack.embedding.device)
        return drawn.to(stack.embedding.dtype).view(batch, stack.dimension)

    latent, logits = normal(0), []
    for index, rows in enumerate(features):
        logits.append(stack.block_logits(index, rows, latent))
        estimate, before, after = stack.label_estimate(logits[-1]), stack.levels[index], stack.levels[index + 1]
        latent = ancestral_step(latent, estimate, before, after, normal(index + 1))
    return Chain(latent, torch.stack(logits))


def ddim_chain(stack: DenoisingStack, features: list[Tensor], latent: Tensor | None = None) -> Chain:
    """Walk without noise, from z_0 = 0 unless a `latent` of shape (batch, dimension) is given.

    `z_t = sqrt(abar_t) uhat_t + sqrt((1 - abar_t) / (1 - abar_(t-1))) (z_(t-1) - sqrt(abar_(t-1)) uhat_t)`
    (Song et al. 2021, eq. 12 with eta = 0).
    """
    if latent is None:
        latent = stack.embedding.new_zeros(features[0].shape[0], stack.dimension)
    logits = []
    for index, rows in enumerate(features):
        logits.append(stack.block_logits(index, rows, latent))
        estimate, before, after = stack.label_estimate(logits[-1]), stack.levels[index], stack.levels[index + 1]
        latent = ddim_step(latent, estimate, before, after)
    return Chain(latent, torch.stack(logits))


def ddim_logits(stack: DenoisingStack, images: Tensor) -> Tensor:
    """Return the read-out at the end of the deterministic chain from zero, (batch, classes), differentiable."""
    return stack.readout(ddim_chain(stack, stack.image_features(images)).latent, stack.embedding)


def stack_predictions(  # long: what is read, and how
    stack: DenoisingStack, images: Tensor, noise: Noise, start: int, draws: int, names: Collection[str]
) -> dict[str, Tensor]:
    """Return probabilities, or values in their own units, (batch, classes), by the wanted readings of the stack.

    Each image path runs once. `ddim`: the deterministic chain from zero. `ancestral`: one draw of the paper's chain.
    `mean`: the read-out of the mean of the last block's label estimate over `draws` ancestral chains. `block 1 alone`:
    the first block's own answer at z_0 = 0. `mean of blocks`: the mean of all blocks' own answers along the
    deterministic chain.
    """
    features, answer = stack.image_features(images), stack.space.objective.predictions

    def read(latent: Tensor) -> Tensor:
        return answer(stack.readout(latent, stack.embedding))

    def chain(draw: int) -> Chain:
        return ancestral_chain(stack, features, noise.stream(f"draw {draw}"), start)

    walk = ddim_chain(stack, features)
    own = answer(walk.logits)  # (blocks, batch, classes)
    found = {"ddim": read(walk.latent), "block 1 alone": own[0], "mean of blocks": own.mean(dim=0)}
    chains = [chain(draw) for draw in range(draws if "mean" in names else int("ancestral" in names))]
    if "ancestral" in names:
        found["ancestral"] = read(chains[0].latent)
    if "mean" in names:
        found["mean"] = read(torch.stack([stack.label_estimate(c.logits[-1]) for c in chains]).mean(dim=0))
    return {name: found[name] for name in names}


def ddim_course(stack: DenoisingStack, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is answered along the deterministic chain from zero, (blocks, batch, classes) twice.

    The first is each block's own answer, the second the read-out of z after it; the last of these is the prediction.
    """
    features, answer = stack.image_features(images), stack.space.objective.predictions
    chains = [ddim_chain(stack, features[: block + 1]) for block in range(len(features))]
    readouts = torch.stack([answer(stack.readout(chain.latent, stack.embedding)) for chain in chains])
    return answer(chains[-1].logits), readouts
