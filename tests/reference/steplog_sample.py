"""A small step log with blocks of both kinds and every coding, made of integers alone: the golden file, and fuzz."""

import torch

from sidestep.noise import Noise
from sidestep.probes import RankOneProbes, SparseProbes
from sidestep.steplog import Header, LogWriter
from sidestep.update import Flips, Seeded

WEIGHTS = 110
SAMPLE = Header(
    {"name": "toy", "kind": "median"}, {"image_shape": [1, 2, 3]}, "nothing", 7, (("w", "int8", (10, 11)),),
    (("schedule", "float64", (2,)),), "00", sidestep="0",
)  # fmt: skip


def sample_update(step):
    """Equally many trits; then fewer and more, of other probes; then flips."""
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
    count = 2 * (step - 20)
    places = noise.stream("places").permutation(WEIGHTS)[:count].sort().values
    return Flips(places, noise.stream("moves").signs(count))


def write_sample(path, steps=26, commits=(4, 16, 22), first=0):
    """Write the log of steps 0 to `steps` - 1, cut into blocks also before the given steps."""
    log = LogWriter.create(path, SAMPLE)
    for step in range(first, steps):
        if step in commits:
            log.commit()
        log.append(sample_update(step))
    log.commit()
    log.close()
