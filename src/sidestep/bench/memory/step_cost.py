"""What training steps cost, memory and seconds: steps of the loop on random images, in a process of its own."""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from sidestep.data import DataSet, Split
from sidestep.errors import SidestepError
from sidestep.measure import memory_growth
from sidestep.noise import Noise
from sidestep.rules import Rule
from sidestep.training import Compute, Options
from sidestep.training.begin import begin
from sidestep.training.loop import Loop
from sidestep.training.state import State
from sidestep.training.unit_modes import check_units

__all__ = ["Cost", "Work", "in_fresh_process", "started", "step_cost", "warm_up"]

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """Training steps that are to be measured."""

    rule: Rule
    image_shape: tuple[int, int, int]  # channels, height, width
    classes: int
    batch: int
    units: str = "together"
    device: str = "cpu"
    precision: str = "float32"
    average: float = 0.0  # decay of a moving average of the weights, which takes memory of its own


class Cost(NamedTuple):
    """What a few steps cost."""

    bytes: int  # the most memory in use over that before the net was made, see `memory_growth`
    seconds: float  # of a step, median without the first
    gradients: int = 0  # bytes of those of all weights


def started(work: Work) -> tuple[Loop, State]:
    """Return the training loop, on as many random images as a batch has, and its state before the first step."""
    channels, classes = work.image_shape[0], tuple(str(index) for index in range(work.classes))
    noise, pixels = Noise(0).stream("images"), work.batch * math.prod(work.image_shape)
    images = noise.integers(pixels, 256).to(torch.uint8).view(work.batch, *work.image_shape)
    train = Split(images, torch.arange(work.batch) % work.classes)  # prototypes need an image of every class
    none = Split(images[:0], train.labels[:0])
    data = DataSet("random images", train, none, classes, (0.5,) * channels, (0.29,) * channels)
    compute: Any = {"device": work.device, "precision": work.precision, "units": work.units, "average": work.average}
    state, loop = begin(work.rule, data, Options(batch=work.batch, epochs=1, **compute))
    return loop, state


def step_cost(work: Work, steps: int = 3) -> Cost:
    """Make the net, take a first step and then `steps` more, and return what that cost; for a process of its own.

    The memory is that of weights, optimiser, gradients, activations and a batch of images, and on a CPU of all that the
    operations and the allocator take beside them.
    """
    compute = Compute.find(work.device, work.precision)
    check_units(work.rule, work.units, compute.device)
    warm_up(compute)
    seconds = []
    with memory_growth(compute.device) as growth:
        loop, state = started(work)
        for _ in range(1 + steps):
            before = time.perf_counter()
            loop.take_step(state)
            seconds.append(time.perf_counter() - before)  # a step reads its loss, so it waits for a GPU
        if state.files:
            state.files.close()
    trained = [weights for weights in state.net.parameters() if weights.requires_grad]
    gradients = sum(weights.numel() * weights.element_size() for weights in trained)
    return Cost(growth.bytes, statistics.median(seconds[1:]), gradients)


def warm_up(compute: Compute) -> None:
    """Train a tiny net, so that the libraries which that needs are in memory already."""
    with Noise(0).torch_seeded():
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))
    net = net.to(compute.device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    with compute.autocast():
        loss = net(torch.ones(16, 3, 8, 8, device=compute.device)).float().square().mean()
    loss.backward()
    optimizer.step()


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> tuple[T | None, str | None]:
    """Return what a function returns in a process of its own, or None and why it failed there.

    Args:
        function: of a module, so that the other process finds it.
        arguments: of the function.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result(), None
    except BrokenProcessPool:
        return None, "the process was killed, for instance for lack of memory"
    except (SidestepError, MemoryError, RuntimeError) as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
