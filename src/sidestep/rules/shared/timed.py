"""What rules on the continuous-time net share: how it is made, how labels are noised, trained on and read."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sidestep.checks import check_positive, check_range, check_used
from sidestep.gradients.end_to_end import end_to_end, gradients_of
from sidestep.nets.noprop.denoiser import Denoiser, Draw, draw_times
from sidestep.nets.noprop.denoiser_readings import RecordedWalker, Walker
from sidestep.nets.noprop.embeddings import embedding_distances
from sidestep.nets.noprop.losses import check_smoothing, denoising_loss
from sidestep.nets.noprop.samplers import check_steps
from sidestep.nets.noprop.straight_path import StraightPath
from sidestep.nets.training_pass import training_pass
from sidestep.rules.protocol import Batch, Dense, ImagePath, Noise, Rule, Split, Takes, Task, Update
from sidestep.rules.shared.denoising import (
    TAKES,
    block_units,
    check_norm,
    check_options,
    embedding_for,
    make_denoiser,
    project_rows,
)
from sidestep.rules.shared.dense import OPTIMIZERS

__all__ = ["DenoisingRule", "Noised", "Pointed", "Samplers", "TimedRule"]

Samplers = dict[str, Callable[[], Tensor]]  # reading -> class probabilities, (batch, classes)


class Noised(NamedTuple):
    """Labels with noise, each of a batch once or several times over."""

    labels: Tensor  # (n,)
    time: Tensor  # (n,)
    normal: Tensor  # (n, dimension)
    latent: Tensor  # (n, dimension), z_t


class Pointed(NamedTuple):
    """A step of a walk: what the block points to from where it stands, and what is read after the step."""

    time: float  # at the step's beginning
    own: Tensor  # (batch, classes)
    read: Tensor  # (batch, classes)


class DenoisingRule(Rule[Denoiser]):
    """What rules on the continuous-time net have in common: a process, `time_schedule` and `velocity`, and readings."""

    embedding: Any
    dimension: int | None
    unit_norm: bool
    path: Any
    norm: Any
    readout: Any
    steps: int
    grid: Any = "uniform"

    takes: ClassVar[Takes] = TAKES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)
        if self.dimension is not None:
            check_range(1, 1_000_000, dimension=self.dimension)

    def time_schedule(self) -> nn.Module | None:
        """Return alpha_bar(t), or None for a straight path from noise to label."""
        return None

    @property
    def straight_path(self) -> StraightPath:
        """The path from noise to label of a rule without a schedule, and what the block predicts of it."""
        return StraightPath("velocity", 0.0)

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> Denoiser:
        """Make the net of the paper's block, or of a block around a module of the user's."""
        check_options(task, self.readout, getattr(self, "label_smoothing", 0.0))
        rows = embedding_for(self.embedding, self.dimension, self.unit_norm, task, noise.stream("embedding"), examples)
        schedule = self.time_schedule()
        norm = check_norm(self.norm, self.path, module)
        return make_denoiser(task, noise, module, self.path, norm, rows, self.embedding, self.readout, schedule)

    def fits(self, net: Denoiser) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return (net.schedule is None) == (self.time_schedule() is None)

    def apply(self, net: Denoiser, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take one step along the gradients; put the embedding back to norm 1 where that is wanted."""
        super().apply(net, update, optimizer)
        if self.unit_norm:
            project_rows(net)

    def diagnostics(self, net: Denoiser) -> dict[str, float]:
        """Return the smallest norm and distance of class embeddings, which would shrink in a collapse."""
        return embedding_distances(net.embedding) if net.space.classes else {}

    def velocity(self, net: Denoiser, outputs: Tensor, latent: Tensor, time: Tensor) -> Tensor:
        """Return dz/dt at z and t, (batch, dimension), from the block's outputs there."""
        return self.straight_path.velocity(net, outputs, latent, time)

    def walker(self, net: Denoiser, images: Tensor, noise: Noise, start: int) -> Walker:
        """Return a batch on its way to labels."""
        last, velocity = self.straight_path.last, partial(self.velocity, net)
        return Walker(net, images, velocity, noise, start, self.steps, last, self.grid)

    def course(self, net: Denoiser, images: Tensor, noise: Noise) -> list[Pointed]:
        """Return what is answered along the default reading, step by step; the last read-out is the prediction."""
        net.eval()
        with torch.no_grad():
            walk = RecordedWalker.like(self.walker(net, images, noise, 0))
            final = self.samplers(net, walk)[self.readings[0]]()
            read = [net.probabilities(latent) for latent, _, _ in walk.passed[1:]]
            return [
                Pointed(float(time[0]), self._pointed(net, outputs, latent, time), after)
                for (latent, time, outputs), after in zip(walk.passed, [*read, final], strict=True)
            ]

    def _pointed(self, net: Denoiser, outputs: Tensor, latent: Tensor, time: Tensor) -> Tensor:
        """Return the label that the block's outputs point to, read: its own, or where a straight path would end."""
        if net.schedule is not None:
            return net.answer(outputs)
        return net.probabilities(latent + (1 - time[:, None]) * self.velocity(net, outputs, latent, time))

    def samplers(self, net: Denoiser, walk: Walker) -> Samplers:
        """Return what computes each reading."""
        raise NotImplementedError

    def predict(
        self, net: Denoiser, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return class probabilities by each of the wanted readings."""
        net.eval()
        with torch.no_grad():
            walk = self.walker(net, images, noise, start)
            return walk.wanted(names or self.readings, self.samplers(net, walk))


class TimedRule(DenoisingRule):
    """What NoProp has in common in continuous time: one loss at random times, of a block and what it is trained with.

    A rule says what the block is asked for (`losses`), and, where it does not follow the straight path, how a label is
    noised (`noised`), and where its default reading ends (`landing`).
    """

    loss: Any
    largest_weight: float
    label_smoothing: float
    times: Any
    draws_per_image: int
    optimizer_kind: str
    learning_rate: float
    weight_decay: float
    solver: Any
    start: Any
    draws: int

    for_inference: ClassVar[tuple[str, ...]] = ("steps", "solver", "start", "grid", "draws")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(1e6, largest_weight=self.largest_weight)
        check_range(1, 1000, draws=self.draws, draws_per_image=self.draws_per_image)
        check_smoothing(self.loss, self.label_smoothing)
        check_used(self, "largest_weight", "loss", "clipped")

    def noised(self, net: Denoiser, labels: Tensor, draw: Draw, generator: torch.Generator) -> Tensor:
        """Return z_t, (n, dimension), of labels (n,) at the times and with the noise that were drawn."""
        return self.straight_path.noised(net, labels, draw, generator)

    def losses(self, net: Denoiser, batch: Batch, noised: Noised, outputs: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Return the terms of the loss, () each, by name, from the block's outputs at `noised`, (n, classes)."""
        raise NotImplementedError

    def landing(self, net: Denoiser, walk: Walker) -> Tensor:
        """Return z_1, (batch, dimension), of the default reading from z_0 = 0: here of `euler`."""
        return walk.euler(walk.zero())

    def samplers(self, net: Denoiser, walk: Walker) -> Samplers:
        """Return the solvers of the flow, from where `start` says."""
        first = walk.first(self.start)
        return {
            "euler": lambda: walk.read([walk.euler(first)]),
            "heun": lambda: walk.read([walk.heun(first)]),
            "adaptive": lambda: walk.read([walk.adaptive(first, self.solver)]),
        }

    def denoising(self, net: Denoiser, labels: Tensor, outputs: Tensor, weight: Tensor) -> Tensor:
        """Return the denoising loss of each example, from outputs (n, classes) and the squared error's weight."""
        rows, most = net.embedding, self.largest_weight
        return denoising_loss(self.loss, outputs, rows, labels, weight, most, self.label_smoothing, net.space)

    def units(self, net: Denoiser) -> dict[str, list[str]]:
        """Return the block's parameters, and those of what it is trained with: read-out, embedding, schedule."""
        return block_units(net)

    def optimizer(self, net: Denoiser) -> torch.optim.Optimizer:
        """Make Adam or AdamW with one group for the block and one for the rest."""
        return OPTIMIZERS[self.optimizer_kind](net, self.units(net), self.learning_rate, self.weight_decay)

    def estimate(self, net: Denoiser, batch: Batch, noise: Noise) -> Update:
        """Return the gradients of the loss, one time and one noise per image (and draw)."""
        generator, count = noise.generator(batch.inputs.device), self.draws_per_image
        draw = draw_times(self.times, len(batch.targets) * count, net.dimension, generator)
        labels = torch.cat([batch.targets] * count)
        noised = Noised(labels, *draw, self.noised(net, labels, draw, generator))
        with training_pass(net, batch.inputs.device, noise, generator) as changed:
            prepared = net.block.prepare(batch.inputs).repeat(count, 1)
            outputs = net.block.outputs(prepared, noised.latent, draw.time)
            statistics = changed()
            losses = self.losses(net, batch, noised, outputs, noise)
            gradients = gradients_of(torch.stack(list(losses.values())).sum(), dict(net.named_parameters()))
        return Dense(gradients, statistics, {name: loss.detach() for name, loss in losses.items()})

    def true_gradients(self, net: Denoiser, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the default reading, through all of its steps, from z_0 = 0."""

        def logits_of(images: Tensor) -> Tensor:
            return net.readout(self.landing(net, self.walker(net, images, Noise(0), 0)), net.embedding)

        return end_to_end(net, batch, logits_of, running=True)
