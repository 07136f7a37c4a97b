"""A small step log with blocks of every kind and coding, made of integers alone: for fuzz, and for the golden file."""

import torch

from sidestep.noise import Noise
from sidestep.probes import DenseProbes, RankOneProbes, SparseProbes
from sidestep.steplog import Header, LogWriter
from sidestep.update import Flips, Seeded

WEIGHTS = 110
GOLDEN = 26  # steps of the golden file, which was written before there were blocks of real numbers
SAMPLE = Header(
    {"name": "toy", "kind": "median"}, {"image_shape": [1, 2, 3]}, "nothing", 7, (("w", "int8", (10, 11)),),
    (("schedule", "float64", (2,)),), "00", sidestep="0",
)  # fmt: skip


def sample_update(step):
    """Equally many trits; then fewer and more, of other probes; then flips; then real numbers along dense probes."""
    noise = Noise(7).stream("sample").at(step)
    statistics = {"schedule": torch.tensor([step, 0.1], dtype=torch.float64)}
    if step < 12:
        kept = noise.stream("order").permutation(8) < 4
        trits = torch.where(kept, noise.stream("signs").signs(8), 0)
        return Seeded(trits, SparseProbes(noise, WEIGHTS, 8, 3 / 110), statistics)
    if step < 20:
        trits = noise.stream("trits").integers(8, 3) - 1
        rank = RankOneProbes(noise, ((10, 11),), 8)
        sparse = SparseProbes(noise, WEIGHTS, 8, 0.25, exclusive=step > 15)
        return Seeded(trits, rank if step == 14 else sparse, statistics)
    if step >= GOLDEN:
        number = noise.integers(3, 1 << 20).to(torch.float32) / 1024 - 512
        dense = DenseProbes(noise, (("w", (10, 11)),), 3, "gaussian" if step > 27 else "rademacher")
        return Seeded(number, dense, statistics, rate=1 / (step if step > 28 else 28))
    count = 2 * (step - 20)
    places = noise.stream("places").permutation(WEIGHTS)[:count].sort().values
    return Flips(places, noise.stream("moves").signs(count))


def write_sample(path, steps=32, commits=(4, 16, 22), first=0):
    """Write the log of steps 0 to `steps` - 1, cut into blocks also before the given steps."""
    log = LogWriter.create(path, SAMPLE)
    for step in range(first, steps):
        if step in commits:
            log.commit()
        log.append(sample_update(step))
    log.commit()
    log.close()
