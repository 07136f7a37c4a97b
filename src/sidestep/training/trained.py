"""A trained net with the rule that trained it: predictions, and how good they are."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sidestep.data import Split
from sidestep.data.notices import report
from sidestep.data.rows import Stored
from sidestep.data.tables.form import TableForm
from sidestep.data.tables.frames import is_frame
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule, Task
from sidestep.training.calibration import (
    FEWEST,
    Calibration,
    Quality,
    calibrated,
    calibration_images,
    fit_sums,
)
from sidestep.training.compatibility import pixel_scale_warning
from sidestep.training.evaluate import accuracies, check_readings, predictions
from sidestep.training.evaluation_progress import Count
from sidestep.training.given import given_images, given_split
from sidestep.training.likelihood import added_up, quality_of
from sidestep.training.options import Compute

__all__ = ["Run"]


@dataclass
class Run:
    """A net with the rule that trained it: what `train` and `load_run` return."""

    rule: Rule
    net: nn.Module
    task: Task
    compute: Compute
    seed: int
    step: int
    result: dict[str, Any]
    folder: Path | None = None
    calibration: Calibration | None = None  # the readings' temperatures; None: what they give are scores
    table: TableForm | None = None  # how columns of a file became features; None: it was trained on other data

    def temperature(self, reading: str | None = None) -> float | None:
        """Return the T that turns a reading's scores into probabilities; None if it has none.

        It has one if the run was trained to its end, with 50 validation images or more, if the reading was counted
        then, and if what predictions depend on (`rule.for_inference`) is as it was.
        """
        name = reading or self.rule.readings[0]
        check_readings(self.rule, [name])
        return self.calibration.temperature(self.rule, name) if self.calibration else None

    def uncalibrated(self, reading: str | None = None) -> str | None:
        """Return why what a reading gives is no probability, in a few words; None if it is one."""
        name = reading or self.rule.readings[0]
        if self.calibration is None and self.task.own:
            return "no temperature: it is trained by a loss of your own"
        if self.calibration is None:
            return f"no temperature: it takes {FEWEST} validation {self.task.example}s and a run trained to its end"
        return self.calibration.missing(self.rule, name)

    def predict(self, images: Any, reading: str | None = None, *, raw: bool = False) -> Tensor:
        """Return class probabilities, (n, classes), float32 on the CPU, for raw inputs: images or rows of a table.

        Nets of labels give a probability for each, nets of values the values in their own units.
        They are calibrated, `q = softmax(log p / T)`, if `temperature(reading)` is not None. Otherwise they are the
        reading's own p: scores, which need not say how often the answer is right. The answer is the same by both.
        Pixels that can hardly be in the units of those trained on are told (a `DataNotice`).

        Args:
            images: a tensor or an array: rows of a table, or pixels as in the training data, uint8 in 0 .. 255 or the
                float values trained on. After training on a table in a file also such a file or a data frame.
            reading: one of `rule.readings`; the first by default.
            raw: return p in any case.

        Raises:
            InputError: for images of another shape than trained on, or a reading that the rule does not have.
        """
        blocks = list(self.predict_blocks(images, reading, raw=raw))
        return torch.cat(blocks) if blocks else torch.zeros(0, self.task.classes)

    def predict_blocks(self, images: Any, reading: str | None = None, *, raw: bool = False) -> Iterator[Tensor]:
        """Yield what `predict` returns, 500 rows at a time: of millions of images in a memory map few are in memory.

        Args and errors are those of `predict`; what is wrong with the images is told before the first block.
        """
        name = reading or self.rule.readings[0]
        check_readings(self.rule, [name])
        if self.table is not None and (isinstance(images, str | os.PathLike) or is_frame(images)):
            images = self.table.rows(images).astype(np.float32)
        images = given_images(self.task, images)
        self._tell_of_contrast("images to predict", images)
        found = predictions(self.rule, self.net, images, self.task, self.compute, Noise(self.seed), [name])
        temperature = None if raw else self.temperature(name)
        for part in found:
            scores = part[name].float().cpu()
            yield scores if temperature is None else calibrated(scores, temperature)

    def evaluate(self, split: Split, names: Sequence[str] | None = None) -> dict[str, float]:
        """Return reading name -> accuracy in [0, 1] on a split of raw images and labels; all readings by default."""
        return {name: quality.accuracy for name, quality in self.assess(split, names).items()}

    def assess(self, split: Split, names: Sequence[str] | None = None) -> dict[str, Quality]:
        """Return reading name -> accuracy, negative log-likelihood and calibration error on a split; all by default.

        Of next tokens the likelihood is that of a token, in nats, and there is no calibration error.

        Raises:
            InputError: for a reading that the rule does not have, or without images.
        """
        split = given_split(self.task, split)
        self._tell_of_contrast("images to evaluate", split.images)
        names = names or self.rule.readings
        check_readings(self.rule, names)
        temperatures = {name: self.temperature(name) for name in names}
        count = self._count(split, names, added_up(self.task, temperatures)[0])
        shares = {name: right / len(split) for name, right in count.right.items()}
        return {
            name: quality_of(self.task, shares[name], count.sums.get(name, []), temperatures[name]) for name in names
        }

    def recalibrated(self, validation: Split, names: Sequence[str] | None = None) -> "Run":
        """Return the run with temperatures fitted anew, at the settings that it has now; nothing is written.

        Args:
            validation: raw images and labels that it was not trained on and will not be judged by; 3,000 at most count.
            names: of the readings; all by default.

        Raises:
            InputError: for fewer than 50 images, or a reading that the rule does not have.
        """
        names = names or self.rule.readings
        check_readings(self.rule, names)
        if not self.task.likely:
            own = " by a loss of your own" if self.task.own else ""
            raise InputError(f"temperatures are for classes, and this net gives {self.task.targets}{own}")
        images = calibration_images(validation, Noise(self.seed))
        if not len(images):
            raise InputError(
                f"a temperature takes {FEWEST} validation {self.task.example}s or more, got {len(validation)}"
            )
        count = self._count(images, names, lambda _, p, labels: fit_sums(p, labels))
        return replace(self, calibration=Calibration.fitted(self.rule, count.sums, len(images)))

    def _tell_of_contrast(self, what: str, images: Stored) -> None:
        unlike = pixel_scale_warning(self.task, images)
        if unlike:
            report(f"{what}: {unlike}")

    def _count(self, split: Split, names: Sequence[str], more: Callable[[str, Tensor, Tensor], Tensor] | None) -> Count:
        count = Count(dict.fromkeys(names, 0))
        accuracies(self.rule, self.net, split, self.task, self.compute, Noise(self.seed), names, count, more)
        return count
