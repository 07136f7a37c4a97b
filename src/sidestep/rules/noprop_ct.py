"""NoProp in continuous time: one block learns to denoise the label at every noise level.

Li, Teh, Pascanu, "NoProp: Training Neural Networks without (Full) Back-propagation or (Full) Forward-propagation",
arXiv 2503.24322, section 3 and Algorithm 2. With t ~ U[0, 1] and `z_t ~ N(sqrt(abar(t)) u_y, (1 - abar(t)) I)`:

    L = CE(p_out(z_1), y) + KL(q(z_0 | y) || N(0, I)) + eta/2 SNR'(t) |uhat(z_t, x, t) - u_y|^2

The last term is one choice of several (`loss`): its weight SNR'(t) lets a few times own nearly all of the gradient.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from sidestep.checks import check_positive, check_range, check_used
from sidestep.errors import InputError
from sidestep.nets.noprop.denoiser import Denoiser, Draw
from sidestep.nets.noprop.denoiser_readings import Walker, diffusion_velocity
from sidestep.nets.noprop.time_schedules import LearnedSchedule, Schedule, make_schedule, schedule_failure
from sidestep.rules.protocol import Batch, Noise, Update
from sidestep.rules.shared.denoising import readout_loss, start_divergence
from sidestep.rules.shared.timed import Noised, Samplers, TimedRule
from sidestep.rules.shared.variant import PAPER_LABELS, PAPER_TIMES, PaperOptions

__all__ = ["NoPropCT"]


@dataclass(frozen=True)
class NoPropCT(TimedRule):
    """Train one block to denoise the label at every time (Li, Teh, Pascanu 2025, continuous time)."""

    loss: Literal["paper", "clipped", "unweighted", "cross-entropy"] = "cross-entropy"
    """Denoising loss: squared error times eta/2 SNR'(t) (the paper's), that weight clipped, or 1; or cross-entropy."""
    schedule: Literal["learned", "linear", "cosine"] = "linear"
    """Noise schedule: learned (the paper's, with loss = paper), or fixed: log SNR linear in t, or cosine."""
    eta: float = 1.0
    """Weight of the denoising loss (the paper's eta), where the loss has one."""
    largest_weight: float = 5.0
    """The most that the weight eta/2 SNR'(t) can be with loss = clipped."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes, with loss = cross-entropy."""
    embedding: Literal["one-hot", "orthogonal", "learned", "prototype"] = "one-hot"
    """Class embedding u_y: fixed one-hot or orthogonal; learned, or learned from an image of each class (prototype)."""
    dimension: int | None = None
    """Length of a learned (default 20, the paper's d) or orthogonal embedding; one-hot and prototype have their own."""
    unit_norm: bool = False
    """Keep every class embedding at norm 1, which a learned one needs so as not to collapse."""
    readout: Literal["softmax", "radial", "nearest"] = "softmax"
    """Posterior p(y | z_1): linear with softmax, by distance after a softmax, or the nearest class embedding."""
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
    smallest_alpha_bar: float = 0.0067
    """alpha_bar(0), how much label is left in z_0; where a learned schedule starts."""
    largest_alpha_bar: float = 0.9933
    """alpha_bar(1), how clean z_1 is; where a learned schedule starts."""
    steps: int = 50
    """Steps of a sampler when predicting, 1 to 1000 (the paper's tables: 1000)."""
    solver: Literal["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"] = "dopri5"
    """Method of the reading `adaptive`, which gives each image its own steps."""
    start: Literal["zero", "noise"] = "zero"
    """Where `ddim`, `euler`, `heun` and `adaptive` start: at z_0 = 0, or at z_0 ~ N(0, I)."""
    grid: Literal["uniform", "cosine"] = "uniform"
    """How a sampler's steps are spaced in time: evenly, or closer together near both ends (all but `adaptive`)."""
    draws: int = 8
    """Ancestral chains that the reading `mean` averages over."""

    name: ClassVar[str] = "noprop-ct"
    summary: ClassVar[str] = "NoProp, continuous time: one block denoises the label at every noise level"
    readings: ClassVar[tuple[str, ...]] = (
        "ddim", "ddim from noise", "ancestral", "euler", "heun", "adaptive", "mean", "first step",
    )  # fmt: skip
    paper_options: ClassVar[PaperOptions] = {
        **PAPER_LABELS, "loss": ("paper",), "schedule": ("learned",), "eta": (1.0,), **PAPER_TIMES,
    }  # fmt: skip
    paper_reading: ClassVar[str] = "ancestral"
    at_end: ClassVar[tuple[str, ...]] = ("ddim", "first step")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(1e6, eta=self.eta)
        ends = {"smallest_alpha_bar": self.smallest_alpha_bar, "largest_alpha_bar": self.largest_alpha_bar}
        check_range(1e-9, 1 - 1e-6, **ends)
        self.time_schedule()
        check_used(self, "eta", "loss", "paper", "clipped")
        if self.schedule == "learned" and self.loss != "paper":
            raise InputError(
                f"schedule = learned needs loss = paper, got {self.loss}: the bound's own weight is what keeps a "
                "learned schedule from making every z_t clean; take schedule = linear or cosine"
            )

    def time_schedule(self) -> nn.Module:
        """Return abar(t)."""
        return make_schedule(self.schedule, self.smallest_alpha_bar, self.largest_alpha_bar)

    def noised(self, net: Denoiser, labels: Tensor, draw: Draw, generator: torch.Generator) -> Tensor:
        """Return `sqrt(abar(t)) u_y + sqrt(1 - abar(t)) eps`."""
        level = _schedule(net).levels(draw.time[:, None])
        return level.signal.sqrt() * net.label_embedding(labels) + level.noise.sqrt() * draw.normal

    def losses(self, net: Denoiser, batch: Batch, noised: Noised, outputs: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Return the denoising loss, and the two terms that the block does not enter."""
        weight = self.eta / 2 * _schedule(net).snr_slope(noised.time)
        each = self.denoising(net, noised.labels, outputs, weight)
        ends = _schedule(net).levels(net.embedding.new_tensor([0.0, 1.0]))
        target = net.label_embedding(batch.targets)
        normal = torch.empty_like(target).normal_(generator=noise.sub(1).generator(target.device))
        last = ends[1].signal.sqrt() * target + ends[1].noise.sqrt() * normal
        return {
            "block: denoising": each.mean(),
            "read-out: cross-entropy": readout_loss(net.space, net.readout, net.embedding, last, batch.targets),
            "read-out: KL": start_divergence(target, ends[0]),
        }

    def apply(self, net: Denoiser, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take one step along the gradients; keep a learned schedule in bounds, and rows at norm 1 where wanted."""
        super().apply(net, update, optimizer)
        if isinstance(net.schedule, LearnedSchedule):
            net.schedule.bound()

    def velocity(self, net: Denoiser, outputs: Tensor, latent: Tensor, time: Tensor) -> Tensor:
        """Return the rate of the probability flow."""
        return diffusion_velocity(net, _schedule(net), outputs, latent, time)

    def landing(self, net: Denoiser, walk: Walker) -> Tensor:
        """Return where `ddim` ends."""
        return walk.ddim(_schedule(net), walk.zero())

    def samplers(self, net: Denoiser, walk: Walker) -> Samplers:
        """Return each sampler, and the block's first output alone, at z = 0 and t = 0."""
        schedule, first = _schedule(net), walk.first(self.start)
        return super().samplers(net, walk) | {
            "ddim": lambda: walk.read([walk.ddim(schedule, first)]),
            "ddim from noise": lambda: walk.read([walk.ddim(schedule, walk.normal(0, 0))]),
            "ancestral": lambda: walk.read([walk.ancestral(schedule)]),
            "mean": lambda: walk.read([walk.ancestral(schedule, draw) for draw in range(self.draws)]),
            "first step": lambda: net.answer(walk.outputs(walk.zero(), walk.times[:1])),
        }

    def diagnostics(self, net: Denoiser) -> dict[str, float]:
        """Return the embeddings' smallest norm and distance, and the schedule's ends."""
        with torch.no_grad():
            first, last = _schedule(net).alpha_bar(net.embedding.new_tensor([0.0, 1.0])).tolist()
        return {**super().diagnostics(net), "alpha_bar(0)": first, "alpha_bar(1)": last}

    def failure(self, net: Denoiser) -> str | None:
        """Return what is wrong with a net that is not finite, or whose schedule is saturated or, learned, flat."""
        lost = [name for name, value in net.state_dict().items() if not bool(value.isfinite().all())]
        if lost:
            return f"{lost[0]} is not finite any more; take a smaller --learning-rate"
        return schedule_failure(_schedule(net))


def _schedule(net: Denoiser) -> Schedule:
    return cast("Schedule", net.schedule)
