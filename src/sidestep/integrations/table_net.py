"""A net of any rule on rows of numbers, trained further as often as asked, and predicting in double precision."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sidestep.data import DataSet, Split
from sidestep.data.images.pixel_scale import moments
from sidestep.data.objective import CLASSES, VALUES, Objective
from sidestep.data.tables.columns import data_set, feature_tensor
from sidestep.errors import InputError, NonFiniteError
from sidestep.noise import Noise
from sidestep.rules import Rule, Task
from sidestep.rules.protocol import HasBatchMultiple
from sidestep.rules.untrained import untrained
from sidestep.training.begin import begin
from sidestep.training.loop import Loop
from sidestep.training.observers import Observers
from sidestep.training.options import Compute, Options
from sidestep.training.single import check_single
from sidestep.training.state import State
from sidestep.training.stopping import Stopped, stop_on_signals

__all__ = ["Rows", "TableNet"]

_BATCH = 1000  # rows that are predicted together
_FEWEST_STEPS = 8  # an epoch, where the batch is left to us: small tables take small batches
_SMALLEST, _LARGEST = 16, 128


@dataclass(frozen=True)
class Rows:
    """Train rows: features and targets, and how much each row counts.

    features: (n, columns), about 0 in mean and 1 in deviation.
    targets: classes (n,) from 0, or values (n, columns).
    outputs: how many the net gives: classes, or columns of values.
    weights: (n,), mean 1; None: all alike.
    """

    features: NDArray[np.float64]
    targets: NDArray[Any]
    outputs: int
    weights: NDArray[np.float64] | None = None

    @property
    def kind(self) -> str:
        """Of the targets: classes or values."""
        return "classes" if self.targets.ndim == 1 else "values"

    def in_order(self) -> "Rows":
        """Return the rows in an order that depends on them alone, so that a fit does not depend on how they came."""
        columns = [self.features, self.targets.reshape(len(self.targets), -1)]
        columns += [] if self.weights is None else [self.weights[:, None]]
        order = _order(np.concatenate(columns, axis=1).astype(np.float32))  # as the net will get them
        weights = None if self.weights is None else self.weights[order]
        return Rows(self.features[order], self.targets[order], self.outputs, weights)

    def data(self, rule: Rule, task: Task | None) -> DataSet:
        """Return the rows as a data set, in the scale of an earlier one, if there is one."""
        features = feature_tensor(self.features.astype(np.float32), "table")  # scaled: nothing is lost
        classes = self.kind == "classes"
        targets = torch.from_numpy(np.ascontiguousarray(self.targets, np.int64 if classes else np.float32))
        names = tuple(map(str, range(self.outputs)))
        train = Split(features, targets)
        found = data_set("table", train, Split(features[:0], targets[:0]), None, names, "classes", moments(features))
        if not classes:
            found = dataclasses.replace(
                found, targets="values", target_mean=(0.0,) * self.outputs, target_std=(1.0,) * self.outputs
            )
        if task is not None:
            found = dataclasses.replace(found, mean=task.mean, std=task.std)
        if self.weights is None:
            return found
        if "own" not in rule.takes.targets:
            raise InputError(
                f"{rule.name} has no loss for each example that a weight could multiply; give whole numbers as "
                "sample_weight, by which rows are repeated, or take another rule (`sidestep rules`: own targets)"
            )
        weights = torch.from_numpy(self.weights.astype(np.float32))[:, None]
        weighted = torch.cat([targets.float().reshape(len(targets), -1), weights], dim=1)
        objective = _weighted(found.targets, getattr(rule, "label_smoothing", 0.0))
        return dataclasses.replace(found, train=Split(features, weighted), objective=objective)


def _order(table: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the order of the rows by their first column, then by their second, and so on, in one sort of bytes."""
    bits = np.ascontiguousarray(table + 0.0).view(np.uint32)  # of 0.0 and -0.0 the first
    ordered = np.where(bits >> 31, ~bits, bits | 0x80000000).astype(">u4")  # larger where the number is larger
    rows = np.ascontiguousarray(ordered).view(np.dtype((np.void, 4 * table.shape[1])))
    return np.argsort(rows[:, 0], kind="stable")


def _weighted(kind: str, smoothing: float) -> Objective:
    """Return the objective of targets whose last column is a weight: each example's loss is multiplied by it."""

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        weights = targets[:, -1].to(outputs.dtype)
        if kind == "classes":
            wanted = targets[:, 0].long()
            return weights * F.cross_entropy(outputs, wanted, reduction="none", label_smoothing=smoothing)
        return weights * VALUES.each(outputs, targets[:, :-1])

    usual = CLASSES if kind == "classes" else VALUES
    return Objective(f"weighted {usual.name}", losses, predictions=usual.predictions)


