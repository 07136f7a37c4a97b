"""How sure a difference is of two rows whose runs have answered the same images, seed by seed.

Two things vary: which seed was trained, and which images were asked. The bootstrap draws both again: seeds in pairs,
and images, the same ones for all seeds of a draw. McNemar's test takes one pair of runs, and images alone.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sidestep.bench.comparison.paired import mcnemar
from sidestep.errors import InputError
from sidestep.noise import Noise

__all__ = ["Difference", "difference"]

_DRAWS = 2000
_AT_ONCE = 200


@dataclass(frozen=True)
class Difference:
    """Row less baseline, in shares of the images."""

    mean: float
    low: float  # 95% interval over seeds and images
    high: float
    p: float  # mid-p of McNemar's test, the median over pairs of runs

    @property
    def level(self) -> bool:
        """Whether the interval holds no difference."""
        return self.low <= 0 <= self.high


def difference(baseline: Sequence[Tensor], row: Sequence[Tensor]) -> Difference:
    """Compare two rows by which images their runs have right; one tensor (images,) bool a seed, the same seeds.

    Raises:
        InputError: for other numbers of seeds or images, or none.
    """
    if len(baseline) != len(row) or not row or len({len(each) for each in (*baseline, *row)}) != 1 or not len(row[0]):
        raise InputError("two rows are compared seed by seed on the same images; the numbers of these differ")
    first, second = torch.stack(list(baseline)), torch.stack(list(row))
    changes = second.float() - first.float()  # (seeds, images)
    seeds, images = changes.shape
    of_images = torch.cat([part.float() @ changes.T for part in _weights(images).split(_AT_ONCE)]) / images
    chosen = Noise(0).stream("suite: seeds").integers(_DRAWS * seeds, seeds).view(_DRAWS, seeds)
    drawn = of_images.gather(1, chosen).mean(1).double()
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    gained, lost = (second & ~first).sum(1).tolist(), (first & ~second).sum(1).tolist()
    p = statistics.median(mcnemar(b, c)[1] for b, c in zip(lost, gained, strict=True))
    return Difference(float(changes.double().mean()), low, high, p)


@lru_cache(maxsize=2)
def _weights(images: int) -> Tensor:
    """Return how often each image is drawn, (draws, images); the same at every call."""
    noise, found = Noise(0).stream("suite: images"), []
    for start in range(0, _DRAWS, _AT_ONCE):
        drawn = noise.integers(_AT_ONCE * images, images, start * images).view(_AT_ONCE, images)
        rows = torch.arange(_AT_ONCE)[:, None] * images
        counts = torch.bincount((drawn + rows).flatten(), minlength=_AT_ONCE * images)
        found.append(counts.view(_AT_ONCE, images).to(torch.int16))
    return torch.cat(found)
