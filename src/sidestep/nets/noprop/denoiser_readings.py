"""Readings of a continuous-time net: class probabilities by every sampler, from images alone."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from sidestep.nets.noprop.adaptive import adaptive_walk
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.noprop.samplers import ancestral_walk, ddim_walk, euler_walk, heun_walk, step_times
from sidestep.nets.noprop.time_schedules import Schedule
from sidestep.noise import Noise

__all__ = ["RecordedWalker", "Walker", "diffusion_velocity"]

Outputs = Callable[[Tensor, Tensor], Tensor]  # (z, t) -> class outputs, (batch, classes)


def diffusion_velocity(net: Denoiser, schedule: Schedule, outputs: Tensor, latent: Tensor, time: Tensor) -> Tensor:
    """Return the probability-flow rate of the process q(z_t | y).

    `dz/dt = -gamma'(t)/2 (sqrt(abar) uhat - abar z)`, from `z = sqrt(abar) uhat + sqrt(1 - abar) eps` with uhat and eps
    held (Song et al. 2021b, eq. 13, in terms of gamma); it stays bounded at both ends of time.
    """
    time = time[:, None]
    alpha_bar = schedule.alpha_bar(time)
    return -schedule.slope(time) / 2 * (alpha_bar.sqrt() * net.label_estimate(outputs) - alpha_bar * latent)


@dataclass
class Walker:
    """One batch of images on its way to labels; the image path runs once, when the walker is made.

    Args:
        net: the net.
        images: (batch, channels, height, width), standardised.
        velocity: from the block's outputs, z and t to dz/dt.
        noise: what noise starts and stochastic walks draw from; example i uses elements from (start + i) d on.
        start: index of the first image within the whole set, so that samples do not depend on the batching.
        steps: steps of each walk with fixed steps.
        last: the last time at which the rate has a value: 1, or a little less for `(uhat - z) / (1 - t)`.
        grid: how those steps are spaced in time: `uniform`, or `cosine`.
    """

    net: Denoiser
    images: Tensor
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor]
    noise: Noise
    start: int
    steps: int
    last: float = 1.0
    grid: str = "uniform"

    def __post_init__(self) -> None:
        self._prepared = self.net.block.prepare(self.images)
        self.times = step_times(self.steps, self.grid, self.images.device)
        self._ends: dict[tuple[str, int], Tensor] = {}  # of draws that several readings are made of

    def outputs(self, latent: Tensor, time: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the block's class outputs at z and t, (batch, classes), or those of some `rows` of the batch."""
        prepared = self._prepared if rows is None or rows.shape == self._prepared.shape[:1] else self._prepared[rows]
        return self.net.block.outputs(prepared, latent, time)

    def zero(self) -> Tensor:
        """Return z_0 = 0, (batch, dimension)."""
        return self.net.embedding.new_zeros(self._prepared.shape[0], self.net.dimension)

    def first(self, kind: str) -> Tensor:
        """Return z_0, (batch, dimension), where the walks without noise of their own start: `zero`, or `noise`."""
        return self.normal(0, 0) if kind == "noise" else self.zero()

    def normal(self, draw: int, index: int) -> Tensor:
        """Return standard normal noise, (batch, dimension): of one draw, at one step."""
        count, first = len(self._prepared) * self.net.dimension, self.start * self.net.dimension
        stream = self.noise.stream(f"draw {draw}").sub(index)
        drawn = stream.normal(count, start=first, device=self._prepared.device)
        return drawn.to(self.net.embedding.dtype).view(-1, self.net.dimension)

    def rate(self, latent: Tensor, time: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return dz/dt at z and t, (batch, dimension), or that of some `rows` of the batch."""
        return self.velocity(self.outputs(latent, time, rows), latent, time)

    def euler(self, latent: Tensor) -> Tensor:
        """Return z_1 by Euler's method."""
        return euler_walk(self.rate, self.times, latent)

    def heun(self, latent: Tensor) -> Tensor:
        """Return z_1 by Heun's method."""
        return heun_walk(self.rate, self.times, latent, to_the_end=self.last == 1)

    def adaptive(self, latent: Tensor, solver: str, tolerance: float = 1e-3) -> Tensor:
        """Return z_1 by an adaptive solver, up to the last time, and a step of Euler's from there."""
        latent = adaptive_walk(self.rate, (0.0, self.last), latent, solver, tolerance)
        return euler_walk(self.rate, self.times.new_tensor([self.last, 1.0]), latent) if self.last < 1 else latent

    def _estimate(self, latent: Tensor, index: int) -> Tensor:
        return self.net.label_estimate(self.outputs(latent, self.times[index : index + 1]))

    def ddim(self, schedule: Schedule, latent: Tensor) -> Tensor:
        """Return z_1 by DDIM."""
        return ddim_walk(self._estimate, schedule.levels(self.times), latent)

    def ancestral(self, schedule: Schedule, draw: int = 0) -> Tensor:
        """Return z_1 by one draw of the paper's chain, from z_0 ~ N(0, I); a draw is walked once."""
        if ("ancestral", draw) not in self._ends:
            levels, start = schedule.levels(self.times), self.normal(draw, 0)
            walked = ancestral_walk(self._estimate, levels, start, lambda i: self.normal(draw, i + 1))
            self._ends["ancestral", draw] = walked
        return self._ends["ancestral", draw]

    def euler_from_noise(self, draw: int = 0) -> Tensor:
        """Return z_1 by Euler's method from z_0 ~ N(0, I); a draw is walked once."""
        if ("euler", draw) not in self._ends:
            self._ends["euler", draw] = self.euler(self.normal(draw, 0))
        return self._ends["euler", draw]

    def read(self, latents: list[Tensor]) -> Tensor:
        """Return the mean of the read-outs of several z_1, (batch, classes)."""
        return torch.stack([self.net.probabilities(latent) for latent in latents]).mean(dim=0)

    def wanted(self, names: Collection[str], readings: dict[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        """Return the wanted readings' probabilities, (batch, classes) each; only those are computed."""
        return {name: readings[name]() for name in names}


@dataclass
class RecordedWalker(Walker):
    """A walker that keeps what the block was asked, and what it said, of all rows: z, t and class outputs."""

    passed: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def like(cls, walk: Walker) -> "RecordedWalker":
        """Return a walker of the same batch, which has kept nothing yet."""
        return cls(**{each.name: getattr(walk, each.name) for each in fields(walk)})

    def outputs(self, latent: Tensor, time: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return what the block says, and keep it."""
        found = super().outputs(latent, time, rows)
        if rows is None:
            self.passed.append((latent, time, found))
        return found
