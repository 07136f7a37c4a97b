"""Mean and standard deviation of pixels, and whether two splits of a set can be in the same units."""

import math
from dataclasses import dataclass

import torch

from sidestep.data.rows import Stored, blocks

__all__ = ["Moments", "moments", "unlike_split"]

_FEWEST = 10  # images from which on the contrast of a split says something about its units
_RATIO = 3.0  # between the standard deviations: standardised pixels beside pixels from 0 to 1 differ by 3 to 4
_SHIFT = 0.9  # of the larger standard deviation, between the means: -1 to 1 beside 0 to 1, or black beside white


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each channel, in the units of the pixels (of pixel / 255 where they are uint8)."""

    mean: tuple[float, ...]
    variance: tuple[float, ...]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel; 1 where it does not change, so that nothing is divided by 0."""
        deviations = (math.sqrt(variance) for variance in self.variance)
        return tuple(
            std if std > 1e-6 * abs(centre) else 1.0 for centre, std in zip(self.mean, deviations, strict=True)
        )

    def overall(self) -> tuple[float, float]:
        """Mean and standard deviation over all channels together."""
        mean = sum(self.mean) / len(self.mean)
        squares = (variance + centre**2 for centre, variance in zip(self.mean, self.variance, strict=True))
        return mean, math.sqrt(max(0.0, sum(squares) / len(self.mean) - mean**2))


def moments(images: Stored) -> Moments:
    """Mean and variance in float64 of images (n, channels, height, width) or of columns (n, columns); exactly, where
    they are uint8. They are looked at in blocks of rows, never all at once.
    """
    return _of_bytes(images) if images.dtype == torch.uint8 else _of_floats(images)


def _of_bytes(images: Stored) -> Moments:
    channels = range(images.shape[1])
    counts = torch.zeros(len(channels), 256, dtype=torch.float64, device=images.device)
    for block in blocks(images):
        for channel in channels:
            counts[channel] += torch.bincount(block[:, channel].reshape(-1), minlength=256)
    values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    mean = [float((count * values).sum() / count.sum()) for count in counts]
    variance = [
        float((count * (values - centre) ** 2).sum() / count.sum()) for count, centre in zip(counts, mean, strict=True)
    ]
    return Moments(tuple(mean), tuple(variance))


def _of_floats(images: Stored) -> Moments:
    channels, count = range(images.shape[1]), len(images) * images.shape[2:].numel()
    mean, variance = [0.0] * len(channels), [0.0] * len(channels)
    for block in blocks(images):
        for channel in channels:
            mean[channel] += float(block[:, channel].reshape(-1).double().sum())
    mean = [total / count for total in mean]
    for block in blocks(images):
        for channel in channels:
            distances = block[:, channel].reshape(-1).double().sub_(mean[channel])
            variance[channel] += float(distances.square_().sum())
    return Moments(tuple(mean), tuple(total / count for total in variance))


def unlike_split(split: str, images: Stored, train: Moments) -> str | None:
    """Return a sentence for a split whose pixels can hardly be in the units of train's, else None.

    Splits of one set are alike, so means that lie .9 standard deviations apart, or standard deviations that differ by
    a factor of 3, are taken for other units. Of fewer than ten images, or of one colour, nothing can be said.
    """
    if len(images) < _FEWEST:
        return None
    unit = 255 if images.dtype == torch.uint8 else 1
    (mean, std), (train_mean, train_std) = moments(images).overall(), train.overall()
    if min(std, train_std) <= 1e-6 * max(abs(mean), abs(train_mean)):
        return None
    alike = train_std / _RATIO <= std <= train_std * _RATIO
    if alike and abs(mean - train_mean) <= _SHIFT * max(std, train_std):
        return None
    kind = "uint8, 0 to 255" if unit == 255 else "float32"
    return (
        f"the {split} pixels have a mean of {unit * mean:.3g} and a standard deviation of {unit * std:.3g}, those of "
        f"train {unit * train_mean:.3g} and {unit * train_std:.3g} ({kind}): are they in other units? Give all splits "
        "in the same units (0 to 255, or 0 to 1, or standardised by one mean), or accuracies on this one mean nothing"
    )
