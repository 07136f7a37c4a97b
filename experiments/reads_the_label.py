"""What does a block of NoProp-CT answer when z carries another class than the image shows?

A block that is right at every time on noised labels of the true class may have read the image, or z. So it is asked
about test images with z_t made of a class drawn among the others:

    z_t = sqrt(abar(t)) u_c + sqrt(1 - abar(t)) eps        c: the image's class, or another

and so is the one who sees z alone and takes the nearest embedding, argmin_c |z_t - sqrt(abar(t)) u_c|, which is the
best that can be done without the image where classes are equally likely.

    python -m experiments.reads_the_label runs/ct-0 [--images 2000] [--data-dir DIR]

Columns: time; `z of the class`, the block's accuracy on z of the image's own class; `z of another`: how often it then
still says the image's class, and how often the class in z; `z alone`: accuracy of the nearest embedding; `weight`, that
of the squared error there, SNR'(t) / 2.
"""

import argparse
import os
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from experiments.given import a_count
from sidestep import data, load_run
from sidestep.bench.report import Table
from sidestep.data.batches import standardise
from sidestep.errors import InputError
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.noprop.time_schedules import Schedule
from sidestep.noise import Noise
from sidestep.rules import NoPropCT

TIMES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
COLUMNS = ["time", "alpha bar", "z of the class", "z of another: image's", "z of another: z's", "z alone", "weight"]
BATCH = 500


def other_labels(labels: Tensor, classes: int, noise: Noise) -> Tensor:
    """Return for each label another one, drawn evenly among the others.

    >>> other_labels(torch.tensor([0, 1, 1]), 2, Noise(0)).tolist()
    [1, 0, 0]
    """
    return (labels + 1 + noise.integers(len(labels), classes - 1)) % classes


@torch.no_grad()
def shares(net: Denoiser, schedule: Schedule, images: Tensor, labels: Tensor, time: float, noise: Noise) -> list[float]:
    """Return the four shares at one time: see the columns."""
    classes, found = len(net.embedding), torch.zeros(4)
    level = schedule.levels(torch.tensor([time]))
    signal, rest = level.signal.sqrt(), level.noise.sqrt()
    for index, (part, mine) in enumerate(zip(images.split(BATCH), labels.split(BATCH), strict=True)):
        prepared = net.block.prepare(part)
        normal = noise.stream("normal").sub(index).normal(len(mine) * net.dimension).view(-1, net.dimension)
        others = other_labels(mine, classes, noise.stream("class").sub(index))
        own, other = (signal * net.embedding[of] + rest * normal for of in (mine, others))
        says = [net.block.outputs(prepared, z, torch.tensor([time])).argmax(1) for z in (own, other)]
        nearest = torch.cdist(own, signal * net.embedding).argmin(1)
        pairs = ((says[0], mine), (says[1], mine), (says[1], others), (nearest, mine))
        found += torch.tensor([float((answer == label).sum()) for answer, label in pairs])
    return [float(count) / len(labels) for count in found]


def table_of(folder: Path, images: int, data_dir: Path | None) -> Table:
    """Return the table of a run, by its first test images.

    Raises:
        InputError: for a run of another rule.
    """
    run = load_run(folder)
    if not isinstance(run.rule, NoPropCT) or not isinstance(run.net, Denoiser):
        raise InputError(f"{folder} is a run of {run.rule.name}; this asks blocks of noprop-ct")
    if run.result.get("data", "mnist") != "mnist":
        raise InputError(f"{folder} was trained on {run.result['data']}; this asks about images of MNIST")
    test = data.load("mnist", data_dir=data_dir).test.part(slice(0, images))
    inputs, schedule = standardise(test.images, run.task.mean, run.task.std), cast("Schedule", run.net.schedule)
    run.net.eval()
    lines = []
    for time in TIMES:
        found = shares(run.net, schedule, inputs, torch.as_tensor(test.labels), time, Noise(0).stream(f"time {time}"))
        with torch.no_grad():
            level, weight = schedule.alpha_bar(torch.tensor([time])), schedule.snr_slope(torch.tensor([time])) / 2
        lines.append([f"{time:g}", f"{float(level):.4f}", *(f"{share:.1%}" for share in found), f"{float(weight):.3g}"])
    return Table(f"{folder.name}: {len(test):,} test images", COLUMNS, lines)


def main() -> None:
    """Print the tables of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--images", type=a_count, default=2000)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("SIDESTEP_DATA"))
    given = parser.parse_args()
    for folder in given.runs:
        print(table_of(folder, given.images, given.data_dir).markdown(), end="\n\n")


if __name__ == "__main__":
    main()
