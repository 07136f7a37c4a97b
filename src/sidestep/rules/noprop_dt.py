"""NoProp in discrete time: every block learns on its own to denoise the label, with back-propagation within the block.

Li, Teh, Pascanu, "NoProp: Training Neural Networks without (Full) Back-propagation or (Full) Forward-propagation",
arXiv 2503.24322, section 2 and Algorithm 1. For block t = 1 .. T, `q(z_t | y) = N(sqrt(abar_t) u_y, (1 - abar_t) I)`:

    L_t = CE(p_out(z_T), y) + KL(q(z_0 | y) || N(0, I)) + T/2 eta (SNR(t) - SNR(t-1)) |uhat_t(z_(t-1), x) - u_y|^2

The last term, or another denoising loss in its place (`loss`), reaches block t and the class embedding; the first two
reach the read-out and the embedding, which are trained on the mean of L_t over the blocks.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sidestep.checks import check_positive, check_range, check_used
from sidestep.errors import InputError
from sidestep.gradients.end_to_end import end_to_end, gradients_of
from sidestep.nets.dropout import masks_from
from sidestep.nets.noprop.embeddings import embedding_distances
from sidestep.nets.noprop.losses import check_smoothing
from sidestep.nets.noprop.readouts import make_readout
from sidestep.nets.noprop.schedules import cosine_alpha_bar, readable_alpha_bar
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.nets.noprop.stack_readings import ddim_logits, stack_predictions
from sidestep.nets.noprop.target_space import target_space
from sidestep.nets.noprop.ternary_blocks import TernaryBlock, ternary_stack
from sidestep.nets.parallel import kept_statistics, run_units
from sidestep.nets.trained import set_training, trained
from sidestep.nets.user_modules import each_image_path
from sidestep.rules.fields import RARE
from sidestep.rules.protocol import Batch, Dense, Division, ImagePath, Noise, Rule, Split, Takes, Task, Update
from sidestep.rules.shared.all_blocks import UnitEstimate, loss_of_each, together_estimate
from sidestep.rules.shared.denoising import (
    TAKES,
    check_options,
    embedding_for,
    learns,
    path_for,
    project_rows,
    readout_loss,
    start_divergence,
)
from sidestep.rules.shared.dense import apply_dense
from sidestep.rules.shared.ternary_denoising import WITH_FLIPS, TernarySolver, check_dense, settle_solver
from sidestep.rules.shared.variant import PAPER_LABELS, PaperOptions

__all__ = ["NoPropDT"]

_SHARED = "read-out"


@dataclass(frozen=True)
class NoPropDT(Rule[DenoisingStack]):
    """Train T blocks, each on its own loss, to denoise the label (Li, Teh, Pascanu 2025, discrete time)."""

    blocks: int = 10
    """Number of denoising blocks, and of inference steps (the paper's T)."""
    eta: float = 0.1
    """Weight of the denoising loss (the paper's eta), where the loss has one."""
    loss: Literal["auto", "paper", "clipped", "unweighted", "cross-entropy"] = "auto"
    """Denoising loss: squared error times the paper's weight, that weight clipped, or 1; or cross-entropy. Default:
    paper; with solver = noise-step cross-entropy, the only one that it has."""
    largest_weight: float = 5.0
    """The most that the weight T/2 eta (SNR(t) - SNR(t-1)) can be with loss = clipped."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes, with loss = cross-entropy."""
    embedding: Literal["one-hot", "orthogonal", "learned", "prototype"] = "one-hot"
    """Class embedding u_y: fixed one-hot or orthogonal; learned, or learned from an image of each class (prototype)."""
    dimension: int | None = None
    """Length of a learned (default 20, the paper's d) or orthogonal embedding; one-hot and prototype have their own."""
    unit_norm: bool = False
    """Keep every class embedding at norm 1, which a learned one needs so as not to collapse."""
    readout: Literal["auto", "softmax", "radial", "nearest"] = "auto"
    """Posterior p(y | z_T): linear with softmax, by distance after a softmax, or the nearest class embedding. Default:
    softmax; with solver = noise-step nearest, which has no float weights."""
    path: Literal["auto", "figure-6", "pooled", "resnet-9"] = "auto"
    """Image path: Figure 6 of the paper; pooled, for images beyond 64 x 64; a ResNet-9; auto: one of the first two."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""
    levels: Literal["cosine", "readable"] = "cosine"
    """Noise levels between blocks: cosine schedule, or equal steps of how readable z_t is (for fewer blocks)."""
    cosine_offset: float = 0.008
    """Offset s of the cosine noise schedule (levels = cosine); not given in the paper."""
    smallest_alpha_bar: float = 1e-3
    """Lower clip of the schedule (alpha_bar_0): how much label is left in z_0; not given in the paper."""
    largest_alpha_bar: float = 0.999
    """Upper clip of the schedule (alpha_bar_T): how clean z_T is; not given in the paper."""
    draws: int = 8
    """Ancestral chains that the `mean` sampler averages over when predicting."""
    solver: Literal["back-propagation", "noise-step"] = "back-propagation"
    """What trains a block: back-propagation within it, or noise-step: dense ternary blocks on the image's values and z,
    moved by logged flips; then the loss is cross-entropy and the read-out nearest."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of a ternary block's stages, with solver = noise-step."""
    estimator: Literal["local-probes", "local-losses"] = "local-probes"
    """Gradients of a ternary block's stages: by directional derivatives alone, with no backward pass anywhere; or by
    reverse mode within each stage."""
    flip_share: float = 0.002
    """Share of a layer's weights that flip per step, with solver = noise-step; --decay lets it fall."""
    momentum: float = 0.95
    """Decay of the momentum of flips, with solver = noise-step."""

    name: ClassVar[str] = "noprop-dt"
    summary: ClassVar[str] = "NoProp, discrete time: T blocks, each trained on its own to denoise the label"
    takes: ClassVar[Takes] = replace(TAKES, log_with=WITH_FLIPS, no_optimizer_with=WITH_FLIPS)
    readings: ClassVar[tuple[str, ...]] = ("ddim", "ancestral", "mean", "block 1 alone", "mean of blocks")
    paper_options: ClassVar[PaperOptions] = {**PAPER_LABELS, "loss": ("paper",), "levels": ("cosine",), "eta": (0.1,)}
    paper_reading: ClassVar[str] = "ancestral"
    at_end: ClassVar[tuple[str, ...]] = ("ddim", "ancestral", "block 1 alone", "mean of blocks")
    for_inference: ClassVar[tuple[str, ...]] = ("draws",)
    rare: ClassVar[frozenset[str]] = RARE | {"levels", "hidden", "estimator", "flip_share"}

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_solver(self)
        check_range(1, 1000, blocks=self.blocks, draws=self.draws)
        if self.dimension is not None:
            check_range(1, 1_000_000, dimension=self.dimension)
        check_positive(1e6, eta=self.eta, largest_weight=self.largest_weight)
        check_smoothing(self.loss, self.label_smoothing)
        check_used(self, "eta", "loss", "paper", "clipped")
        check_used(self, "largest_weight", "loss", "clipped")
        check_range(0, 1, cosine_offset=self.cosine_offset)
        check_used(self, "cosine_offset", "levels", "cosine")
        ends = {"smallest_alpha_bar": self.smallest_alpha_bar, "largest_alpha_bar": self.largest_alpha_bar}
        check_range(1e-9, 1 - 1e-6, **ends)
        self._schedule(2)

    @property
    def _ternary(self) -> TernarySolver | None:
        """What trains ternary blocks; None with back-propagation."""
        found = TernarySolver(self.estimator, self.flip_share, self.momentum, self.label_smoothing)
        return found if self.solver == "noise-step" else None

    def fits(self, net: DenoisingStack) -> bool:
        """Whether a net has the blocks that this rule trains."""
        return isinstance(net.block(0), TernaryBlock) == (self._ternary is not None)

    def _schedule(self, classes: int) -> Tensor:
        low, high = self.smallest_alpha_bar, self.largest_alpha_bar
        if self.levels == "readable":
            return readable_alpha_bar(self.blocks, classes, low, high)
        return cosine_alpha_bar(self.blocks, self.cosine_offset, low, high)

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> DenoisingStack:
        """Make the stack of the paper's blocks, or of blocks around a module of the user's, ready to train."""
        check_options(task, self.readout, self.label_smoothing, self.levels)
        rows = embedding_for(self.embedding, self.dimension, self.unit_norm, task, noise.stream("embedding"), examples)
        schedule, space = self._schedule(task.classes), target_space(task)
        if self._ternary is not None:
            check_dense(task, module)
            return ternary_stack(task.shape, rows, schedule, self.hidden, noise.stream("trits"), space)
        given = path_for(task, self.path, module, norm=True)
        with noise.stream("blocks").torch_seeded():
            return DenoisingStack(
                each_image_path(given, self.blocks, noise.stream("paths"), None if module is None else task.shape),
                task.shape,
                rows,
                schedule,
                make_readout(self.readout, rows, space),
                learn_embedding=learns(self.embedding),
                image_latent=self.embedding == "prototype",
                together=module is None,
                space=space,
            )

    def units(self, net: DenoisingStack) -> dict[str, list[str]]:
        """Return the parameter names of each block, and of the read-out with the embedding, which all blocks share."""
        names, blocks = list(trained(net)), range(len(net.blocks))
        found = {f"block {i + 1}": [name for name in names if name.startswith(f"blocks.{i}.")] for i in blocks}
        shared = [name for name in names if not name.startswith("blocks.")]
        return {**found, _SHARED: shared} if shared else found

    @property
    def divides(self) -> Mapping[Division, int]:
        """The blocks, if nothing that they share learns from them, or the batch."""
        return {"batch": 0} if self._ternary or learns(self.embedding) else {"units": self.blocks, "batch": 0}

    def estimate(self, net: DenoisingStack, batch: Batch, noise: Noise) -> Update:
        """Return every unit's gradients of its own loss, or a share's; blocks run at once where that is faster."""
        if self._ternary is not None:
            return self._ternary.estimate(net, batch, noise)
        own = batch.share.units(blocks := len(net.blocks))
        set_training(net)
        execution = net.execution(batch.inputs.device) if len(own) == blocks else "per block"
        shares, statistics = self._shares(net, batch, noise, execution, own)
        shared = self._readout_estimate(net, batch, noise.sub(blocks))
        gradients = {name: gradient for share in (*shares, shared) for name, gradient in share.gradients.items()}
        losses = {name: loss for share in (*shares, shared) for name, loss in share.losses.items()}
        if shared.embedding is not None:
            parts = [share.embedding for share in shares if share.embedding is not None]
            gradients["embedding"] = sum(parts, torch.zeros_like(parts[0])) / blocks + shared.embedding
        return Dense(gradients, statistics, losses)

    def estimates(self, net: DenoisingStack, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield one block's update after another, and then that of what the blocks share."""
        if self._ternary is not None:
            raise InputError("units of ternary blocks step together; use units = together with solver = noise-step")
        blocks, total = len(net.blocks), torch.zeros_like(net.embedding)
        set_training(net)
        for index in range(blocks):
            yield f"block {index + 1}", self._alone(net, index, batch, noise.sub(index), total)
        shared = self._readout_estimate(net, batch, noise.sub(blocks))
        if shared.embedding is not None:
            shared.gradients["embedding"] = total / blocks + shared.embedding
        yield _SHARED, Dense(shared.gradients, {}, shared.losses)

    def _alone(self, net: DenoisingStack, index: int, batch: Batch, noise: Noise, total: Tensor) -> Dense:
        """Return the update of block `index`; what it asks of the embedding is added to `total`."""
        with kept_statistics(net.block(index), f"blocks.{index}.") as changed:
            share = self._block_estimate(net, index, batch, noise)
            if share.embedding is not None:
                total += share.embedding
            return Dense(share.gradients, changed(), share.losses)

    def _block_estimate(self, net: DenoisingStack, index: int, batch: Batch, noise: Noise) -> UnitEstimate:
        """Return the gradients of block `index` alone: of its denoising loss, batch mean."""
        block, device = net.block(index), batch.inputs.device
        generator = noise.generator(device)
        latent = net.drawn_label(batch.targets, index, generator)
        with masks_from(generator):
            if net.together:
                logits = block(batch.inputs, latent)
            else:  # a module of the user's may draw from torch's own generator
                with noise.stream("module").torch_seeded(device):
                    logits = block(batch.inputs, latent)
        weight = logits.new_tensor(float(net.loss_weights(self.eta)[index]))
        loss = loss_of_each(self, net, logits, batch.targets, weight).mean()
        wanted = {f"blocks.{index}.{name}": parameter for name, parameter in block.named_parameters()}
        gradients = gradients_of(loss, {**wanted, "embedding": net.embedding})
        losses = {f"block {index + 1}: denoising": loss.detach()}
        return UnitEstimate(losses, gradients, gradients.pop("embedding", None))

    def _readout_estimate(self, net: DenoisingStack, batch: Batch, noise: Noise) -> UnitEstimate:
        """Return the gradients of the terms that no block sees: `CE(p_out(z_T), y) + KL(q(z_0 | y) || N(0, I))`."""
        last = net.drawn_label(batch.targets, len(net.blocks), noise.generator(batch.inputs.device))
        entropy = readout_loss(net.space, net.readout, net.embedding, last, batch.targets)
        divergence = start_divergence(net.label_embedding(batch.targets), net.levels[0])
        wanted = {name: parameter for name, parameter in net.named_parameters() if not name.startswith("blocks.")}
        found = gradients_of(entropy + divergence, wanted)
        losses = {f"{_SHARED}: cross-entropy": entropy.detach(), f"{_SHARED}: KL": divergence.detach()}
        return UnitEstimate(losses, found, found.pop("embedding", None))

    def true_gradients(self, net: DenoisingStack, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the reading `ddim`, through all blocks of the chain, from z_0 = 0."""
        if self._ternary is not None:
            return self._ternary.true_gradients(net, batch)
        return end_to_end(net, batch, partial(ddim_logits, net), running=True)

    def optimizer(self, net: DenoisingStack) -> torch.optim.Optimizer:
        """Make AdamW, or what keeps the momentum of flips."""
        return super().optimizer(net) if self._ternary is None else self._ternary.optimizer(net)

    def decide(self, net: DenoisingStack, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Return the gradients as they are, or the flips of ternary blocks."""
        return update if self._ternary is None else self._ternary.decide(net, update, optimizer)

    def apply(self, net: DenoisingStack, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take one AdamW step along the gradients; put the embedding back to norm 1 where that is wanted."""
        if self._ternary is not None:
            return self._ternary.apply(net, update)
        apply_dense(net, update, optimizer)
        if self.unit_norm and isinstance(update, Dense) and "embedding" in update.gradients:
            project_rows(net)

    def predict(
        self, net: DenoisingStack, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return class probabilities by each sampler, by block 1 alone, and by the mean of the blocks."""
        net.eval()
        with torch.no_grad():
            return stack_predictions(net, images, noise, start, self.draws, names or self.readings)

    def diagnostics(self, net: DenoisingStack) -> dict[str, float]:
        """Return the smallest norm and distance of the class embeddings, which would shrink in a collapse."""
        return embedding_distances(net.embedding)

    def _shares(
        self, net: DenoisingStack, batch: Batch, noise: Noise, execution: str, own: range
    ) -> tuple[list[UnitEstimate], dict[str, Tensor]]:
        """Return the blocks' shares, each computed by itself or all in one pass, and the new statistics."""
        if execution != "per block":
            return together_estimate(self, net, batch, noise, execution)
        tasks = [partial(self._block_estimate, net, index, batch, noise.sub(index)) for index in own]
        with kept_statistics(net) as changed:
            return run_units(tasks, batch.inputs.device, net.together), changed()
