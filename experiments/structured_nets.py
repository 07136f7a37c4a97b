"""Nets and training of `experiments.structured_targets`: NoProp's blocks, and plain nets of the same cost."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.structured_tasks import CLASSES, StructuredTask
from sidestep.nets.noprop.blocks import Block
from sidestep.nets.noprop.readouts import PointReadout
from sidestep.nets.noprop.schedules import cosine_alpha_bar, readable_alpha_bar
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.nets.noprop.stack_readings import ddim_chain
from sidestep.noise import Noise
from sidestep.rules import Batch, NoPropDT

__all__ = ["BLOCKS", "RULE", "SmallBlock", "energy_loss", "joint_targets", "make_net", "outputs_of", "train_net"]

BLOCKS, WIDTH, NARROW, BATCH, STEPS, WARMUP = 5, 128, 16, 100, 700, 50
NOISE_INPUTS = 16
RULE = NoPropDT(blocks=BLOCKS, loss="cross-entropy", readout="nearest")  # of values: the squared error


class SmallBlock(Block):
    """Outputs from rows of pixels and a noisy target: a dense layer for each, then three for both.

    Args:
        values: number of pixels.
        dimension: d, the length of z and of the outputs.
        narrow: whether it sees the pixels through 16 numbers alone, linear in them.
    """

    def __init__(self, values: int, dimension: int, narrow: bool) -> None:
        nn.Module.__init__(self)  # none of the library's parts, which are ten times as large
        self.image, seen = _path(values, NARROW if narrow else 0)
        self.latent = nn.Sequential(nn.Linear(dimension, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
        self.fuse = nn.Sequential(*_dense(seen + WIDTH, WIDTH), *_dense(WIDTH, WIDTH), nn.Linear(WIDTH, dimension))


def _dense(inputs: int, width: int) -> list[nn.Module]:
    return [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]


def _path(values: int, narrow: int) -> tuple[nn.Module, int]:
    """Return what pixels go through first, and how many numbers it gives."""
    if narrow:
        return nn.Linear(values, narrow), narrow
    return nn.Sequential(*_dense(values, WIDTH)), WIDTH


def _plain(values: int, outputs: int, narrow: bool, cost: int) -> nn.Module:
    """Return four dense layers, of the width at which they have as many weights as all blocks."""
    first = [nn.Linear(values, BLOCKS * NARROW)] if narrow else []
    values = BLOCKS * NARROW if narrow else values
    left = cost - sum(layer.weight.numel() for layer in first)
    ends = values + outputs  # 2 w^2 + (values + outputs) w = left
    width = round((math.sqrt(ends**2 + 8 * left) - ends) / 4)
    return nn.Sequential(
        *first, *_dense(values, width), *_dense(width, width), *_dense(width, width), nn.Linear(width, outputs)
    )


def make_net(way: str, task: StructuredTask, narrow: bool, noise: Noise) -> nn.Module:
    """Return the net of a way, with weights drawn from `noise`."""
    values, outputs = task.train.inputs.shape[1], task.outputs
    with noise.torch_seeded():
        blocks = [SmallBlock(values, outputs, narrow) for _ in range(BLOCKS)]
        cost = sum(module.weight.numel() for module in nn.ModuleList(blocks).modules() if isinstance(module, nn.Linear))
        if way.startswith("plain"):
            return _plain(values, outputs, narrow, cost)
        if way == "joint":
            return _plain(values, CLASSES ** (outputs // CLASSES), narrow, cost)
        if way == "energy":
            return _plain(values + NOISE_INPUTS, outputs, narrow, cost)
        levels = readable_alpha_bar(BLOCKS, CLASSES) if task.name != "in-painting" else cosine_alpha_bar(BLOCKS)
        if way == "blind":  # z is noise at all times
            levels = torch.linspace(1e-6, 2e-6, BLOCKS + 1, dtype=torch.float64)
        readout = PointReadout(1.0)
        return DenoisingStack(blocks, (values,), torch.eye(outputs), levels, readout, together=False, space=task.space)


def joint_targets(targets: Tensor) -> Tensor:
    """Return strings as one number each, (n, places) -> (n,)."""
    return (targets * CLASSES ** torch.arange(targets.shape[1])).sum(dim=1)


def energy_loss(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    """Return the energy score of two draws, `(|a - y| + |b - y| - |a - b|) / 2`, batch mean: least for the truth."""
    far = (first - targets).norm(dim=1) + (second - targets).norm(dim=1)
    return (far - (first - second).norm(dim=1)).mean() / 2


def outputs_of(net: nn.Module, inputs: Tensor, normal: Tensor) -> Tensor:
    """Return a draw of a net that has a noise input, from standard normal numbers (n, 16)."""
    found: Tensor = net(torch.cat([inputs, normal], dim=1))
    return found


def _loss(way: str, net: nn.Module, batch: Batch, noise: Noise) -> Tensor:
    """Return the loss of a net that is trained end to end."""
    if way == "joint":
        return F.cross_entropy(net(batch.inputs), joint_targets(batch.targets))
    if way == "energy":
        count = len(batch.inputs)
        drawn = noise.normal(2 * count * NOISE_INPUTS).view(2, count, NOISE_INPUTS)
        both = outputs_of(net, batch.inputs.repeat(2, 1), drawn.flatten(0, 1))
        return energy_loss(both[:count], both[count:], batch.targets)
    if way == "blocks end to end":
        assert isinstance(net, DenoisingStack)  # for the type checker
        return batch.objective.mean(ddim_chain(net, net.image_features(batch.inputs)).logits[-1], batch.targets)
    return batch.objective.mean(net(batch.inputs), batch.targets)


def train_net(way: str, task: StructuredTask, narrow: bool, rate: float, seed: int, steps: int = STEPS) -> nn.Module:
    """Train one net: AdamW, decay 1e-3, 50 steps of warm-up, then half a cosine."""
    noise, steps = Noise(seed), 2 * steps if way == "plain twice" else steps
    net: Any = make_net(way, task, narrow, noise.stream("weights"))
    local = way in ("chain", "blind")
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-3)
    order, factor = noise.stream("order"), _schedule(steps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(step)
        rows = order.at(step).integers(BATCH, len(task.train.inputs))
        batch = Batch(task.train.inputs[rows], task.train.targets[rows], task.space.objective)
        if local:
            RULE.apply(net, RULE.estimate(net, batch, noise.stream("estimate").at(step)), optimizer)
            continue
        net.train()
        optimizer.zero_grad()
        _loss(way, net, batch, noise.stream("draws").at(step)).backward()
        optimizer.step()
    return net.eval()


def _schedule(steps: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        return min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))

    return factor