class TableNet:
    """A rule's net on rows of numbers, with its optimiser: `train`, `predict`, all as tensors and a record."""

    def __init__(self, rule: Rule, task: Task, state: State, seed: int, device: str) -> None:
        self.rule, self.task, self.state, self.seed, self.device = rule, task, state, seed, device
        self._double: nn.Module | None = None  # the net in double precision, made when it is asked for

    @classmethod
    def new(cls, rule: Rule, rows: Rows, seed: int, device: str, batch: int | None) -> "TableNet":
        """Return an untrained net for rows like these."""
        rows = dataclasses.replace(rows, weights=None).in_order()
        state, loop = begin(rule, rows.data(rule, None), _options(rule, rows, seed, device, batch, 1))
        return cls(rule, loop.task, state, seed, device)

    def train(self, rows: Rows, epochs: int, batch: int | None, decay: bool = False) -> None:
        """Train for so many passes over the rows, on from where the net is.

        Args:
            rows: train rows.
            epochs: passes.
            batch: rows a step; None: about an eighth of the rows or fewer, from 16 to 128.
            decay: whether the learning rate falls to 0, as half a cosine.

        Raises:
            NonFiniteError: if a loss stops being a number; Stopped: after Ctrl-C.
        """
        rows = rows.in_order()
        options = _options(self.rule, rows, self.seed, self.device, batch, epochs)
        steps = options.steps_for(len(rows.features))
        # an epoch's order is drawn by the number of its first step: from the middle of one, rows would come twice
        self.state.step += -self.state.step % (steps // epochs)
        options = dataclasses.replace(
            options, epochs=None, steps=self.state.step + steps, decay="cosine" if decay else "none"
        )
        compute = Compute.find(options.device, "float32")
        data = rows.data(self.rule, self.task).to(compute.device)
        check_single(self.rule, self.state.net, self.task, min(options.batch, len(rows.features)))
        loop = Loop(self.rule, data, options, compute, None)
        self._double = None
        with stop_on_signals() as stop:
            loop.run(self.state, 0, Observers([]), stop)
        if stop.requested:
            raise Stopped("fitting was stopped", self.state.step, stop.signal_number)
        broken = self.state.not_finite()
        if broken:
            raise NonFiniteError(f"after fitting, {broken[0]} is not finite; take a rule with a smaller learning_rate")

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return class probabilities (n, classes), or values (n, columns), for rows of features.

        They are computed in double precision on the CPU, so that a row's answer does not depend on what is predicted
        beside it.
        """
        if self._double is None:
            self._double = copy.deepcopy(self.state.net).cpu().double()
        noise, name = Noise(self.seed).stream("predict"), self.rule.readings[0]
        found = []
        for start in range(0, len(features), _BATCH):
            part = feature_tensor(features[start : start + _BATCH].astype(np.float32), "table")
            inputs = self.task.prepare(part).double()
            found.append(self.rule.predict(self._double, inputs, noise, start, [name])[name].double())
        answers: NDArray[np.float64] = torch.cat(found).numpy()
        if not np.isfinite(answers).all():
            raise NonFiniteError("the net gave predictions that are not finite; take a smaller learning_rate")
        return answers

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return weights and the optimiser's memory as tensors, and all else as plain values."""
        tensors, record = self.state.tensors()
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return copies, {"state": record, "task": self.task.record(), "seed": self.seed, "device": self.device}

    @classmethod
    def of(cls, rule: Rule, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "TableNet":
        """Return the net that `tensors` described; raises CheckpointError or LookupError for another."""
        task, seed, device = Task.from_record(record["task"]), int(record["seed"]), str(record["device"])
        net = untrained(rule, task, seed).to(Compute.find(device, "float32").device)
        state = State(net, rule.optimizer(net))
        state.restore(tensors, dict(record["state"]))
        return cls(rule, task, state, seed, device)


def _options(rule: Rule, rows: Rows, seed: int, device: str, batch: int | None, epochs: int) -> Options:
    count = len(rows.features)
    if batch is None:
        batch = min(max(count // _FEWEST_STEPS, _SMALLEST), _LARGEST)
        if isinstance(rule, HasBatchMultiple):
            name, value = rule.batch_multiple
            batch = min(batch, count) // value * value
            if not batch:
                raise InputError(f"{rule.name} needs {name} = {value} rows or more, got {count}; give more rows")
    return Options(epochs=epochs, batch=batch, seed=seed, device=device, precision="float32")
