"""The progress bar of a training run: epoch, loss, validation accuracy, examples a second, time left."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from sidestep.cli.output import PlainColumn, bar_of, error_console, notice

__all__ = ["TrainingBar"]

_SECONDS = 30.0  # between two lines where there is no terminal


class TrainingBar(AbstractContextManager["TrainingBar"]):
    """Draws on standard error, or where that is no terminal prints a plain line now and then.

    A line comes once the last one is half a minute old: short runs are silent. What is trained stands at its head,
    where `what` says it.
    """

    def __init__(self, what: str = "") -> None:
        self._what = f"{what}: " if what else ""
        self._bar = bar_of(
            PlainColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), PlainColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), PlainColumn("{task.fields[news]}"),
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=None, rate="", news="", start=False)
        self._steps_per_epoch, self._total, self._first = 1, 0, 0
        self._begun = self._told = time.perf_counter()

    def __enter__(self) -> "TrainingBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, total_steps: int, steps_per_epoch: int, step: int) -> None:
        """Start the bar at `step`."""
        self._total, self._steps_per_epoch, self._first = total_steps, steps_per_epoch, step
        self._begun = self._told = time.perf_counter()
        self._bar.start_task(self._task)
        self._bar.update(self._task, total=total_steps, completed=step)

    def step(self, step: int, examples: int) -> None:
        """Move the bar on."""
        rate = (step - self._first) * examples / max(1e-9, time.perf_counter() - self._begun)
        epochs = -(-self._total // self._steps_per_epoch)
        epoch = min(epochs, step // self._steps_per_epoch + 1)
        self._bar.update(
            self._task, completed=step, rate=f"{rate:,.0f} examples/s", description=f"epoch {epoch}/{epochs}"
        )
        if step < self._total and step % self._steps_per_epoch:  # at an epoch's end the losses are known
            self._tell(step, f"epoch {epoch}/{epochs}", f"{rate:,.0f} examples/s")

    def epoch(self, epoch: int, losses: Mapping[str, float], accuracy: float | None, seconds: float) -> None:
        """Show the sum of the losses and the validation accuracy."""
        total = sum(value for name, value in losses.items() if ": " in name)
        news = f"loss {total:.4g}" + (f", validation {accuracy:.2%}" if accuracy is not None else "")
        self._bar.update(self._task, news=news)
        epochs = -(-self._total // self._steps_per_epoch)
        self._tell(min(self._total, epoch * self._steps_per_epoch), f"epoch {epoch}/{epochs}", news)

    def evaluating(self, what: str) -> None:
        """Say what is being evaluated."""
        self._bar.update(self._task, description=f"evaluating {what}")
        if self._due():
            notice(f"{self._what}evaluating {what}")

    def notice(self, text: str) -> None:
        """Print a sentence to standard error, above the bar."""
        notice(text)

    def _tell(self, step: int, place: str, news: str) -> None:
        if self._due():
            left = (time.perf_counter() - self._begun) / max(1, step - self._first) * (self._total - step)
            where = f"{place}, step {step:,} of {self._total:,}"
            notice(f"{self._what}{where}, {news}, {timedelta(seconds=round(left))} left")

    def _due(self) -> bool:
        now = time.perf_counter()
        if error_console.file.isatty() or now - self._told < _SECONDS:
            return False
        self._told = now
        return True
