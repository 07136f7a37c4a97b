"""Ways to train one MLP on MNIST with several workers.

noise-step      ternary weights; signs of the largest hundredth of the gradients of local losses
weight probes   ternary weights; one coefficient for each of 128 directions, forward passes alone
DDP             float weights; the mean gradient, each step
local SGD       float weights; the mean of all weights, now and then
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sidestep import data, rules
from sidestep.data.share import Share
from sidestep.data.task import Batch, Task
from sidestep.measure import update_bytes
from sidestep.noise import Noise
from sidestep.steplog.codecs.flips import encode_flips
from sidestep.training.exchange import PartSum
from sidestep.training.signs import Signs
from sidestep.update import Flips, Update
from sidestep.world.world import Alone, World

__all__ = ["BATCH", "DDP", "WAYS", "LocalSGD", "NoiseStep", "Way", "WeightProbes"]

BATCH = 128
HIDDEN = (256, 256)
LOCAL_STEPS = 16


@functools.cache
def _mnist(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    found = data.load(name)
    parts = {"train": found.train, "validation": found.validation}
    mean, std = found.mean[0], found.std[0]
    return {key: ((each.images.float() / 255 - mean) / std, each.labels) for key, each in parts.items()}


class Way:
    """Some workers of one run, all in this process, or one of them with a world: `step` does what they do in a step.

    part_seconds: what the estimate of one part took, in processor seconds, the last time.
    rest_seconds: what every worker does after the exchange.
    payload: bytes of one worker's message.
    log_bytes: of the step in a step log, where there is one.
    """

    name: str
    every = 1  # steps between exchanges
    rounds_of_sum = True  # whether the exchange sums, or gathers messages
    part_seconds = rest_seconds = 0.0
    payload = log_bytes = 0

    def __init__(  # long: what is trained on what, as one of how many
        self, source: str, workers: int, steps: int, world: World | None = None, batch: int = BATCH, seed: int = 0
    ) -> None:
        self.source, self.workers, self.steps, self.world, self.batch = source, workers, steps, world, batch
        self.noise = Noise(seed)

    @property
    def own(self) -> range:
        """The parts that this process estimates."""
        return range(self.workers) if self.world is None else range(self.world.rank, self.workers, self.world.size)

    def part(self, index: int, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of one part of a step's batch."""
        inputs, labels = _mnist(self.source)["train"]
        drawn = self.noise.stream("batches").at(step).integers(self.batch, len(labels))
        places = drawn.view(self.workers, -1)[index]
        return inputs[places], labels[places]

    def step(self, step: int) -> None:
        """Take one step."""
        raise NotImplementedError

    def right(self) -> float:
        """Return the share of validation images that are right."""
        inputs, labels = _mnist(self.source)["validation"]
        with torch.no_grad():
            return float((self.outputs(inputs).argmax(1) == labels).float().mean())

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the net."""
        raise NotImplementedError

    def timed(self, kind: str, run: Callable[[], Any], share: int = 1) -> Any:
        """Return what `run` does, and remember its processor time."""
        start = time.thread_time()
        found = run()
        setattr(self, kind, (time.thread_time() - start) / share)
        return found

    def decay(self, step: int) -> float:
        """Return the factor of a cosine schedule."""
        return 0.5 * (1 + math.cos(math.pi * step / self.steps))


class NoiseStep(Way):
    """Ternary weights: flips by local losses, of which each worker sends the signs of the largest hundredth."""

    name, rounds_of_sum = "noise-step", False
    rule, share = rules.NoiseStep(hidden=HIDDEN), 0.01

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        images = _mnist(self.source)["train"][0]
        task = Task(tuple(images.shape[1:]), tuple("0123456789"), (0.0,), (1.0,))
        self.net = self.rule.build(task, self.noise.stream("build"), None, None)
        self.optimizer, self.signs = self.rule.optimizer(self.net), Signs(self.share) if self.share else None
        self._first = [group["lr"] for group in self.optimizer.param_groups]
        self._noise = self.noise.stream("estimate")

    def step(self, step: int) -> None:
        """Estimate each part, exchange, flip."""
        total, noise = PartSum(self.signs), self._noise.at(step)
        for index in self.own:
            batch = Batch(*self.part(index, step), share=Share("batch", index, self.workers))
            drawn = noise if self.rule.common_noise else noise.stream(f"part {index}")
            update = self.timed("part_seconds", lambda b=batch, d=drawn: self.rule.estimate(self.net, b, d))
            total.add(update, index)
        self.payload = self._payload(total, update, index)
        found, _ = total.exchanged(self.world or Alone(), self.workers, 0)
        for group, first in zip(self.optimizer.param_groups, self._first, strict=True):
            group["lr"] = first * self.decay(step)

        def take() -> None:
            nonlocal found
            found = self.rule.decide(self.net, found, self.optimizer)
            self.rule.apply(self.net, found, self.optimizer)

        self.timed("rest_seconds", take)
        if not self.log_bytes:
            many = sum(parameter.numel() for parameter in self.net.parameters())
            self.log_bytes = len(encode_flips([found], many)) if isinstance(found, Flips) else update_bytes(found)

    def _payload(self, total: PartSum, update: Update, index: int) -> int:
        """Return the bytes of the message of a worker with one part, though all parts may be this process's."""
        if self.signs:  # one message follows another
            return len(total.message(Alone(), self.workers, 0)) // len(self.own)
        single = PartSum()  # coefficients of all parts are summed, and their sum is no longer than those of one
        single.add(update, index)
        return len(single.message(Alone(), self.workers, 0))

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the net."""
        return self.net(inputs)


class WeightProbes(NoiseStep):
    """Ternary weights: sums of the losses' slopes along 128 directions, which each worker sends for its examples."""

    name = "weight probes"
    rule, share = rules.NoiseStep(hidden=HIDDEN, estimator="weight-probes", probes=128), None


