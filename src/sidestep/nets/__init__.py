"""Networks: blocks, stacks of blocks, embeddings, schedules, samplers, and the baselines' nets."""

from sidestep.nets.baselines import MLP, ChainedBlocks
from sidestep.nets.blocks import Block, LatentPath
from sidestep.nets.dropout import Dropout, masks_from
from sidestep.nets.embeddings import (
    embedding_distances,
    one_hot_embedding,
    orthogonal_embedding,
    prototype_embedding,
)
from sidestep.nets.own import ImagePath, image_paths
from sidestep.nets.paths import ConvPath, PooledPath, ResidualPath
from sidestep.nets.readouts import RadialReadout, SoftmaxReadout
from sidestep.nets.samplers import Chain, ancestral_chain, ddim_chain, stack_predictions
from sidestep.nets.schedules import cosine_alpha_bar, posterior_coefficients, signal_to_noise
from sidestep.nets.stack import DenoisingStack
from sidestep.nets.units import kept_statistics, run_units

__all__ = [
    "MLP",
    "Block",
    "Chain",
    "ChainedBlocks",
    "ConvPath",
    "DenoisingStack",
    "Dropout",
    "LatentPath",
    "RadialReadout",
    "SoftmaxReadout",
    "ancestral_chain",
    "cosine_alpha_bar",
    "ddim_chain",
    "embedding_distances",
    "image_paths",
    "kept_statistics",
    "masks_from",
    "one_hot_embedding",
    "orthogonal_embedding",
    "posterior_coefficients",
    "prototype_embedding",
    "run_units",
    "signal_to_noise",
    "stack_predictions",
]
