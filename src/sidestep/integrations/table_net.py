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
from sidestep.training.early_stop import EarlyStop
from sidestep.training.loop import Loop
from sidestep.training.observers import EpochEnd, Observers
from sidestep.training.options import Compute, Options
from sidestep.training.single import check_single
from sidestep.training.state import State
from sidestep.training.stopping import Stopped, stop_on_signals

__all__ = ["Rows", "Stopping", "TableNet"]

_BATCH = 1000  # rows that are predicted together
_FEWEST_STEPS = 8  # an epoch, where the batch is left to us: small tables take small batches
_SMALLEST, _LARGEST = 16, 128


@dataclass(frozen=True)
class Stopping:
    """Early stopping: the share of the rows that is held out, and the passes without a better score to wait for."""

    fraction: float
    patience: int


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

    def parted(self, fraction: float, seed: int) -> tuple["Rows", "Rows"]:
        """Return the rows to train on and a share of them held out: of each class, but never all of it.

        Equal rows stay together, so that none is held out that is trained on, too.
        """
        classes = self.targets if self.kind == "classes" else np.zeros(len(self.targets), np.int64)
        targets = self.targets.reshape(len(self.targets), -1)
        _, groups = np.unique(np.concatenate([self.features, targets], axis=1), axis=0, return_inverse=True)
        order = Noise(seed).stream("validation").permutation(int(groups.max()) + 1).numpy()
        held = np.zeros(len(order), bool)
        for name in np.unique(classes):
            own = order[np.isin(order, groups[classes == name])]
            held[own[: min(max(1, round(fraction * len(own))), len(own) - 1)]] = True
        if not held.any():
            raise InputError("early stopping needs two different rows or more of some class, got one of each")
        return self._taken(~held[groups]), self._taken(held[groups])

    def _taken(self, rows: NDArray[np.bool_]) -> "Rows":
        weights = None if self.weights is None else self.weights[rows] / self.weights[rows].mean()
        return Rows(self.features[rows], self.targets[rows], self.outputs, weights)

    def split(self) -> Split:
        """Return the rows as a split; the weights, if there are any, are the last column of its targets."""
        features = feature_tensor(self.features.astype(np.float32), "table")  # scaled: nothing is lost
        targets = torch.from_numpy(
            np.ascontiguousarray(self.targets, np.int64 if self.kind == "classes" else np.float32)
        )
        if self.weights is None:
            return Split(features, targets)
        weights = torch.from_numpy(self.weights.astype(np.float32))[:, None]
        return Split(features, torch.cat([targets.float().reshape(len(targets), -1), weights], dim=1))

    def data(self, rule: Rule, task: Task | None, held: "Rows | None" = None) -> DataSet:
        """Return the rows as a data set, in the scale of an earlier one, if there is one; `held` for validation."""
        train, weighted = dataclasses.replace(self, weights=None).split(), self.weights is not None
        names, none = tuple(map(str, range(self.outputs))), Split(train.images[:0], train.labels[:0])
        found = data_set("table", train, none, None, names, "classes", moments(train.images))
        if self.kind == "values":
            found = dataclasses.replace(
                found, targets="values", target_mean=(0.0,) * self.outputs, target_std=(1.0,) * self.outputs
            )
        if task is not None:
            found = dataclasses.replace(found, mean=task.mean, std=task.std)
        if weighted and "own" not in rule.takes.targets:
            raise InputError(
                f"{rule.name} has no loss for each example that a weight could multiply; give whole numbers as "
                "sample_weight, of a mean up to 16, by which rows are repeated, or take another rule (`sidestep "
                "rules`: own targets)"
            )
        if weighted:
            objective = _weighted(found.targets, getattr(rule, "label_smoothing", 0.0))
            found = dataclasses.replace(found, train=self.split(), objective=objective)
        return found if held is None else dataclasses.replace(found, validation=held.split())


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

    def scores(answers: Tensor, targets: Tensor) -> Tensor:
        wanted = targets[:, 0].long() if kind == "classes" else targets[:, :-1]
        return targets[:, -1] * usual.scored(answers, wanted)

    return Objective(f"weighted {usual.name}", losses, usual.predictions, scores, usual.score_name)


