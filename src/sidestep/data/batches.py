"""From a whole set on the device to one step's batch: order, standardisation, random crop and flip."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sidestep.errors import InputError
from sidestep.noise import Noise, permutations

__all__ = ["BatchOrder", "batch_indices", "chosen_rows", "crop_and_flip", "standardise", "steps_per_epoch"]

_FEW, _AHEAD = 1 << 13, 8  # examples, up to which the orders of so many epochs are drawn at once
_PARTS = 1 << 14  # batches that are cut at once: each takes half a kilobyte


def standardise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (n, channels, height, width), or features (n, columns), with mean 0 and variance 1 over the train split.

        out = (x - mean) / std        x = images / 255 for uint8, images otherwise; out in float32

    Raises InputError unless there is one mean and one std for each channel.

    >>> white = torch.full((1, 1, 1, 2), 255, dtype=torch.uint8)
    >>> standardise(white, mean=[0.5], std=[0.25]).round(decimals=4).tolist()
    [[[[2.0, 2.0]]]]
    """
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"standardise needs one mean and one std for each of {channels} channels, "
            f"got {len(mean)} and {len(std)}; take both from the data set that was trained on"
        )
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), unit, images.device, images.ndim)
    return torch.addcmul(shift, images.to(torch.float32), scale)


@lru_cache(maxsize=8)  # of the data in use: a step of a small net would feel them made anew; nothing writes to them
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], unit: float, device: torch.device, dimensions: int
) -> tuple[Tensor, Tensor]:
    """What an input is multiplied by, and what is added, (1, channels, 1, ...) each."""
    factors = [[1.0 / (unit * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]]
    with torch.inference_mode(False):  # or derivatives by the inputs could not keep it
        both = torch.tensor(factors, dtype=torch.float32, device=device)
        scale, shift = both.view(2, 1, len(mean), *[1] * (dimensions - 2))
    return scale, shift


def steps_per_epoch(examples: int, batch: int) -> int:
    """Full batches in one pass: max(1, examples // batch); the remainder of an epoch is left out.

    Raises InputError unless both are at least 1.
    """
    if examples < 1 or batch < 1:
        raise InputError(f"an epoch needs examples and a batch of at least 1, got {examples} and {batch}")
    return max(1, examples // batch)


def batch_indices(noise: Noise, step: int, examples: int, batch: int) -> Tensor:
    """The examples of step `step`, counted from 0 over all epochs: (min(batch, examples),) int64, none twice
    an epoch.

        epoch, place = divmod(step, steps_per_epoch)
        indices = permutation(epoch)[place batch : (place + 1) batch]

    A function of its arguments alone: one Philox permutation per epoch, kept while the epoch lasts.

    >>> [batch_indices(Noise(0), step, examples=6, batch=2).tolist() for step in range(3)]
    [[5, 0], [1, 3], [2, 4]]
    """
    if step < 0:
        raise InputError(f"step must be at least 0, got {step}")
    return _kept_order(noise, examples, batch).rows(step).clone()


class BatchOrder:
    """Which examples the steps of a run take, as `batch_indices` says; the order of an epoch is kept while it lasts.

    Args:
        noise: of the order.
        examples: how many there are.
        batch: of a step.
        device: where the numbers are to lie.
    """

    def __init__(self, noise: Noise, examples: int, batch: int, device: str | torch.device = "cpu") -> None:
        self._noise, self._examples, self._batch, self._device = noise, examples, batch, device
        self._steps, self._epoch = steps_per_epoch(examples, batch), -1
        self._parts: tuple[Tensor, ...] = ()
        self._drawn: dict[int, Tensor] = {}

    def rows(self, step: int) -> Tensor:
        """Return the examples of a step, (batch,) int64; not to be written to."""
        epoch, place = divmod(step, self._steps)
        if epoch != self._epoch:
            order = self._order(epoch).to(self._device)
            self._parts, self._epoch = order.split(self._batch) if self._steps <= _PARTS else (order,), epoch
        if self._steps <= _PARTS:
            return self._parts[place]
        return self._parts[0][place * self._batch : (place + 1) * self._batch]

    def _order(self, epoch: int) -> Tensor:
        noise = self._noise.stream("epoch order")
        if self._examples > _FEW or epoch + _AHEAD > 1 << 32:  # the steps of noise end there
            return noise.at(epoch).permutation(self._examples)
        if epoch not in self._drawn:  # several epochs at once: a short epoch feels what one draw costs
            epochs = range(epoch, epoch + _AHEAD)
            drawn = permutations([noise.at(each) for each in epochs], self._examples)
            self._drawn = dict(zip(epochs, drawn, strict=True))
        return self._drawn[epoch]


@lru_cache(maxsize=4)  # a clone leaves here, so what is kept never changes
def _kept_order(noise: Noise, examples: int, batch: int) -> BatchOrder:
    return BatchOrder(noise, examples, batch)


def crop_and_flip(images: Tensor, noise: Noise, padding: int = 4, flip: bool = True, edge: bool = False) -> Tensor:
    """Each image moved by up to `padding` pixels on zeros and, with probability 1/2, mirrored left to right.

    With `edge`, what is moved in repeats the image's outermost pixels in place of zeros.

        out[i] = F_i(zero-padded images[i][:, y_i : y_i + height, x_i : x_i + width])
        y_i, x_i uniform in 0..2 padding, F_i the mirror or nothing

    Shape, dtype and device stay those of `images` (n, channels, height, width). Three words of `noise` per
    image decide, so give it the step: noise.at(step). Raises InputError if padding is negative.
    """
    if padding < 0:
        raise InputError(f"padding must be at least 0 pixels, got {padding}")
    count, _, height, width = images.shape
    words = noise.stream("crop and flip").words(3 * count, device=images.device).view(count, 3)
    if padding:
        places = 2 * padding + 1
        top, left = ((words[:, axis] * places) >> 32 for axis in (0, 1))  # both (n,), in 0 .. 2 padding
        windows = (
            pad(images, (padding,) * 4, mode="replicate" if edge else "constant")
            .unfold(2, height, 1)
            .unfold(3, width, 1)
        )
        images = windows[torch.arange(count, device=images.device), :, top, left]
    if flip:
        mirrored = (words[:, 2] >> 31).bool()
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def chosen_rows(table: Any, rows: Tensor) -> Any:
    """Return some rows of a tensor, each copied whole, where an index goes element by element; or of a file."""
    return table.index_select(0, rows) if isinstance(table, Tensor) else table[rows]
