"""Back-propagation, the baseline: one unit, the whole net, trained end to end on the cross-entropy of its output.

`g = d CE(f(x), y) / d theta` by reverse-mode differentiation (Rumelhart, Hinton, Williams 1986); with activation
checkpointing (Chen et al. 2016) only the blocks' inputs are kept and the rest is computed again on the way back.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sidestep.data import Split
from sidestep.errors import InputError
from sidestep.nets.baselines import MLP, ChainedBlocks
from sidestep.nets.dropout import masks_from
from sidestep.nets.embeddings import embedding_distances
from sidestep.nets.own import ImagePath, image_paths
from sidestep.nets.paths import path_maker
from sidestep.nets.straight_through import float_twin
from sidestep.nets.ternary_nets import ternary_conv_net, ternary_mlp
from sidestep.nets.units import kept_statistics
from sidestep.noise import Noise
from sidestep.rules.dense import adamw, apply_dense, check_choice, check_positive, check_range, gradients_of
from sidestep.rules.labels import embedding_for, learns
from sidestep.rules.protocol import Batch, Task
from sidestep.rules.true_gradient import end_to_end
from sidestep.update import Dense, Update

__all__ = ["Backprop"]


@dataclass(frozen=True)
class Backprop:
    """Train the whole net end to end by back-propagation, with AdamW."""

    net: Literal["chained-blocks", "mlp", "conv"] = "chained-blocks"
    """Network: the NoProp paper's blocks in a chain, dense layers, or the stages of noise-step's conv net."""
    blocks: int = 10
    """Number of chained blocks (the NoProp paper's T)."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the MLP's hidden layers, or channels of the conv net's stages."""
    pooled: tuple[int, ...] | None = None
    """Stages of the conv net that pool, from 1. Default: the first ones, while a feature map has 9 rows or more."""
    ternary: bool = False
    """Ternary weights, scales and float latents by the straight-through estimator, in the nets of noise-step: with
    net = mlp or conv."""
    embedding: Literal["one-hot", "orthogonal", "learned", "prototype"] = "one-hot"
    """Class embedding of the chain: fixed one-hot or orthogonal; learned, or learned from an image of each class."""
    dimension: int | None = None
    """Length of a learned (default 20, the paper's d) or orthogonal embedding; one-hot and prototype have their own."""
    path: Literal["auto", "figure-6", "pooled", "resnet-9"] = "auto"
    """Image path of the blocks: the NoProp paper's (Figure 6), pooled for images beyond 64 x 64, or a ResNet-9."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    activation_checkpointing: bool = False
    """Keep only the blocks' inputs for the backward pass and compute the rest again: less memory, more time."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""

    name: ClassVar[str] = "backprop"
    summary: ClassVar[str] = "Back-propagation through the whole net, with or without activation checkpointing"
    predictors: ClassVar[tuple[str, ...]] = ("forward",)
    for_inference: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_range(1, 1000, blocks=self.blocks)
        check_positive(100, learning_rate=self.learning_rate)
        check_range(0, 1, weight_decay=self.weight_decay)
        check_range(0, 0.99, label_smoothing=self.label_smoothing)
        check_choice(self)
        if self.dimension is not None:
            check_range(1, 1_000_000, dimension=self.dimension)
        others = self.embedding != "one-hot" or self.dimension is not None or self.path != "auto"
        if self.net != "chained-blocks" and others:
            raise InputError("embedding, dimension and path are the chain's; use them with net = chained-blocks")
        if self.net != "conv" and self.pooled is not None:
            raise InputError("pooled is for net = conv, whose stages it counts")
        if self.ternary and self.net == "chained-blocks":
            raise InputError("ternary weights are there for the nets of noise-step; use them with net = mlp or conv")
        if self.activation_checkpointing and self.net != "chained-blocks":
            raise InputError("activation_checkpointing needs blocks to checkpoint; use it with net = chained-blocks")

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> nn.Module:
        """Make the net; a module of the user's takes the place of the blocks' image path."""
        if self.net != "chained-blocks" and module is not None:
            raise InputError("a module of your own is an image path of blocks; use it with net = chained-blocks")
        if self.ternary or self.net == "conv":
            shape, classes = task.image_shape, task.classes
            if self.net == "mlp":
                stages = ternary_mlp(shape, self.hidden, classes, bias=False, local=False)
            else:
                stages = ternary_conv_net(shape, self.hidden, classes, False, False, self.pooled, "batch")
            return float_twin(stages, noise.stream("layers"), self.ternary)
        if self.net == "mlp":
            with noise.stream("blocks").torch_seeded():
                return MLP(task.image_shape, self.hidden, task.classes)
        rows = embedding_for(self.embedding, self.dimension, False, task, noise.stream("embedding"), examples)
        given = path_maker(self.path, task.image_shape, norm=True) if module is None else module
        paths = image_paths(given, self.blocks, noise.stream("paths"))
        with noise.stream("blocks").torch_seeded():
            return ChainedBlocks(
                paths,
                task.image_shape,
                rows,
                learn_embedding=learns(self.embedding),
                image_latent=self.embedding == "prototype",
                activation_checkpointing=self.activation_checkpointing,
            )

    def units(self, net: nn.Module) -> dict[str, list[str]]:
        """Return the one unit: all parameters."""
        return {"net": [name for name, _ in net.named_parameters()]}

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make AdamW."""
        return adamw(net, self.units(net), self.learning_rate, self.weight_decay)

    def estimate(self, net: nn.Module, batch: Batch, noise: Noise) -> Update:
        """Return the gradient of the batch's mean cross-entropy."""
        net.train()
        generator = noise.generator(batch.images.device)
        inputs = [batch.images]
        if isinstance(net, ChainedBlocks):
            start = net.embedding.new_empty(len(batch.labels), net.dimension)
            inputs.append(start.normal_(generator=generator))
        with (
            kept_statistics(net) as changed,
            masks_from(generator),
            noise.stream("module").torch_seeded(
                batch.images.device
            ),  # for modules of the user's that draw from torch's own generator
        ):
            loss = cross_entropy(net(*inputs), batch.labels, label_smoothing=self.label_smoothing)
            statistics = changed()  # before the way back, where checkpointed blocks run, and count, a second time
            gradients = gradients_of(loss, dict(net.named_parameters()))
        return Dense(gradients, statistics, {"net: cross-entropy": loss.detach()})

    def true_gradients(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the mean cross-entropy; a chain's as it predicts: z_0 = 0, running statistics."""
        return end_to_end(net, batch, net, running=isinstance(net, ChainedBlocks))

    def decide(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Return the update as it is."""
        return update

    def apply(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take one AdamW step along the gradient."""
        apply_dense(net, update, optimizer)

    def predict(
        self, net: nn.Module, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the softmax of the net's output."""
        net.eval()
        with torch.no_grad():
            return {"forward": net(images).softmax(dim=1)}

    def watch(self, net: nn.Module) -> dict[str, float]:
        """Return the smallest norm and distance of the class embeddings where these are learned, or nothing."""
        if isinstance(net, ChainedBlocks) and learns(self.embedding):
            return embedding_distances(net.embedding)
        return {}