class DDP(Way):
    """Float weights, Adam, the mean of all gradients in float32 each step, as DistributedDataParallel sends it."""

    name = "DDP"

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.model = _mlp(math.prod(_mnist(self.source)["train"][0].shape[1:]), self.noise)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.payload = 4 * sum(parameter.numel() for parameter in self.model.parameters())

    def step(self, step: int) -> None:
        """Differentiate each part, sum, step."""
        total = None
        for index in self.own:
            flat = self.timed("part_seconds", lambda i=index: _gradient(self.model, *self.part(i, step)))
            total = flat if total is None else total + flat
        if self.world is not None and self.world.size > 1:
            total = self.world.summed(total)
        _put(self.model, total / self.workers)
        self.optimizer.param_groups[0]["lr"] = 1e-3 * self.decay(step)
        self.timed("rest_seconds", self.optimizer.step)

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the net."""
        return self.model(inputs)


class LocalSGD(Way):
    """Each worker takes steps of its own by Adam; every 16th, all take the mean of their weights."""

    name, every = "local SGD", LOCAL_STEPS

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        width = math.prod(_mnist(self.source)["train"][0].shape[1:])
        self.models = {index: _mlp(width, self.noise) for index in self.own}
        self.optimizers = {i: torch.optim.Adam(model.parameters(), lr=1e-3) for i, model in self.models.items()}
        self.payload = 4 * sum(parameter.numel() for parameter in self.models[self.own[0]].parameters())

    def step(self, step: int) -> None:
        """Take a step of each worker, and now and then the mean of all."""
        for index, model in self.models.items():
            flat = self.timed("part_seconds", lambda i=index, m=model: _gradient(m, *self.part(i, step)))
            _put(model, flat)
            self.optimizers[index].param_groups[0]["lr"] = 1e-3 * self.decay(step)
            self.timed("rest_seconds", self.optimizers[index].step)
        if (step + 1) % self.every:
            return
        with torch.no_grad():
            total = torch.stack([nn.utils.parameters_to_vector(m.parameters()) for m in self.models.values()]).sum(0)
            if self.world is not None and self.world.size > 1:
                total = self.world.summed(total)
            for model in self.models.values():
                nn.utils.vector_to_parameters(total / self.workers, model.parameters())

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the first worker's net."""
        return self.models[self.own[0]](inputs)


WAYS: dict[str, type[Way]] = {way.name: way for way in (NoiseStep, WeightProbes, DDP, LocalSGD)}


def _mlp(width: int, noise: Noise) -> nn.Module:
    with noise.stream("mlp").torch_seeded():
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip((width, *HIDDEN), HIDDEN, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 10))


def _gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    model.zero_grad(set_to_none=True)
    cross_entropy(model(inputs), labels).backward()
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])


def _put(model: nn.Module, flat: Tensor) -> None:
    parts = flat.split([parameter.numel() for parameter in model.parameters()])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.grad = part.view(parameter.shape)
