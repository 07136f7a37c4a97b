"""Networks: blocks, stacks of blocks, embeddings, schedules, samplers, and the baselines' nets."""

from typing import TYPE_CHECKING

from sidestep.later import later

if TYPE_CHECKING:
    from sidestep.nets.dropout import Dropout, masks_from
    from sidestep.nets.noprop.adaptive import adaptive_walk
    from sidestep.nets.noprop.blocks import Block, LatentPath
    from sidestep.nets.noprop.chained_blocks import MLP, ChainedBlocks
    from sidestep.nets.noprop.denoiser import Denoiser, TimedBlock
    from sidestep.nets.noprop.embeddings import (
        class_embedding,
        embedding_distances,
        expected_embedding,
        one_hot_embedding,
        orthogonal_embedding,
        prototype_embedding,
        unit_rows,
    )
    from sidestep.nets.noprop.image_paths import ConvPath, PooledPath, ResidualPath
    from sidestep.nets.noprop.losses import denoising_loss
    from sidestep.nets.noprop.readouts import NearestReadout, RadialReadout, SoftmaxReadout, make_readout
    from sidestep.nets.noprop.samplers import ancestral_walk, ddim_walk, euler_walk, heun_walk
    from sidestep.nets.noprop.schedules import (
        cosine_alpha_bar,
        posterior_coefficients,
        readable_alpha_bar,
        signal_to_noise,
    )
    from sidestep.nets.noprop.stack import DenoisingStack
    from sidestep.nets.noprop.stack_readings import Chain, ancestral_chain, ddim_chain, stack_predictions
    from sidestep.nets.noprop.time_schedules import CosineSchedule, LearnedSchedule, LinearSchedule, make_schedule
    from sidestep.nets.parallel import kept_statistics, run_units
    from sidestep.nets.quantization import dequantize, quantize
    from sidestep.nets.quantized import QuantizedConv2d, QuantizedEmbedding, QuantizedLayer, QuantizedLinear
    from sidestep.nets.ternary.convert import ternarize
    from sidestep.nets.ternary.layers import (
        TernaryConv2d,
        TernaryEmbedding,
        TernaryLayer,
        TernaryLinear,
        pack_layers,
        packed_size,
        ternary_parameters,
    )
    from sidestep.nets.ternary.nets import TernaryNet, ternary_conv_net, ternary_mlp
    from sidestep.nets.user_modules import ImagePath, image_paths
else:
    __getattr__, __dir__ = later(
        __name__,
        {
            "dropout": "Dropout masks_from",
            "noprop.adaptive": "adaptive_walk",
            "noprop.blocks": "Block LatentPath",
            "noprop.chained_blocks": "MLP ChainedBlocks",
            "noprop.denoiser": "Denoiser TimedBlock",
            "noprop.embeddings": (
                "class_embedding embedding_distances expected_embedding one_hot_embedding "
                "orthogonal_embedding prototype_embedding unit_rows"
            ),
            "noprop.image_paths": "ConvPath PooledPath ResidualPath",
            "noprop.losses": "denoising_loss",
            "noprop.readouts": "NearestReadout RadialReadout SoftmaxReadout make_readout",
            "noprop.samplers": "ancestral_walk ddim_walk euler_walk heun_walk",
            "noprop.schedules": "cosine_alpha_bar posterior_coefficients readable_alpha_bar signal_to_noise",
            "noprop.stack": "DenoisingStack",
            "noprop.stack_readings": "Chain ancestral_chain ddim_chain stack_predictions",
            "noprop.time_schedules": "CosineSchedule LearnedSchedule LinearSchedule make_schedule",
            "parallel": "kept_statistics run_units",
            "quantization": "dequantize quantize",
            "quantized": "QuantizedConv2d QuantizedEmbedding QuantizedLayer QuantizedLinear",
            "ternary.convert": "ternarize",
            "ternary.layers": (
                "TernaryConv2d TernaryEmbedding TernaryLayer TernaryLinear pack_layers packed_size ternary_parameters"
            ),
            "ternary.nets": "TernaryNet ternary_conv_net ternary_mlp",
            "user_modules": "ImagePath image_paths",
        },
    )

__all__ = [
    "MLP",
    "Block",
    "Chain",
    "ChainedBlocks",
    "ConvPath",
    "CosineSchedule",
    "Denoiser",
    "DenoisingStack",
    "Dropout",
    "ImagePath",
    "LatentPath",
    "LearnedSchedule",
    "LinearSchedule",
    "NearestReadout",
    "PooledPath",
    "QuantizedConv2d",
    "QuantizedEmbedding",
    "QuantizedLayer",
    "QuantizedLinear",
    "RadialReadout",
    "ResidualPath",
    "SoftmaxReadout",
    "TernaryConv2d",
    "TernaryEmbedding",
    "TernaryLayer",
    "TernaryLinear",
    "TernaryNet",
    "TimedBlock",
    "adaptive_walk",
    "ancestral_chain",
    "ancestral_walk",
    "class_embedding",
    "cosine_alpha_bar",
    "ddim_chain",
    "ddim_walk",
    "denoising_loss",
    "dequantize",
    "embedding_distances",
    "euler_walk",
    "expected_embedding",
    "heun_walk",
    "image_paths",
    "kept_statistics",
    "make_readout",
    "make_schedule",
    "masks_from",
    "one_hot_embedding",
    "orthogonal_embedding",
    "pack_layers",
    "packed_size",
    "posterior_coefficients",
    "prototype_embedding",
    "quantize",
    "readable_alpha_bar",
    "run_units",
    "signal_to_noise",
    "stack_predictions",
    "ternarize",
    "ternary_conv_net",
    "ternary_mlp",
    "ternary_parameters",
    "unit_rows",
]
