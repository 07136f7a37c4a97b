"""Early stopping: training ends when the validation score has not risen for some epochs."""

import math
from typing import Literal

from sidestep.data.objective import Objective
from sidestep.errors import InputError
from sidestep.keywords import KnownKeywords
from sidestep.training.metrics import read_values
from sidestep.training.observers import STOP, Begin, EpochEnd

__all__ = ["EarlyStop"]


class EarlyStop(KnownKeywords):
    """An observer that ends the training after `patience` epochs in a row without a better value.

    A resumed run counts on from what its metrics.jsonl says, and the best weights are in its checkpoint, so it stops
    at the same epoch with the same weights as one that was never interrupted.

    Args:
        patience: epochs without a better value that are waited for, 1 or more.
        keep: best: the run ends with the weights of the best epoch, also where it goes on to its last step; last: with
            those of the last one.
        metric: validation: the validation score, higher is better (an objective of yours without a score is scored by
            its loss, of which lower is better); or the name of a training loss (`UNIT: TERM`), whose mean over an
            epoch should fall.

    Raises:
        InputError: for other values; from `train`, if there is no validation split or no loss of that name.
    """

    def __init__(self, patience: int, keep: Literal["best", "last"] = "best", metric: str = "validation") -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise InputError(f"patience must be a whole number of epochs, 1 or more, got {patience!r}")
        if keep not in ("best", "last"):
            raise InputError(f"keep must be best or last, got {keep!r}")
        self.patience, self.keep, self.metric = patience, keep, metric
        self.best, self.best_step, self.waited = -math.inf, 0, 0
        self._falls = metric != "validation"  # whether lower is better

    def on_begin(self, event: Begin) -> object:
        """Count on from the epochs that a resumed run has behind it."""
        if self.metric == "validation" and event.score is None:
            raise InputError(
                "early stopping needs images or rows that are not trained on; keep some aside (validation=0.1), or "
                "give it the name of a training loss as its metric"
            )
        self._forget()
        self._falls = self.metric != "validation" or event.score == Objective.score_name  # that of one without scores
        if event.step and event.folder:
            split, name = ("validation", event.score) if self.metric == "validation" else ("train", self.metric)
            for step, value in read_values(event.folder / "metrics.jsonl", split, name or ""):
                self._count(step, value)
        if self.keep == "last":
            event.forget()
        elif event.kept_step != (self.best_step or None):  # its best weights were not kept: another one comes first
            self._forget()
            event.forget()
        return STOP if self.waited >= self.patience else None

    def on_epoch(self, event: EpochEnd) -> object:
        """Compare the epoch with the best one before."""
        value = event.validation if self.metric == "validation" else event.losses.get(self.metric)
        if value is None:
            raise InputError(f"there is no loss {self.metric!r}; there are: {', '.join(sorted(event.losses))}")
        if self._count(event.step, value) and self.keep == "best":
            event.keep()
        return STOP if self.waited >= self.patience else None

    def _forget(self) -> None:
        self.best, self.best_step, self.waited = -math.inf, 0, 0

    def _count(self, step: int, value: float) -> bool:
        """Take an epoch's value, and say whether it is better than all before."""
        rising = -value if self._falls else value
        if rising > self.best:
            self.best, self.best_step, self.waited = rising, step, 0
            return True
        self.waited += 1
        return False
