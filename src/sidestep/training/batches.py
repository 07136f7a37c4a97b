"""The training batch of a step: drawn by the seed and the step, or the next of a loader; moved, mirrored, laid out."""

from typing import Any

import torch
from torch import Tensor, nn

from sidestep.data import DataSet, crop_and_flip
from sidestep.data.batches import BatchOrder, chosen_rows
from sidestep.data.feed import BatchError, Feed
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, HasBatchMultiple, Rule, Task
from sidestep.training.options import Options
from sidestep.training.single import check_single

__all__ = ["TrainingBatches"]

_SMALL = 1 << 20  # numbers of a split that are kept scaled, too: 4 MiB


class TrainingBatches:
    """The batches of one run."""

    def __init__(self, rule: Rule, data: DataSet, options: Options, device: torch.device) -> None:
        self.rule, self.data, self.options, self.device = rule, data, options, device
        self.task, self.noise = Task.of(data), Noise(options.seed)
        order, examples = self.noise.stream("order"), len(data.train)
        self._order = BatchOrder(order, examples, options.batch, data.train.labels.device)
        self._scaled: Any = None  # the images, scaled once, where they are few: to the bits of a batch scaled alone

    def at(self, step: int) -> Batch:
        """Return the training batch of a step: a function of the seed and the step alone, or the next of a loader."""
        images, targets = self._scaled_raw(step)
        if self.options.augment in ("flip", "flip-crop"):
            padding = 4 if self.options.augment == "flip-crop" else 0
            images = crop_and_flip(images, self.noise.stream("augment").at(step), padding)
        elif self.options.augment == "shift":
            images = crop_and_flip(images, self.noise.stream("augment").at(step), padding=1, flip=False, edge=True)
        return Batch(self.task.laid_out(images), targets, self.task.objective)

    def _scaled_raw(self, step: int) -> tuple[Any, Tensor]:
        train, feed = self.data.train, self.data.feed
        if feed is None:
            rows = self._order.rows(step)
            if self._scaled is None and isinstance(train.images, Tensor) and train.images.numel() <= _SMALL:
                self._scaled = self.task.scaled(train.images)
            few = self._scaled is not None
            images = chosen_rows(self._scaled, rows) if few else self.task.scaled(chosen_rows(train.images, rows))
            return images, chosen_rows(train.labels, rows)
        images, targets = self._fed(feed, step)
        return self.task.scaled(images), targets

    def _fed(self, feed: Feed, step: int) -> tuple[Any, Tensor]:
        images, targets = feed.next(step)
        if isinstance(self.rule, HasBatchMultiple) and len(targets) % self.rule.batch_multiple[1]:
            name, value = self.rule.batch_multiple
            raise BatchError(
                f"{self.data.name}: batch {step + 1} has {len(targets)} examples, which must be a multiple of {name} = "
                f"{value}; leave out the last, smaller one (drop_last=True)"
            )
        return images.to(self.device), targets.to(self.device)

    def check_one(self, batch: Batch, net: nn.Module, step: int) -> None:
        """Refuse a loader's last batch, of one example, where the net needs two."""
        if not (self.data.feed and len(batch.targets) == 1 < len(self.data.train)):
            return
        try:
            check_single(self.rule, net, self.task, 1)
        except InputError as error:
            raise BatchError(f"{self.data.name}: batch {step + 1}: {error}, or drop_last=True") from error
