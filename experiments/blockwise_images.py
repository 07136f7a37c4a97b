"""Small pictures from noise, by groups that each denoise a range of levels: the Frechet distance to real ones.

    python -m experiments.blockwise_images --rows runs/images.jsonl [--most 3]

Digits of MNIST, halved to 14 x 14, drawn by class. Nets are residual blocks of dense layers, and a net's outputs F give
the estimate as Karras et al. (2022) have it for data of variance 1:

    uhat = sqrt(abar) z + sqrt(1 - abar) F        loss: |F - (u - sqrt(abar) z) / sqrt(1 - abar)|^2

Levels: ranges of equal mass of their noise. Sampling: 30 deterministic steps
from noise, evenly spaced in the log of the signal-to-noise ratio, each by the group whose range the step begins in.

    blockwise, B = 3   three groups of two blocks, each trained alone at levels of its own range
    end to end         one net of all six blocks, trained at the levels of all ranges, one for each picture of a step
    ..., three levels  the same with a level of each range for each picture, as the groups have: three times the cost
    two blocks         one net as deep as a group, trained so: what a group costs to sample by

Distance: of means and covariances of 128 features (Heusel et al. 2017) of a classifier of ours, trained on the same
pictures, and not of Inception's; so only rows of this file compare. 5,000 pictures each, against the test split; `real`
has 5,000 training pictures. Every way gets the same search of five rates at seed 100 against validation pictures, but
for three levels, which have the rate of one.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.given import a_count
from experiments.kept_rows import Row, keep_row, kept_rows, row_key
from experiments.structured_tasks import CLASSES, SIDE, halved, recogniser
from sidestep import data
from sidestep.nets.groups.chains import DenseBlock
from sidestep.nets.groups.cut import Parts
from sidestep.nets.groups.group import Group
from sidestep.nets.groups.levels import draw_levels, level_bounds
from sidestep.nets.noprop.samplers import ddim_step
from sidestep.nets.noprop.schedules import Levels
from sidestep.noise import Noise

__all__ = ["WAYS", "Denoisers", "chosen_rate", "frechet_distance", "generated", "trained_groups"]

WIDTH, BATCH, STEPS, WALK, MADE = 160, 100, 900, 30, 5_000
RATES, SEARCH_SEED, SEEDS, OVERLAP = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), 100, (0, 1, 2), 0.1
THREE = "end to end, three levels"
WAYS = {"blockwise, B = 3": (3, 6), "end to end": (1, 6), THREE: (1, 6), "two blocks": (1, 2)}  # groups and blocks
KEY = ("way", "rate", "seed", "kind")
PIXELS = SIDE * SIDE


class Denoisers(nn.Module):
    """Groups of residual blocks, each with its range of levels; one group has all ranges."""

    def __init__(self, groups: int, blocks: int) -> None:
        super().__init__()
        example = torch.zeros(2, CLASSES)
        made = []
        for _ in range(groups):
            inner: list[nn.Module] = [DenseBlock(WIDTH) for _ in range(blocks // groups)]
            parts = Parts(nn.Linear(CLASSES, WIDTH), inner, nn.LayerNorm(WIDTH))
            made.append(Group(parts, example, PIXELS, PIXELS, 1.0, places=False))
        self.groups, self.bounds = nn.ModuleList(made), level_bounds("normal", 3, 2, 1e-3, 0.999)

    def group(self, level: float) -> Any:
        """Return the group for a level."""
        if len(self.groups) == 1:
            return self.groups[0]
        return self.groups[int((self.bounds[1:-1] <= level).sum())]

    def raw(self, group: Any, classes: Tensor, latent: Tensor, level: Tensor) -> Tensor:
        """Return F, (n, pixels)."""
        found: Tensor = group.outputs(group.features(F.one_hot(classes, CLASSES).float()), latent, level)
        return found


def trained_groups(way: str, pictures: Tensor, classes: Tensor, rate: float, seed: int) -> Denoisers:
    """Train groups, each on its own loss; AdamW, half a cosine."""
    groups, blocks = WAYS[way]
    noise = Noise(seed)
    with noise.stream("weights").torch_seeded():
        net = Denoisers(groups, blocks)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        rows = noise.stream("order").at(step).integers(BATCH, len(classes))
        clean, wanted, generator = pictures[rows], classes[rows], noise.stream("levels").at(step).generator()
        drawn = [draw_levels(net.bounds, index, OVERLAP, BATCH, generator) for index in range(3)]
        if groups == 1 and way != THREE:  # each picture at a level of one of the ranges
            which = noise.stream("ranges").at(step).integers(BATCH, 3)
            drawn = [torch.stack(drawn).gather(0, which[None])[0]]
        optimizer.zero_grad()
        for index, level in enumerate(drawn):
            share = torch.sigmoid(level)[:, None]
            eps = noise.stream("noise").sub(index).at(step).normal(clean.numel()).view_as(clean)
            latent = share.sqrt() * clean + (1 - share).sqrt() * eps
            found = net.raw(net.groups[index % groups], wanted, latent, level)
            (found - (clean - share.sqrt() * latent) / (1 - share).sqrt()).square().mean().backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def generated(net: Denoisers, classes: Tensor, noise: Noise) -> Tensor:
    """Return pictures of classes, (n, pixels), by the deterministic walk from noise."""
    grid = torch.linspace(float(net.bounds[0]), float(net.bounds[-1]), WALK + 1)
    levels, latent = Levels.at(-grid), noise.normal(len(classes) * PIXELS).view(-1, PIXELS)
    for step in range(WALK):
        level = grid[step : step + 1]
        before, after = levels[step], levels[step + 1]
        raw = net.raw(net.group(float(level)), classes, latent, level)
        estimate = before.signal.sqrt() * latent + before.noise.sqrt() * raw
        latent = ddim_step(latent, estimate, before, after)
    return latent


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Return `|m - n|^2 + tr(A + B - 2 (A B)^(1/2))` of means m, n and covariances A, B of features, (n, features).

    The trace of the root by the eigenvalues of `A^(1/2) B A^(1/2)`, which is symmetric.

    >>> around = torch.tensor([[-1.0], [1.0]])
    >>> round(frechet_distance(around, around + 3), 4)
    9.0
    """
    one, other = one.double(), other.double()
    first, second = one.T.cov().view(one.shape[1], -1), other.T.cov().view(one.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    far = (one.mean(dim=0) - other.mean(dim=0)).square().sum()
    return float(far + first.trace() + second.trace() - 2 * mixed)


def chosen_rate(rows: list[Row], way: str, least: int = len(RATES)) -> float | None:
    """Return the rate that validation takes for a way, or None before so many have been tried."""
    source = "end to end" if way == THREE else way
    tried = [row for row in rows if row["way"] == source and row["kind"] == "search"]
    return min(tried, key=lambda row: row["distance"])["rate"] if len(tried) >= least else None


def main() -> None:  # long: what all rows share, and then the rows
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--most", type=a_count, default=1000, help="rows to run before it stops")
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded = data.load("mnist", validation=0.0)
    images, labels = halved(loaded.train, 60_000)
    centre, unit = images.mean(), images.std()
    pictures = ((images - centre) / unit).flatten(1)
    real = ((halved(loaded.test, 10_000)[0] - centre) / unit).flatten(1)
    train, known, held = pictures[:50_000], labels[:50_000], pictures[50_000:]
    judge = recogniser(train, known)[:-1]
    parts = {"search": held, "run": real[:MADE]}

    def distance(made: Tensor, kind: str) -> float:
        with torch.no_grad():
            return round(frechet_distance(judge(made), judge(parts[kind])), 3)

    for _ in range(given.most):
        rows = kept_rows(given.rows)
        wanted = [{"way": "real", "rate": 0.0, "seed": 0, "kind": "run"}]
        for way in WAYS:
            source = "end to end" if way == THREE else way
            wanted += [{"way": source, "rate": rate, "seed": SEARCH_SEED, "kind": "search"} for rate in RATES]
            rate = chosen_rate(rows, way)
            if rate is not None:
                wanted += [{"way": way, "rate": rate, "seed": seed, "kind": "run"} for seed in SEEDS]
        done = {row_key(row, KEY) for row in rows}
        row: Row | None = next((each for each in wanted if row_key(each, KEY) not in done), None)
        if row is None:
            break
        if row["way"] == "real":
            keep_row(given.rows, row | {"distance": distance(train[:MADE], "run")})
            continue
        started = time.process_time()
        net = trained_groups(row["way"], train, known, row["rate"], row["seed"])
        seconds, chance = time.process_time() - started, Noise(row["seed"]).stream("made")
        classes = known[chance.stream("classes").integers(MADE, len(known))]
        found = distance(generated(net, classes, chance), row["kind"])
        keep_row(given.rows, row | {"steps": STEPS, "seconds": round(seconds, 1), "distance": found})


if __name__ == "__main__":
    main()
