"""What trits and real numbers have in common: one number per probe that is drawn from the run's noise."""

import numpy as np
import torch

from sidestep.probes import DenseProbes, Probes, RankOneProbes, SparseProbes
from sidestep.steplog.codecs.codec import Codec, Counts
from sidestep.steplog.format import MOST_COEFS, MOST_WORK
from sidestep.steplog.header import Header
from sidestep.update import Seeded

__all__ = ["SeededCodec", "work_of"]


class SeededCodec(Codec[Seeded]):
    """A codec of one number per probe."""

    most = MOST_COEFS
    dtype: torch.dtype  # of the numbers that a log keeps

    def is_logged(self, update: Seeded, header: Header, step: int) -> bool:
        """Say whether replay can draw the update's probes, of this step, and in bounded time."""
        probes, noise = update.probes, update.probes.noise
        placed = (noise.seed, noise.substream, noise.step, probes.weights) == (header.seed, 0, step, header.weights)
        some = 1 <= update.coefs.numel() <= MOST_COEFS and update.coefs.shape == (probes.count,)
        return placed and some and work_of(probes) <= MOST_WORK

    def numbers(self, update: Seeded) -> int:
        """Return the number of coefficients."""
        return update.coefs.numel()

    def kept(self, update: Seeded) -> Seeded:
        """Return coefficients, probes and learning rate."""
        return Seeded(update.coefs.detach().to("cpu", self.dtype, copy=True), update.probes, rate=update.rate)

    def counts(self, update: Seeded, weights: int) -> Counts:
        """Return the numbers of probes and of coefficients that are not zero."""
        return Counts(probes=update.coefs.numel(), non_zero=int(np.count_nonzero(update.coefs.numpy())))


def work_of(probes: Probes | DenseProbes) -> float:
    """Return about how many elements replay draws for a step: of sparse probes the expected non-zeros, of rank-one
    ones rows and columns, of dense ones all.

    >>> from sidestep.noise import Noise
    >>> work_of(SparseProbes(Noise(0), weights=10_000_000, count=1024, density=0.1))
    1024000000.0
    """
    if isinstance(probes, SparseProbes):
        return probes.count * max(1.0, probes.density * probes.weights)
    if isinstance(probes, RankOneProbes):
        return float(probes.count * sum(rows + columns for rows, columns in probes.shapes))
    return float(probes.count * probes.weights)
