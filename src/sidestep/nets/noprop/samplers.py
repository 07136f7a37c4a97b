"""Walks from noise, or from zero, to the label: every sampler, written once, for any estimate of the label."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.nets.noprop.schedules import Levels, posterior_coefficients

__all__ = [
    "MOST_STEPS",
    "ancestral_step",
    "ancestral_walk",
    "check_steps",
    "ddim_step",
    "ddim_walk",
    "euler_walk",
    "heun_walk",
    "step_times",
]

MOST_STEPS = 1000

Estimate = Callable[[Tensor, int], Tensor]  # (z, index of the step) -> uhat, (batch, dimension)
Level = Tensor | Levels  # alpha_bar, or that with what it leaves to the noise
Velocity = Callable[[Tensor, Tensor], Tensor]  # (z, t as a tensor of shape (1,)) -> dz/dt


def check_steps(steps: int) -> None:
    """Raise InputError unless a walk can have that many steps."""
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"steps must be between 1 and {MOST_STEPS}, got {steps}")


def step_times(steps: int, grid: str = "uniform", device: str | torch.device = "cpu") -> Tensor:
    """Return the times from 0 to 1 that a walk of fixed steps goes through, float32 of shape (steps + 1,).

    `uniform`: `t_i = i / steps`; `cosine`: `t_i = sin^2(pi/2 i / steps)`, closer together near both ends.

    >>> step_times(4, "cosine").tolist()[::2]
    [0.0, 0.5, 1.0]

    Raises:
        InputError: for another grid.
    """
    if grid == "uniform":
        return torch.linspace(0, 1, steps + 1, device=device)
    if grid != "cosine":
        raise InputError(f"grid must be one of uniform, cosine, got {grid!r}")
    angles = torch.linspace(0, math.pi / 2, steps + 1, dtype=torch.float64)  # on the CPU: the same times everywhere
    return angles.sin().square().float().to(device)


def ancestral_step(latent: Tensor, estimate: Tensor, before: Level, after: Level, normal: Tensor) -> Tensor:
    """Return `z_t = a uhat + b z_s + sqrt(c) eps`, from alpha_bar = `before` to `after` (Li et al. 2025, eq. 3)."""
    a, b, c = posterior_coefficients(before, after)
    return a * estimate + b * latent + c.sqrt() * normal


def ddim_step(latent: Tensor, estimate: Tensor, before: Level, after: Level) -> Tensor:
    """Return the step without noise (Song et al. 2021, eq. 12 with eta = 0).

    `z_t = sqrt(abar_t) uhat + sqrt((1 - abar_t) / (1 - abar_s)) (z_s - sqrt(abar_s) uhat)`
    """
    before, after = Levels.of(before), Levels.of(after)
    kept = (after.noise / before.noise).sqrt()
    return after.signal.sqrt() * estimate + kept * (latent - before.signal.sqrt() * estimate)


def ancestral_walk(estimate: Estimate, alpha_bar: Level, latent: Tensor, normal: Callable[[int], Tensor]) -> Tensor:
    """Walk with fresh noise at each step, `normal(i)` at step i, along `alpha_bar` of shape (steps + 1,)."""
    for index in range(len(alpha_bar) - 1):
        guess = estimate(latent, index)
        latent = ancestral_step(latent, guess, alpha_bar[index], alpha_bar[index + 1], normal(index))
    return latent


def ddim_walk(estimate: Estimate, alpha_bar: Level, latent: Tensor) -> Tensor:
    """Walk without noise along `alpha_bar` of shape (steps + 1,)."""
    for index in range(len(alpha_bar) - 1):
        latent = ddim_step(latent, estimate(latent, index), alpha_bar[index], alpha_bar[index + 1])
    return latent


def euler_walk(velocity: Velocity, times: Tensor, latent: Tensor) -> Tensor:
    """Integrate dz/dt by Euler's method over `times` of shape (steps + 1,)."""
    for index in range(len(times) - 1):
        latent = latent + (times[index + 1] - times[index]) * velocity(latent, times[index : index + 1])
    return latent


def heun_walk(velocity: Velocity, times: Tensor, latent: Tensor, to_the_end: bool = True) -> Tensor:
    """Integrate dz/dt by Heun's method, of second order, over `times` of shape (steps + 1,); two evaluations a step.

    Where the rate has no value at the last time (`to_the_end` false), the last step is Euler's.
    """
    for index in range(len(times) - 1):
        size = times[index + 1] - times[index]
        first = velocity(latent, times[index : index + 1])
        if index == len(times) - 2 and not to_the_end:
            return latent + size * first
        second = velocity(latent + size * first, times[index + 1 : index + 2])
        latent = latent + size / 2 * (first + second)
    return latent
