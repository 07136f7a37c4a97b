"""NoProp as flow matching: one block learns the velocity that carries noise to the label.

Li, Teh, Pascanu, "NoProp: Training Neural Networks without (Full) Back-propagation or (Full) Forward-propagation",
arXiv 2503.24322, section 3.3 and Algorithm 3. With z_0 ~ N(0, I), z_1 = u_y and
`z_t ~ N(t z_1 + (1 - t) z_0, sigma^2 I)`:

    L = |v(z_t, x, t) - (z_1 - z_0)|^2   + CE(p_out(z_t + (1 - t) v), y)

The second term, the anchor, is there where the embedding is learned or the read-out is trained (any but `nearest`); it
trains the block too.

The paper predicts the velocity, `v = outputs W`. Predicting the label instead, `uhat = softmax(outputs) W` and
`v = (uhat - z_t) / (1 - t)`, turns the first term into `|uhat - u_y|^2 / (1 - t)^2` where sigma = 0, with the same
choice of weights as in the other variants. With sigma > 0 it would ask for `u_y` plus the noise about the line.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sidestep.checks import check_positive, check_range, check_used
from sidestep.data import Split
from sidestep.errors import InputError
from sidestep.gradients.end_to_end import end_to_end, gradients_of
from sidestep.nets.dropout import masks_from
from sidestep.nets.noprop.denoiser import Denoiser, Draw, draw_times
from sidestep.nets.noprop.denoiser_readings import Walker
from sidestep.nets.noprop.losses import check_loss, check_smoothing, denoising_loss
from sidestep.nets.noprop.samplers import check_steps
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import full_precision
from sidestep.nets.trained import set_training
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Task
from sidestep.rules.shared.denoising import (
    TAKES,
    TimedRule,
    check_options,
    embedding_for,
    learns,
    make_denoiser,
    readout_loss,
)
from sidestep.rules.shared.variant import PAPER_LABELS, PaperOptions
from sidestep.rules.takes import Takes
from sidestep.update import Dense, Update

__all__ = ["NoPropFM"]

_REST = 1e-3  # the smallest 1 - t that a label estimate's velocity is divided by


@dataclass(frozen=True)
class NoPropFM(TimedRule):
    """Train one block to carry noise to the label (Li, Teh, Pascanu 2025, flow matching)."""

    prediction: Literal["label", "velocity"] = "label"
    """What the block predicts: the label embedding, or the velocity (the paper's choice)."""
    loss: Literal["paper", "clipped", "unweighted", "cross-entropy"] = "cross-entropy"
    """Squared error of the velocity (the paper's), its weight 1/(1-t)^2 clipped, or without it; or cross-entropy."""
    largest_weight: float = 5.0
    """The most that the weight 1/(1-t)^2 can be with loss = clipped."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes, with loss = cross-entropy."""
    sigma: float = 0.0
    """Spread of z_t about the straight line (the paper's sigma)."""
    embedding: Literal["one-hot", "orthogonal", "learned", "prototype"] = "one-hot"
    """Class embedding u_y: fixed one-hot or orthogonal; learned, or learned from an image of each class (prototype)."""
    dimension: int | None = None
    """Length of a learned (default 20, the paper's d) or orthogonal embedding; one-hot and prototype have their own."""
    unit_norm: bool = False
    """Keep every class embedding at norm 1."""
    readout: Literal["softmax", "radial", "nearest"] = "nearest"
    """How z_1 is read: the nearest class embedding (the paper's), or a trained read-out."""
    path: Literal["auto", "figure-6", "pooled", "resnet-9"] = "auto"
    """Image path: Figure 6 of the paper; pooled, for images beyond 64 x 64; a ResNet-9; auto: one of the first two."""
    times: Literal["stratified", "uniform"] = "stratified"
    """Times of a batch: one in each of as many equal intervals, or independent."""
    draws_per_image: int = 1
    """Pairs (t, z_t) per image and step; the image path, which is most of the work, still runs once."""
    optimizer_kind: Literal["adam", "adamw"] = "adamw"
    """Adam with L2 weight decay (the paper's), or AdamW with decoupled weight decay."""
    learning_rate: float = 1e-3
    """Step size."""
    weight_decay: float = 1e-3
    """Weight decay."""
    steps: int = 50
    """Steps of a sampler when predicting, 1 to 1000 (the paper's tables: 1000)."""
    solver: Literal["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"] = "dopri5"
    """Method of the reading `adaptive`, which gives each image its own steps."""
    start: Literal["zero", "noise"] = "zero"
    """Where `euler`, `heun` and `adaptive` start: at z_0 = 0, or at z_0 ~ N(0, I)."""
    grid: Literal["uniform", "cosine"] = "uniform"
    """How a sampler's steps are spaced in time: evenly, or closer together near both ends (all but `adaptive`)."""
    draws: int = 8
    """Noise starts that the reading `mean` averages over."""

    name: ClassVar[str] = "noprop-fm"
    summary: ClassVar[str] = "NoProp, flow matching: one block carries noise to the label"
    takes: ClassVar[Takes] = TAKES
    readings: ClassVar[tuple[str, ...]] = ("euler", "euler from noise", "heun", "adaptive", "mean", "first step")
    paper_options: ClassVar[PaperOptions] = {
        **PAPER_LABELS, "prediction": ("velocity",), "loss": ("paper",), "sigma": (0.0,), "readout": ("nearest",),
        "times": ("uniform",), "draws_per_image": (1,), "optimizer_kind": ("adam",),
    }  # fmt: skip
    paper_reading: ClassVar[str] = "euler from noise"
    for_inference: ClassVar[tuple[str, ...]] = ("steps", "solver", "start", "grid", "draws")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        check_positive(1e6, largest_weight=self.largest_weight)
        check_range(0, 10, sigma=self.sigma)
        check_smoothing(self.loss, self.label_smoothing)
        check_used(self, "largest_weight", "loss", "clipped")
        check_range(1, 1000, draws=self.draws, draws_per_image=self.draws_per_image)
        check_steps(self.steps)
        if self.dimension is not None:
            check_range(1, 1_000_000, dimension=self.dimension)
        if self.prediction == "velocity" and self.loss != "paper":
            raise InputError(
                f"prediction = velocity has loss = paper only, got {self.loss}; the other losses compare label "
                "estimates: take prediction = label"
            )
        if self.prediction == "label" and self.loss == "paper" and self.sigma:
            raise InputError(
                f"loss = paper with prediction = label needs sigma = 0, got {self.sigma}: it is the paper's on the "
                "straight line only; take prediction = velocity, or loss = clipped, unweighted or cross-entropy"
            )

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> Denoiser:
        """Make the net of the paper's block, or of a block around a module of the user's."""
        check_options(task, self.readout, self.label_smoothing)
        rows = embedding_for(self.embedding, self.dimension, self.unit_norm, task, noise.stream("embedding"), examples)
        return make_denoiser(task, noise, module, self.path, rows, self.embedding, self.readout, None)

    def fits(self, net: Denoiser) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return net.schedule is None

    def estimate(self, net: Denoiser, batch: Batch, noise: Noise) -> Update:
        """Return the gradients of the loss, one time and one noise per image (and draw)."""
        set_training(net)
        generator = noise.generator(batch.inputs.device)
        draw = draw_times(self.times, len(batch.targets) * self.draws_per_image, net.dimension, generator)
        labels = torch.cat([batch.targets] * self.draws_per_image)
        time, target = draw.time[:, None], net.label_embedding(labels)
        latent = time * target + (1 - time) * draw.normal
        if self.sigma:
            latent = latent + self.sigma * torch.empty_like(latent).normal_(generator=generator)
        with (
            kept_statistics(net) as changed,
            masks_from(generator),
            noise.stream("module").torch_seeded(batch.inputs.device),
        ):
            prepared = net.block.prepare(batch.inputs).repeat(self.draws_per_image, 1)
            outputs = net.block.outputs(prepared, latent, draw.time)
            statistics = changed()
            losses = self._losses(net, outputs, latent, labels, draw)
            # before the buffers are put back: batch norm's way back needs them untouched
            gradients = gradients_of(torch.stack(list(losses.values())).sum(), dict(net.named_parameters()))
        return Dense(gradients, statistics, {name: loss.detach() for name, loss in losses.items()})

    def _losses(self, net: Denoiser, outputs: Tensor, latent: Tensor, labels: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Return the flow's loss, and the anchor's where something besides the block is trained."""
        rest = 1 - draw.time
        if self.prediction == "velocity":
            velocity = _velocity(net, outputs)
            each = (velocity - (net.label_embedding(labels) - draw.normal)).square().sum(dim=1)
            landing = latent + rest[:, None] * velocity
        else:
            each = denoising_loss(
                self.loss,
                outputs,
                net.embedding,
                labels,
                rest.clamp_min(_REST) ** -2,
                self.largest_weight,
                self.label_smoothing,
                net.space,
            )
            landing = net.label_estimate(outputs)
        losses = {"block: flow": each.mean()}
        if learns(self.embedding) or self.readout != "nearest":
            losses["read-out: anchor"] = readout_loss(net.space, net.readout, net.embedding, landing, labels)
        return losses

    def true_gradients(self, net: Denoiser, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the reading `euler`, through all of its steps, from z_0 = 0."""

        def logits_of(images: Tensor) -> Tensor:
            walk = self._walker(net, images, Noise(0), 0)
            return net.readout(walk.euler(walk.zero()), net.embedding)

        return end_to_end(net, batch, logits_of, running=True)

    def predict(
        self, net: Denoiser, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return class probabilities by each solver, and by the first step alone: where the flow first points."""
        net.eval()
        with torch.no_grad():
            walk = self._walker(net, images, noise, start)
            first = walk.first(self.start)
            readings: dict[str, Callable[[], Tensor]] = {
                "euler": lambda: walk.read([walk.euler(first)]),
                "euler from noise": lambda: walk.read([walk.euler(walk.normal(0, 0))]),
                "heun": lambda: walk.read([walk.heun(first)]),
                "adaptive": lambda: walk.read([walk.adaptive(first, self.solver)]),
                "mean": lambda: walk.read([walk.euler(walk.normal(draw, 0)) for draw in range(self.draws)]),
                "first step": lambda: walk.read([walk.rate(walk.zero(), walk.times[:1])]),
            }
            return walk.wanted(names or self.readings, readings)

    def _walker(self, net: Denoiser, images: Tensor, noise: Noise, start: int) -> Walker:
        def velocity(outputs: Tensor, latent: Tensor, time: Tensor) -> Tensor:
            if self.prediction == "velocity":
                return _velocity(net, outputs)
            return (net.label_estimate(outputs) - latent) / (1 - time[:, None]).clamp_min(_REST)

        last = 1.0 if self.prediction == "velocity" else 1 - _REST
        return Walker(net, images, velocity, noise, start, self.steps, last, self.grid)


def _velocity(net: Denoiser, outputs: Tensor) -> Tensor:
    """Return `v = outputs W`, (batch, dimension)."""
    with full_precision(outputs):
        return outputs @ net.embedding