class TableNet:
    """A rule's net on rows of numbers, with its optimiser: `train`, `predict`, all as tensors and a record."""

    def __init__(self, rule: Rule, task: Task, state: State, seed: int, device: str) -> None:
        self.rule, self.task, self.state, self.seed, self.device = rule, task, state, seed, device
        self.passes, self.scores = 0, list[float]()  # over the rows; of held out rows after each pass, if there are any
        self._double: nn.Module | None = None  # the net in double precision, made when it is asked for

    @classmethod
    def new(cls, rule: Rule, rows: Rows, seed: int, device: str, batch: int | None) -> "TableNet":
        """Return an untrained net for rows like these."""
        rows = dataclasses.replace(rows, weights=None).in_order()
        state, loop = begin(rule, rows.data(rule, None), _options(rule, rows, seed, device, batch, 1))
        return cls(rule, loop.task, state, seed, device)

    def train(
        self, rows: Rows, epochs: int, batch: int | None, decay: bool = False, stopping: Stopping | None = None
    ) -> None:
        """Train for so many passes over the rows, on from where the net is.

        Args:
            rows: train rows.
            epochs: passes.
            batch: rows a step; None: about an eighth of the rows or fewer, from 16 to 128.
            decay: whether the learning rate falls to 0, as half a cosine.
            stopping: which rows to hold out, and when to stop, with the weights of the best pass; None: at the end.

        Raises:
            NonFiniteError: if a loss stops being a number; Stopped: after Ctrl-C.
        """
        rows, held = rows.in_order(), None
        if stopping:
            rows, held = rows.parted(stopping.fraction, self.seed)
        options = _options(self.rule, rows, self.seed, self.device, batch, epochs)
        steps = options.steps_for(len(rows.features))
        # an epoch's order is drawn by the number of its first step: from the middle of one, rows would come twice
        self.state.step += -self.state.step % (steps // epochs)
        began = self.state.step
        options = dataclasses.replace(
            options, epochs=None, steps=self.state.step + steps, decay="cosine" if decay else "none"
        )
        compute = Compute.find(options.device, "float32")
        data = rows.data(self.rule, self.task, held).to(compute.device)
        check_single(self.rule, self.state.net, self.task, min(options.batch, len(rows.features)))
        loop = Loop(self.rule, data, options, compute, None)
        self._double = None
        with stop_on_signals() as stop:
            loop.run(self.state, 0, Observers([_Scores(self), EarlyStop(stopping.patience)] if stopping else []), stop)
        if stop.requested:
            raise Stopped("fitting was stopped", self.state.step, stop.signal_number)
        self.passes += (self.state.step - began) // (steps // epochs)
        self.state.adopt_kept()
        self.state.forget()
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
        done = {"passes": self.passes, "scores": self.scores}
        return copies, {"state": record, "task": self.task.record(), "seed": self.seed, "device": self.device, **done}

    @classmethod
    def of(cls, rule: Rule, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "TableNet":
        """Return the net that `tensors` described; raises CheckpointError or LookupError for another."""
        task, seed, device = Task.from_record(record["task"]), int(record["seed"]), str(record["device"])
        net = untrained(rule, task, seed).to(Compute.find(device, "float32").device)
        state = State(net, rule.optimizer(net))
        state.restore(tensors, dict(record["state"]))
        found = cls(rule, task, state, seed, device)
        found.passes, found.scores = int(record.get("passes", 0)), list(map(float, record.get("scores", ())))
        return found


class _Scores:
    """Writes down the score of the held out rows after each pass."""

    def __init__(self, net: TableNet) -> None:
        self.net = net

    def on_epoch(self, event: EpochEnd) -> None:
        """Take an epoch's score."""
        self.net.scores += [] if event.validation is None else [event.validation]


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
