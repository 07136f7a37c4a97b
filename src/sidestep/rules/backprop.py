"""Back-propagation, the baseline: one unit, the whole net, trained end to end on the cross-entropy of its output.

    g = d/dtheta [ CE(f(x), y) + c sum_l CE(f_l(x), y) ]

by reverse-mode differentiation (Rumelhart, Hinton, Williams 1986); c = 0 but with deep supervision, where f_l is what
block or stage l says by itself (Lee et al., "Deeply-supervised nets", 2015, equation 3, with its hinge losses as
cross-entropies). Two ways to less memory: activation checkpointing keeps the inputs of blocks or stages only, and
computes the rest again on the way back (Chen et al. 2016); accumulation takes g as the mean over parts of the batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sidestep.checks import check_range
from sidestep.data.objective import Objective
from sidestep.data.share import WHOLE, Share
from sidestep.errors import InputError
from sidestep.gradients.any_module import Losses, check_trainable, gradients_here
from sidestep.gradients.end_to_end import end_to_end, gradients_of
from sidestep.nets.dropout import masks_from
from sidestep.nets.noprop.chained_blocks import MLP, ChainedBlocks
from sidestep.nets.noprop.embeddings import embedding_distances
from sidestep.nets.noprop.image_paths import path_maker
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.stages.feedback import feedback_kinds
from sidestep.nets.stages.heads import logits_of_heads
from sidestep.nets.stages.layerwise import LayerwiseNet, layerwise_net, layerwise_own
from sidestep.nets.ternary.nets import TernaryNet, ternary_conv_net, ternary_mlp
from sidestep.nets.ternary.straight_through import float_twin
from sidestep.nets.trained import parameters_of, set_training
from sidestep.nets.user_modules import image_paths
from sidestep.rules.protocol import Batch, Dense, ImagePath, Noise, OutputRule, Split, Takes, Task, Update
from sidestep.rules.shared.any_module import LOSS, check_unused, one_unit
from sidestep.rules.shared.denoising import embedding_for, learns
from sidestep.rules.shared.dense import adamw

__all__ = ["Backprop"]


_Net = ChainedBlocks | MLP | LayerwiseNet | TernaryNet


@dataclass(frozen=True)
class Backprop(OutputRule[_Net]):
    """Train the whole net end to end by back-propagation, with AdamW."""

    net: Literal["chained-blocks", "mlp", "conv", "linear"] = "chained-blocks"
    """Network: the NoProp paper's blocks in a chain, dense layers, the stages of noise-step's conv net, or a linear
    classifier of the pixels."""
    blocks: int = 10
    """Number of chained blocks (the NoProp paper's T)."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the MLP's hidden layers, or channels of the conv net's stages."""
    norm: Literal["none", "layer", "batch"] = "none"
    """Norm before each ReLU of the MLP, as in the nets of local-loss and feedback-alignment: none, over an example's
    features, or over the batch with running statistics. The conv net has batch norm."""
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
    deep_supervision: float = 0.0
    """Weight c of the losses of all blocks, or of all stages but the last; every stage of an MLP or conv net then has a
    head."""
    activation_checkpointing: bool = False
    """Keep only the inputs of blocks or stages for the backward pass and compute the rest again: less memory, more
    time."""
    accumulate: int = 1
    """Parts of a batch that are computed one after another, their gradients summed. Fewer activations, but a second set
    of gradients: less memory where activations outweigh weights. The same gradient, but for batch norm, which sees each
    part by itself."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""

    name: ClassVar[str] = "backprop"
    summary: ClassVar[str] = "Back-propagation: plain, checkpointed, accumulated, deeply supervised; linear classifier"
    takes: ClassVar[Takes] = Takes("any", targets=("classes", "labels", "values", "own"))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, 1000, blocks=self.blocks)
        if self.dimension is not None:
            check_range(1, 1_000_000, dimension=self.dimension)
        others = self.embedding != "one-hot" or self.dimension is not None or self.path != "auto"
        if self.net != "chained-blocks" and others:
            raise InputError("embedding, dimension and path are the chain's; use them with net = chained-blocks")
        if self.net != "conv" and self.pooled is not None:
            raise InputError("pooled is for net = conv, whose stages it counts")
        if self.ternary and self.net not in ("mlp", "conv"):
            raise InputError("ternary weights are there for the nets of noise-step; use them with net = mlp or conv")
        if self.norm != "none" and (self.net != "mlp" or self.ternary):
            raise InputError("norm is for net = mlp without ternary weights; the other nets have norms of their own")
        check_range(0, 100, deep_supervision=self.deep_supervision)
        check_range(1, 1_000_000, accumulate=self.accumulate)
        if self.deep_supervision and (self.net == "linear" or (self.net != "chained-blocks" and len(self.hidden) < 2)):
            raise InputError(
                "deep_supervision puts a loss on every stage below the last; take net = mlp or conv with two stages"
            )
        if self.activation_checkpointing and (self.net == "linear" or (self.net == "mlp" and not self._in_stages)):
            raise InputError(
                "activation_checkpointing leaves out what lies inside blocks or stages, and between dense layers and "
                "ReLUs nothing does; use it with net = chained-blocks or conv, or with a norm"
            )

    @property
    def end_to_end(self) -> bool:
        """Whether this is the plain form: a comparison then needs no other run of back-propagation on this net."""
        return not (self.activation_checkpointing or self.deep_supervision or self.accumulate > 1)

    @property
    def batch_multiple(self) -> tuple[str, int]:
        """What the size of a batch must be a multiple of: the number of its parts."""
        return "accumulate", self.accumulate

    @property
    def _in_stages(self) -> bool:
        return self.ternary or self.norm != "none"

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> _Net:
        """Make the net; a module of the user's takes the place of the blocks' image path, or of all hidden layers."""
        heads = self.deep_supervision > 0
        if self.net != "chained-blocks" and module is not None:
            return self._around(module, task, noise)
        if self.ternary or self.net == "conv":
            shape, classes = task.shape, task.classes
            if self.net == "mlp":
                stages = ternary_mlp(shape, self.hidden, classes, bias=False, local=heads)
            else:
                stages = ternary_conv_net(shape, self.hidden, classes, False, heads, self.pooled, "batch")
            return float_twin(stages, noise.stream("layers"), self.ternary)
        if self.net == "mlp" and (self.norm != "none" or heads):
            with noise.stream("layers").torch_seeded():
                return layerwise_net("mlp", task.shape, self.hidden, task.classes, self.norm, heads)
        if self.net in ("mlp", "linear"):
            with noise.stream("blocks").torch_seeded():
                return MLP(task.shape, self.hidden if self.net == "mlp" else (), task.classes)
        rows = embedding_for(self.embedding, self.dimension, False, task, noise.stream("embedding"), examples)
        given = path_maker(self.path, task.shape, norm=True) if module is None else module
        paths = image_paths(given, self.blocks, noise.stream("paths"), None if module is None else task.shape)
        with noise.stream("blocks").torch_seeded():
            return ChainedBlocks(
                paths,
                task.shape,
                rows,
                learn_embedding=learns(self.embedding),
                image_latent=self.embedding == "prototype",
                activation_checkpointing=self.activation_checkpointing,
            )

    def fits(self, net: _Net) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return not feedback_kinds(net)

    def _around(self, module: ImagePath, task: Task, noise: Noise) -> LayerwiseNet:
        if self.net == "linear" or self.ternary:
            raise InputError(
                f"{'ternary weights' if self.ternary else 'net = linear'} and a module of your own do not go together: "
                "take net = mlp or conv without ternary, where it is the hidden layers, or net = chained-blocks"
            )
        return layerwise_own(module, task.shape, task.classes, self.deep_supervision > 0, noise, least=1)

    def estimate(self, net: _Net, batch: Batch, noise: Noise) -> Update:
        """Return the gradient of the batch's mean loss, as the mean of its parts."""
        set_training(net)
        device, size = batch.inputs.device, self._part_size(net, len(batch.targets))
        generator: torch.Generator | Callable[[], torch.Generator] = partial(noise.generator, device)
        given = [batch.inputs, batch.targets]
        if isinstance(net, ChainedBlocks):
            generator = noise.generator(device)
            start = net.embedding.new_empty(len(batch.targets), net.dimension)
            given.append(start.normal_(generator=generator))
        gradients: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        statistics: dict[str, Tensor] = {}
        with (
            kept_statistics(net) as changed,
            masks_from(generator),
            noise.stream("module").torch_seeded(device),  # for modules of the user's that draw from torch's generator
        ):
            for part in [given] if size == len(batch.targets) else _parts(given, size):
                loss, terms = self._losses(net, batch.objective, *part)
                statistics = changed()  # before the way back, where checkpointed blocks run, and count, a second time
                if self.accumulate > 1:
                    found = gradients_of(loss / self.accumulate, parameters_of(net))
                    gradients, terms = _added(gradients, found), _part_of(terms, losses, self.accumulate)
                else:
                    gradients = gradients_of(loss, parameters_of(net))
                losses = {name: term.detach() for name, term in terms.items()}
                if statistics:
                    with torch.no_grad():
                        for name, value in statistics.items():
                            net.get_buffer(name).copy_(value)
        return Dense(gradients, statistics, losses)

    def check_any(self, net: nn.Module) -> None:
        """Raise InputError for a module without trained weights, or options that a loss of the user's leaves unused."""
        check_unused(self, "label_smoothing", "deep_supervision", "activation_checkpointing", "accumulate")
        check_trainable(net)

    def optimizer_any(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make AdamW for any module."""
        return adamw(net, one_unit(net), self.learning_rate, self.weight_decay)

    def estimate_any(self, net: nn.Module, losses: Losses, noise: Noise, share: Share = WHOLE) -> Update:
        """Return the gradient of any module's loss."""
        gradients, statistics, loss = gradients_here(net, losses, noise.stream("module"))
        return Dense(gradients, statistics, {LOSS: loss})

    def true_gradients(self, net: _Net, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the mean cross-entropy; a chain's as it predicts: z_0 = 0, running statistics."""
        return end_to_end(net, batch, net, running=isinstance(net, ChainedBlocks))

    def diagnostics(self, net: _Net) -> dict[str, float]:
        """Return the smallest norm and distance of the class embeddings where these are learned, or nothing."""
        if isinstance(net, ChainedBlocks) and learns(self.embedding):
            return embedding_distances(net.embedding)
        return {}

    def _part_size(self, net: nn.Module, examples: int) -> int:
        if examples % self.accumulate:
            raise InputError(f"the batch must be a multiple of accumulate = {self.accumulate}, got {examples} examples")
        size = examples // self.accumulate
        if size == 1 and examples > 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()):
            raise InputError(f"accumulate = {self.accumulate} leaves parts of one example, and batch norm needs two")
        return size

    def _losses(
        self, net: nn.Module, objective: Objective, images: Tensor, labels: Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to be differentiated, shape (), and its terms by name."""
        if isinstance(net, ChainedBlocks):
            every = net.every_logits(images, start)
        elif isinstance(net, LayerwiseNet | TernaryNet):
            every = logits_of_heads(net.stages, net.heads, images, self.activation_checkpointing)
        else:
            every = [net(images)]
        loss = objective.mean(every[-1], labels, self.label_smoothing)
        terms = {f"net: {objective.name}": loss}
        if self.deep_supervision:
            kind = "block" if isinstance(net, ChainedBlocks) else "stage"
            for index, logits in enumerate(every[:-1]):
                term = objective.mean(logits, labels, self.label_smoothing)
                terms[f"net: {objective.name} of {kind} {index}"] = term
                loss = loss + self.deep_supervision * term
        return loss, terms


def _parts(given: list[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Return so many examples of each tensor at a time."""
    return zip(*(tensor.split(size) for tensor in given), strict=True)


def _part_of(terms: dict[str, Tensor], sums: dict[str, Tensor], parts: int) -> dict[str, Tensor]:
    """Return the sums with one more part's share of each term."""
    return {name: sums.get(name, 0) + term.detach() / parts for name, term in terms.items()}


def _added(sums: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move gradients out of `found` into the sums, one by one: none is there a third time, nor in the next part."""
    for name in list(found):
        gradient = found.pop(name)
        if name in sums:
            sums[name].add_(gradient)
        else:
            sums[name] = gradient.clone()  # autograd may hand out one tensor for two parameters
    return sums
