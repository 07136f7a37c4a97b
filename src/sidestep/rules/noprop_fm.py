"""NoProp as flow matching: one block learns the velocity that carries noise to the label.

Li, Teh, Pascanu, "NoProp: Training Neural Networks without (Full) Back-propagation or (Full) Forward-propagation",
arXiv 2503.24322, section 3.3 and Algorithm 3. With z_0 ~ N(0, I), z_1 = u_y and
`z_t ~ N(t z_1 + (1 - t) z_0, sigma^2 I)`:

    L = |v(z_t, x, t) - (z_1 - z_0)|^2   + CE(p_out(z_t + (1 - t) v), y)

The second term, the anchor, is there where the embedding is learned or the read-out is trained (any but `nearest`); it
trains the block too.

The paper predicts the velocity. The label can be predicted instead (`sidestep.nets.noprop.straight_path`), with the
same choice of weights as in the other variants.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from sidestep.checks import check_range
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.noprop.denoiser_readings import Walker
from sidestep.nets.noprop.straight_path import StraightPath
from sidestep.rules.protocol import Batch, Noise
from sidestep.rules.shared.denoising import learns, readout_loss
from sidestep.rules.shared.timed import Noised, Samplers, TimedRule
from sidestep.rules.shared.variant import PAPER_LABELS, PAPER_TIMES, PaperOptions

__all__ = ["NoPropFM"]


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
    norm: Literal["none", "batch"] = "none"
    """End of a built-in path but resnet-9: ReLU (none), as the paper has it here, or batch norm, as in NoProp-DT."""
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
    readings: ClassVar[tuple[str, ...]] = ("euler", "euler from noise", "heun", "adaptive", "mean", "first step")
    paper_options: ClassVar[PaperOptions] = {
        **PAPER_LABELS, "prediction": ("velocity",), "loss": ("paper",), "sigma": (0.0,), "readout": ("nearest",),
        **PAPER_TIMES,
    }  # fmt: skip
    paper_reading: ClassVar[str] = "euler from noise"
    at_end: ClassVar[tuple[str, ...]] = ("euler", "first step")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, 10, sigma=self.sigma)
        self.straight_path.check_loss(self.loss)

    @property
    def straight_path(self) -> StraightPath:
        """The path from noise to label, and what the block predicts of it."""
        return StraightPath(self.prediction, self.sigma)

    def losses(self, net: Denoiser, batch: Batch, noised: Noised, outputs: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Return the flow's loss, and the anchor's where something besides the block is trained."""
        labels, latent, time = noised.labels, noised.latent, noised.time
        if self.prediction == "velocity":
            velocity = net.velocity(outputs)
            each = (velocity - (net.label_embedding(labels) - noised.normal)).square().sum(dim=1)
            landing = latent + (1 - time)[:, None] * velocity
        else:
            each = self.denoising(net, labels, outputs, self.straight_path.weight(time))
            landing = net.label_estimate(outputs)
        losses = {"block: flow": each.mean()}
        if learns(self.embedding) or self.readout != "nearest":
            losses["read-out: anchor"] = readout_loss(net.space, net.readout, net.embedding, landing, labels)
        return losses

    def samplers(self, net: Denoiser, walk: Walker) -> Samplers:
        """Return each solver, and the first step alone: where the flow first points."""
        return super().samplers(net, walk) | {
            "euler from noise": lambda: walk.read([walk.euler_from_noise()]),
            "mean": lambda: walk.read([walk.euler_from_noise(draw) for draw in range(self.draws)]),
            "first step": lambda: walk.read([walk.rate(walk.zero(), walk.times[:1])]),
        }
