"""A trained chain of denoising blocks taken apart: is there anything in z, or are the blocks so many classifiers?

If z carries information from block to block, then an image that is handed another image's z must be classified worse,
and later blocks must know more than block 1. Every function here sees images only, but for `oracle_logits`, which is
given the labels: what comes out of it is a diagnosis and never a prediction.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sidestep.nets.noprop.samplers import ddim_step
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.nets.noprop.stack_readings import Chain, ancestral_chain, ddim_chain
from sidestep.noise import Noise

__all__ = [
    "CHAIN_READINGS",
    "READINGS_BY_BLOCK",
    "chain_answers",
    "logits_on_noise",
    "oracle_logits",
    "random_cycle",
    "running_mean",
    "shuffled_chain",
]

READINGS_BY_BLOCK: tuple[str, ...] = (
    "chain, read after block k",
    "mean of the first k blocks",
    "block k on pure noise",
    "mean of the first k blocks on pure noise",
    "chain, z shuffled, read after block k",
)
CHAIN_READINGS: tuple[str, ...] = (
    "chain",
    "ancestral chain",
    "block 1 alone",
    "mean of blocks",
    "mean of blocks on pure noise",
    "chain, z shuffled at every step",
    "chain, z shuffled once, half way",
    "mean of blocks, z shuffled at every step",
)


def random_cycle(noise: Noise, count: int, device: str | torch.device = "cpu") -> Tensor:
    """Return a random order that leaves nobody in place, int64 of shape (count,): all places in one cycle.

    >>> random_cycle(Noise(0), 2).tolist()
    [1, 0]
    """
    places = noise.permutation(count, device)
    order = torch.empty_like(places)
    order[places] = places.roll(-1)
    return order


def running_mean(probabilities: Tensor) -> Tensor:
    """Return the means of the first 1, 2, ... T entries, of the shape given, (T, ...).

    >>> running_mean(torch.tensor([1.0, 0.0, 2.0])).tolist()
    [1.0, 0.5, 1.0]
    """
    counts = torch.arange(1, len(probabilities) + 1, device=probabilities.device, dtype=probabilities.dtype)
    return probabilities.cumsum(dim=0) / counts.view(-1, *[1] * (probabilities.dim() - 1))


def shuffled_chain(stack: DenoisingStack, features: list[Tensor], orders: Mapping[int, Tensor]) -> Chain:
    """Walk the deterministic chain from z_0 = 0, with z handed on between the examples of the batch.

    Args:
        stack: the blocks.
        features: each block's image features, T tensors (batch, features).
        orders: by index of a block, from 0 on: example i gets the z of example `order[i]` before that block, to be
            denoised with its own image. No orders give `ddim_chain`.
    """
    latent, logits = stack.embedding.new_zeros(len(features[0]), stack.dimension), []
    for index, rows in enumerate(features):
        latent = latent[orders[index]] if index in orders else latent
        logits.append(stack.block(index).logits(rows, latent))
        estimate, before, after = stack.label_estimate(logits[-1]), stack.levels[index], stack.levels[index + 1]
        latent = ddim_step(latent, estimate, before, after)
    return Chain(latent, torch.stack(logits))


def logits_on_noise(stack: DenoisingStack, features: list[Tensor], noise: Noise, start: int = 0) -> Tensor:
    """Return each block's logits at z ~ N(0, I), (blocks, batch, classes): what it knows from the image alone."""
    return _logits_at(stack, features, lambda index: _normal(stack, noise.sub(index), len(features[0]), start))


def oracle_logits(
    stack: DenoisingStack, features: list[Tensor], labels: Tensor, noise: Noise, start: int = 0
) -> Tensor:
    """Return each block's logits at the *true label's* `z_(t-1) ~ q(z_(t-1) | y)`, (blocks, batch, classes).

    It is what blocks are trained on, and shows how well they can use z. It uses the labels, so it predicts nothing.
    """

    def latent(index: int) -> Tensor:
        return stack.noised_label(labels, index, _normal(stack, noise.sub(index), len(labels), start))

    return _logits_at(stack, features, latent)


def chain_answers(stack: DenoisingStack, features: list[Tensor], noise: Noise, start: int = 0) -> dict[str, Tensor]:
    """Return the classes that the stack answers by every reading: (blocks, batch) or (batch,), int64.

    The names are READINGS_BY_BLOCK, of which row k - 1 belongs to k, and CHAIN_READINGS. All walks are deterministic
    and start at z_0 = 0, but for the ancestral chain. Shuffling is within the batch, which must hold the classes mixed.

    Args:
        stack: the blocks, in evaluation mode.
        features: each block's image features, T tensors (batch, features).
        noise: what noise and orders are drawn from.
        start: index of the batch's first example within the whole set.
    """
    batch, blocks, device = len(features[0]), len(features), features[0].device
    cycles = noise.stream("shuffle").at(start)
    orders = {index: random_cycle(cycles.sub(index), batch, device) for index in range(1, blocks)}  # z_0 is 0 for all
    half = {index: order for index, order in orders.items() if index == blocks // 2}
    walk, mixed = ddim_chain(stack, features), shuffled_chain(stack, features, orders)
    own, own_mixed = walk.logits.softmax(dim=2), mixed.logits.softmax(dim=2)  # (blocks, batch, classes)
    blind = logits_on_noise(stack, features, noise.stream("pure noise"), start).softmax(dim=2)

    def read(chain: Chain) -> Tensor:
        return stack.readout(chain.latent, stack.embedding)

    scores = (
        own, running_mean(own), blind, running_mean(blind), own_mixed,
        read(walk), read(ancestral_chain(stack, features, noise.stream("ancestral"), start)), own[0], own.mean(dim=0),
        blind.mean(dim=0), read(mixed), read(shuffled_chain(stack, features, half)), own_mixed.mean(dim=0),
    )  # fmt: skip
    names = READINGS_BY_BLOCK + CHAIN_READINGS
    return {name: score.argmax(dim=-1) for name, score in zip(names, scores, strict=True)}


def _logits_at(stack: DenoisingStack, features: list[Tensor], latent: Callable[[int], Tensor]) -> Tensor:
    return torch.stack([stack.block(index).logits(rows, latent(index)) for index, rows in enumerate(features)])


def _normal(stack: DenoisingStack, noise: Noise, batch: int, start: int) -> Tensor:
    """Return standard normal noise, (batch, dimension), of the examples from `start` on."""
    drawn = noise.normal(batch * stack.dimension, start=start * stack.dimension, device=stack.embedding.device)
    return drawn.to(stack.embedding.dtype).view(batch, stack.dimension)
