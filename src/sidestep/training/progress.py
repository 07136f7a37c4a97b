"""What a training run tells the world while it runs."""

from collections.abc import Mapping
from typing import Protocol

from sidestep.training.observers import Begin, EpochEnd, StepEnd

__all__ = ["Progress", "Reporting", "Silent"]


class Progress(Protocol):
    """Receives the events of a run; the command line draws a progress bar from them."""

    def begin(self, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Training is about to start at `step` of `total_steps`."""
        ...

    def step(self, step: int, examples: int) -> None:
        """`step` steps are done; the last one took `examples` images."""
        ...

    def epoch(self, epoch: int, losses: Mapping[str, float], accuracy: float | None, seconds: float) -> None:
        """`epoch` epochs are done: mean losses, and the validation accuracy as a fraction (None without that split)."""
        ...

    def evaluating(self, what: str) -> None:
        """Training is over, and a split is evaluated: `test` at the beginning, then `test: 40%` after every batch."""
        ...

    def notice(self, text: str) -> None:
        """Something that whoever started the run should know, in a sentence."""
        ...


class Silent:
    """Tells nobody."""

    def begin(self, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Do nothing."""

    def step(self, step: int, examples: int) -> None:
        """Do nothing."""

    def epoch(self, epoch: int, losses: Mapping[str, float], accuracy: float | None, seconds: float) -> None:
        """Do nothing."""

    def evaluating(self, what: str) -> None:
        """Do nothing."""

    def notice(self, text: str) -> None:
        """Do nothing."""


class Reporting:
    """The observer that tells a `Progress` of steps and epochs."""

    only_looks = True  # it never ends a run

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.name_in_errors = type(progress).__name__

    def on_begin(self, event: Begin) -> None:
        """Tell where training starts."""
        self._progress.begin(event.total_steps, event.steps_per_epoch, event.step)

    def on_step(self, event: StepEnd) -> None:
        """Tell of a step."""
        self._progress.step(event.step, event.examples)

    def on_epoch(self, event: EpochEnd) -> None:
        """Tell of an epoch."""
        self._progress.epoch(event.epoch, event.losses, event.validation, event.seconds)
