"""NoProp in continuous time: one block learns to denoise the label at every noise level.

Li, Teh, Pascanu, "NoProp: Training Neural Networks without (Full) Back-propagation or (Full) Forward-propagation",
arXiv 2503.24322, section 3 and Algorithm 2. With t ~ U[0, 1] and `z_t ~ N(sqrt(abar(t)) u_y, (1 - abar(t)) I)`:

    L = CE(p_out(z_1), y) + KL(q(z_0 | y) || N(0, I)) + eta/2 SNR'(t) |uhat(z_t, x, t) - u_y|^2

The last term is one choice of several (`loss`): its weight SNR'(t) lets a few times own nearly all of the gradient.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from sidestep.checks import check_positive, check_range, check_used
from sidestep.data import Split
from sidestep.errors import InputError
from sidestep.gradients.end_to_end import end_to_end, gradients_of
from sidestep.nets.dropout import masks_from
from sidestep.nets.noprop.denoiser import Denoiser, draw_times
from sidestep.nets.noprop.denoiser_readings import Walker, diffusion_velocity
from sidestep.nets.noprop.losses import check_loss, check_smoothing, denoising_loss
from sidestep.nets.noprop.samplers import check_steps
from sidestep.nets.noprop.time_schedules import LearnedSchedule, Schedule, make_schedule, schedule_failure
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.trained import set_training
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Task
from sidestep.rules.shared.denoising import (
    TAKES,
    TimedRule,
    check_options,
    embedding_for,
    make_denoiser,
    project_rows,
    readout_loss,
    start_divergence,
)
from sidestep.rules.shared.dense import apply_dense
from sidestep.rules.shared.variant import PAPER_LABELS, PaperOptions
from sidestep.rules.takes import Takes
from sidestep.update import Dense, Update

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
    takes: ClassVar[Takes] = TAKES
    readings: ClassVar[tuple[str, ...]] = (
        "ddim", "ddim from noise", "ancestral", "euler", "heun", "adaptive", "mean", "first step",
    )  # fmt: skip
    paper_options: ClassVar[PaperOptions] = {
        **PAPER_LABELS, "loss": ("paper",), "schedule": ("learned",), "eta": (1.0,),
        "times": ("uniform",), "draws_per_image": (1,), "optimizer_kind": ("adam",),
    }  # fmt: skip
    paper_reading: ClassVar[str] = "ancestral"
    for_inference: ClassVar[tuple[str, ...]] = ("steps", "solver", "start", "grid", "draws")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        check_positive(1e6, eta=self.eta, largest_weight=self.largest_weight)
        check_range(1, 1000, draws=self.draws, draws_per_image=self.draws_per_image)
        check_steps(self.steps)
        if self.dimension is not None:
            check_range(1, 1_000_000, dimension=self.dimension)
        check_range(
            1e-9, 1 - 1e-6, smallest_alpha_bar=self.smallest_alpha_bar, largest_alpha_bar=self.largest_alpha_bar
        )
        make_schedule(self.schedule, self.smallest_alpha_bar, self.largest_alpha_bar)
        check_smoothing(self.loss, self.label_smoothing)
        check_used(self, "eta", "loss", "paper", "clipped")
        check_used(self, "largest_weight", "loss", "clipped")
        if self.schedule == "learned" and self.loss != "paper":
            raise InputError(
                f"schedule = learned needs loss = paper, got {self.loss}: the bound's own weight is what keeps a "
                "learned schedule from making every z_t clean; take schedule = linear or cosine"
            )

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> Denoiser:
        """Make the net of the paper's block, or of a block around a module of the user's."""
        check_options(task, self.readout, self.label_smoothing)
        rows = embedding_for(self.embedding, self.dimension, self.unit_norm, task, noise.stream("embedding"), examples)
        schedule = make_schedule(self.schedule, self.smallest_alpha_bar, self.largest_alpha_bar)
        return make_denoiser(task, noise, module, self.path, rows, self.embedding, self.readout, schedule)

    def fits(self, net: Denoiser) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return net.schedule is not None

    def estimate(self, net: Denoiser, batch: Batch, noise: Noise) -> Update:
        """Return the gradients of the loss, one time and one noise per image (and draw)."""
        set_training(net)
        generator, schedule = noise.generator(batch.inputs.device), _schedule(net)
        draw = draw_times(self.times, len(batch.targets) * self.draws_per_image, net.dimension, generator)
        labels = torch.cat([batch.targets] * self.draws_per_image)
        level, target = schedule.levels(draw.time[:, None]), net.label_embedding(labels)
        latent = level.signal.sqrt() * target + level.noise.sqrt() * draw.normal
        with (
            kept_statistics(net) as changed,
            masks_from(generator),
            noise.stream("module").torch_seeded(batch.inputs.device),
        ):
            prepared = net.block.prepare(batch.inputs).repeat(self.draws_per_image, 1)
            logits = net.block.outputs(prepared, latent, draw.time)
            statistics = changed()
            weight = self.eta / 2 * schedule.snr_slope(draw.time)
            each = denoising_loss(
                self.loss, logits, net.embedding, labels, weight, self.largest_weight, self.label_smoothing, net.space
            )
            losses = {"block: denoising": each.mean(), **self._other_terms(net, batch.targets, noise.sub(1))}
            # before the buffers are put back: batch norm's way back needs them untouched
            gradients = gradients_of(torch.stack(list(losses.values())).sum(), dict(net.named_parameters()))
        return Dense(gradients, statistics, {name: loss.detach() for name, loss in losses.items()})

    def _other_terms(self, net: Denoiser, labels: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Return `CE(p_out(z_1), y)` and `KL(q(z_0 | y) || N(0, I))`, which the block does not enter."""
        ends = _schedule(net).levels(net.embedding.new_tensor([0.0, 1.0]))
        target = net.label_embedding(labels)
        normal = torch.empty_like(target).normal_(generator=noise.generator(target.device))
        last = ends[1].signal.sqrt() * target + ends[1].noise.sqrt() * normal
        return {
            "read-out: cross-entropy": readout_loss(net.space, net.readout, net.embedding, last, labels),
            "read-out: KL": start_divergence(target, ends[0]),
        }

    def true_gradients(self, net: Denoiser, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the reading `ddim`, through all of its steps, from z_0 = 0."""
        schedule = _schedule(net)

        def logits_of(images: Tensor) -> Tensor:
            walk = Walker(
                net, images, lambda outputs, _z, _time: outputs, Noise(0), 0, self.steps, grid=self.grid
            )  # ddim has no rate
            return net.readout(walk.ddim(schedule, walk.zero()), net.embedding)

        return end_to_end(net, batch, logits_of, running=True)

    def apply(self, net: Denoiser, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take one step along the gradients; keep a learned schedule in bounds, and rows at norm 1 where wanted."""
        apply_dense(net, update, optimizer)
        if isinstance(net.schedule, LearnedSchedule):
            net.schedule.bound()
        if self.unit_norm:
            project_rows(net)

    def predict(
        self, net: Denoiser, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return class probabilities by each sampler, and by the block's first output alone, at z = 0 and t = 0."""
        net.eval()
        schedule = _schedule(net)

        def velocity(outputs: Tensor, latent: Tensor, time: Tensor) -> Tensor:
            return diffusion_velocity(net, schedule, outputs, latent, time)

        with torch.no_grad():
            walk = Walker(net, images, velocity, noise, start, self.steps, grid=self.grid)
            first = walk.first(self.start)
            readings: dict[str, Callable[[], Tensor]] = {
                "ddim": lambda: walk.read([walk.ddim(schedule, first)]),
                "ddim from noise": lambda: walk.read([walk.ddim(schedule, walk.normal(0, 0))]),
                "ancestral": lambda: walk.read([walk.ancestral(schedule)]),
                "euler": lambda: walk.read([walk.euler(first)]),
                "heun": lambda: walk.read([walk.heun(first)]),
                "adaptive": lambda: walk.read([walk.adaptive(first, self.solver)]),
                "mean": lambda: walk.read([walk.ancestral(schedule, draw) for draw in range(self.draws)]),
                "first step": lambda: net.answer(walk.outputs(walk.zero(), walk.times[:1])),
            }
            return walk.wanted(names or self.readings, readings)

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
