"""Noise schedules: how much of the label is left in z_t, and the coefficients that follow from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sidestep.errors import InputError

__all__ = [
    "Levels",
    "PosteriorCoefficients",
    "check_alpha_bar",
    "cosine_alpha_bar",
    "posterior_coefficients",
    "readable_alpha_bar",
    "signal_to_noise",
]


@dataclass(frozen=True)
class Levels:
    """Noise levels, each as the signal's share alpha_bar and the noise's, `1 - alpha_bar`.

    Both are kept, since the difference would round away what is left of the smaller one: in float32, `1 - 0.999999` is
    off by 1.3 %, and above 0.99999997 it is 0.
    """

    signal: Tensor
    noise: Tensor  # of the same shape

    @classmethod
    def of(cls, level: "Tensor | Levels") -> "Levels":
        """Return levels that are given as alpha_bar alone, or as they are."""
        return level if isinstance(level, Levels) else cls(level, 1 - level)

    @classmethod
    def at(cls, gamma: Tensor) -> "Levels":
        """Return the levels of negative log signal-to-noise ratios: `sigmoid(-gamma)` and `sigmoid(gamma)`."""
        return cls(torch.sigmoid(-gamma), torch.sigmoid(gamma))

    def __len__(self) -> int:
        """How many there are."""
        return len(self.signal)

    def __getitem__(self, index: Any) -> "Levels":
        """Return some of them."""
        return Levels(self.signal[index], self.noise[index])


class PosteriorCoefficients(NamedTuple):
    """Coefficients of one ancestral step, `z_t = prediction * u + previous * z_s + sqrt(variance) * eps`."""

    prediction: Tensor
    previous: Tensor
    variance: Tensor


def cosine_alpha_bar(blocks: int, offset: float = 0.008, low: float = 1e-3, high: float = 0.999) -> Tensor:
    """Return the cosine schedule of alpha_bar_0 .. alpha_bar_T, rising from nearly pure noise to nearly the label.

    `alpha_bar_t = cos^2(((1 - t/T) + s) / (1 + s) * pi/2) / cos^2(s / (1 + s) * pi/2)`, clipped to `[low, high]`; t
    runs with the network: t = 0 is noise and t = T the label (Nichol and Dhariwal 2021, eq. 17, with time reversed).

    Args:
        blocks: T, the number of denoising blocks, at least 1.
        offset: s, which keeps the last steps from being too small.
        low: the smallest value allowed.
        high: the largest value allowed.

    Returns:
        float64 tensor of shape (T + 1,), strictly rising.

    Raises:
        InputError: if `blocks` is below 1 or the schedule would not rise strictly within (0, 1).

    >>> [round(value, 3) for value in cosine_alpha_bar(2).tolist()]
    [0.001, 0.494, 0.999]
    """
    if blocks < 1:
        raise InputError(f"blocks must be at least 1, got {blocks}")
    _check_clip(low, high)

    def levels(blocks: int) -> Tensor:
        time = torch.linspace(1, 0, blocks + 1, dtype=torch.float64)
        squared = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
        return (squared / squared[-1]).clamp(low, high)

    return _rising(levels, blocks, f"the cosine schedule clipped to [{low:g}, {high:g}]", ", or take levels = readable")


def readable_alpha_bar(blocks: int, classes: int, low: float = 1e-3, high: float = 0.999) -> Tensor:
    """Return levels alpha_bar_0 .. alpha_bar_T between which a noisy label becomes readable in equal steps.

    Readability is the chance that the class nearest to z_t is the right one, for m orthonormal class embeddings:
    `P(delta) = int phi(x - delta) Phi(x)^(m-1) dx` with `delta = sqrt(alpha_bar / (1 - alpha_bar))`. The levels split
    the range of P between `low` and `high` evenly, in the spirit of DiffusionBlocks, which places its blocks at equal
    probability mass (arXiv 2506.14202); the cosine schedule spends most of its blocks where z_t says nothing.

    >>> [round(value, 3) for value in readable_alpha_bar(3, 10).tolist()]
    [0.001, 0.587, 0.814, 0.999]
    """
    if blocks < 1:
        raise InputError(f"blocks must be at least 1, got {blocks}")
    _check_clip(low, high)
    start, end = (math.log(level / (1 - level)) for level in (low, high))
    log_snr = torch.linspace(start, end, 4001, dtype=torch.float64)
    spread = torch.linspace(-8, 8, 401, dtype=torch.float64)  # x - delta: few points are enough wherever delta lies
    others = torch.special.log_ndtr(spread + torch.exp(log_snr / 2)[:, None]) * (classes - 1)
    density = torch.exp(others - spread**2 / 2) / math.sqrt(2 * math.pi)
    readable = torch.trapezoid(density, spread, dim=1).cummax(dim=0).values  # (4001,), rising from 1/m to 1

    def levels(blocks: int) -> Tensor:
        wanted = torch.linspace(float(readable[0]), float(readable[-1]), blocks + 1, dtype=torch.float64)
        places = torch.searchsorted(readable, wanted[1:-1])
        return torch.sigmoid(torch.cat([log_snr[:1], log_snr[places], log_snr[-1:]]))

    return _rising(levels, blocks, f"readable levels of {classes} classes in [{low:g}, {high:g}]", "")


def _rising(levels: Callable[[int], Tensor], blocks: int, name: str, instead: str) -> Tensor:
    """Return levels(blocks), or say how many blocks such levels are enough for."""
    found = levels(blocks)
    if bool((found[1:] > found[:-1]).all()):
        check_alpha_bar(found)
        return found
    most = next((n for n in range(blocks - 1, 0, -1) if bool((levels(n).diff() > 0).all())), None)
    fewer = f"use at most {most} blocks, " if most else ""
    raise InputError(
        f"{blocks} blocks are too many for {name}: {_first_fall(found)}, and every block needs an alpha_bar above that "
        f"of the one before; {fewer}widen the clip{instead}"
    )


def _first_fall(values: Tensor) -> str:
    index = int((values.diff() <= 0).nonzero()[0])
    return f"alpha_bar_{index} = {float(values[index]):.6g}, alpha_bar_{index + 1} = {float(values[index + 1]):.6g}"


def _check_clip(low: float, high: float) -> None:
    if not 0 < low < high < 1:
        raise InputError(
            f"alpha_bar is clipped to [smallest, largest], two values in (0, 1) that rise, got [{low:g}, {high:g}]; "
            "for instance [0.001, 0.999]"
        )


def check_alpha_bar(alpha_bar: Tensor) -> None:
    """Refuse a schedule that falls, stands still, or leaves (0, 1): its loss weights would be negative or infinite."""
    values = alpha_bar.double()
    if values.dim() != 1 or len(values) < 2:
        raise InputError(f"a schedule needs shape (blocks + 1,) with at least two values, got {tuple(values.shape)}")
    outside = (~((values > 0) & (values < 1))).nonzero()
    if len(outside):
        index = int(outside[0])
        raise InputError(
            f"every alpha_bar must lie strictly between 0 and 1, got alpha_bar_{index} = {float(values[index]):.6g}; "
            "clip the schedule, for instance to [0.001, 0.999]"
        )
    if not bool((values[1:] > values[:-1]).all()):
        raise InputError(
            f"alpha_bar must rise from block to block (noise to label), got {_first_fall(values)}; "
            "reverse the schedule if it falls, or use fewer blocks"
        )


def signal_to_noise(alpha_bar: Tensor) -> Tensor:
    """Return SNR = alpha_bar / (1 - alpha_bar), of the shape given."""
    return alpha_bar / (1 - alpha_bar)


def posterior_coefficients(start: Tensor | Levels, end: Tensor | Levels) -> PosteriorCoefficients:
    """Return a, b, c of the step from alpha_bar = `start` to `end`, for a network that predicts the label embedding.

    With `alpha = start / end`: `a = sqrt(end) (1 - alpha) / (1 - start)`, `b = sqrt(alpha) (1 - end) / (1 - start)`,
    `c = (1 - end) (1 - alpha) / (1 - start)`, so that `z_t = a u + b z_s + sqrt(c) eps` has the marginals
    `N(sqrt(alpha_bar_t) u, (1 - alpha_bar_t) I)` when the prediction u is perfect (Li et al. 2025, eqs. 3 and 6).

    >>> a, b, c = posterior_coefficients(torch.tensor(0.2), torch.tensor(0.6))
    >>> mean = a + b * 0.2**0.5            # a perfect prediction u = 1 keeps the mean on sqrt(0.6)
    >>> variance = b**2 * 0.8 + c
    >>> print(f"{mean:.4f} {0.6**0.5:.4f} {variance:.4f}")
    0.7746 0.7746 0.4000
    """
    start, end = Levels.of(start), Levels.of(end)
    alpha = start.signal / end.signal
    # of alpha_bar and of what it leaves, the smaller one is known better
    rise = torch.where(end.signal > 0.5, start.noise - end.noise, end.signal - start.signal) / end.signal
    return PosteriorCoefficients(
        prediction=end.signal.sqrt() * rise / start.noise,
        previous=alpha.sqrt() * end.noise / start.noise,
        variance=end.noise * rise / start.noise,
    )
