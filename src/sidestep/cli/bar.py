"""The progress bar of a training run: epoch, loss, validation accuracy, images a second, time left."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sidestep.cli.output import error_console

__all__ = ["TrainingBar"]


class TrainingBar(AbstractContextManager["TrainingBar"]):
    """Draws on standard error; prints nothing where that is not a terminal."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(), TextColumn("{task.fields[news]}"),
            console=error_console, disable=not error_console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=None, rate="", news="", start=False)
        self._steps_per_epoch, self._total, self._first = 1, 0, 0
        self._begun = time.perf_counter()

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
        self._begun = time.perf_counter()
        self._bar.start_task(self._task)
        self._bar.update(self._task, total=total_steps, completed=step)

    def step(self, step: int, examples: int) -> None:
        """Move the bar on."""
        rate = (step - self._first) * examples / max(1e-9, time.perf_counter() - self._begun)
        epochs = -(-self._total // self._steps_per_epoch)
        epoch = min(epochs, step // self._steps_per_epoch + 1)
        self._bar.update(
            self._task, completed=step, rate=f"{rate:,.0f} images/s", description=f"epoch {epoch}/{epochs}"
        )

    def epoch(self, epoch: int, losses: Mapping[str, float], accuracy: float | None, seconds: float) -> None:
        """Show the sum of the losses and the validation accuracy."""
        total = sum(value for name, value in losses.items() if ": " in name)
        news = f"loss {total:.4g}" + (f", validation {accuracy:.2%}" if accuracy is not None else "")
        self._bar.update(self._task, news=news)

    def evaluating(self, what: str) -> None:
        """Say what is being evaluated."""
        self._bar.update(self._task, description=f"evaluating {what}")

    def notice(self, text: str) -> None:
        """Print a sentence to standard error, above the bar."""
        error_console.print(f"sidestep: {text}", markup=False, soft_wrap=True)
