"""Observers: objects that a run tells of its beginning, its steps, its epochs and its end, and that may stop it."""

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sidestep.errors import InputError, SidestepError
from sidestep.training.state import State

__all__ = ["METHODS", "STOP", "Begin", "End", "EpochEnd", "ObserverError", "Observers", "StepEnd", "check_observers"]

METHODS = ("on_begin", "on_step", "on_epoch", "on_end")


class _Stop(enum.Enum):
    STOP = "stop"


STOP = _Stop.STOP
"""What a method of an observer returns to end the training: all is kept, and what was trained is evaluated."""


class ObserverError(SidestepError):
    """An observer raised an error; the run was saved before it was told."""


@dataclass(frozen=True)
class Begin:
    """What `on_begin` is told, before the first step or where a resumed run goes on."""

    step: int
    """Steps done so far: 0, or more where a run is resumed."""
    total_steps: int
    steps_per_epoch: int
    batch: int
    """Examples per step."""
    rule: str
    """The rule's name."""
    score: str | None
    """What the validation split is scored by, such as accuracy; None without that split."""
    net: nn.Module
    """The net that trains: to be looked at, not changed."""
    folder: Path | None
    """The run's folder, if it has one."""
    kept_step: int | None
    """The step whose weights were kept by `EpochEnd.keep` before the run was resumed; it still ends with them."""
    forget: Callable[[], None] = field(repr=False)
    """Forget the weights that were kept."""


@dataclass(frozen=True)
class StepEnd:
    """What `on_step` is told after every step."""

    step: int
    """Steps done, this one included."""
    total_steps: int
    examples: int
    """Size of the batch."""
    losses: Mapping[str, float]
    """The batch's mean loss by name, `UNIT: TERM`."""
    seconds: float
    """Spent training, over all resumptions."""
    net: nn.Module
    write: Callable[[str, str, float], None] = field(repr=False)
    """`write(split, name, value)` adds a line to the run's metrics.jsonl, if there is a folder."""


@dataclass(frozen=True)
class EpochEnd:
    """What `on_epoch` is told after every epoch, once its numbers are in metrics.jsonl."""

    epoch: int
    """Epochs done, this one included; the last may be a part of one."""
    step: int
    total_steps: int
    losses: Mapping[str, float]
    """Mean losses of the epoch, `UNIT: TERM`, and what the rule watches beside them."""
    validation: float | None
    """The validation score: for classes the accuracy, a fraction; None without a validation split."""
    seconds: float
    net: nn.Module
    write: Callable[[str, str, float], None] = field(repr=False)
    """As in `StepEnd`."""
    keep: Callable[[], None] = field(repr=False)
    """Keep a copy of the weights as they stand (averaged, if an average is taken): the run ends with them."""


@dataclass(frozen=True)
class End:
    """What `on_end` is told, once, however the run ends."""

    step: int
    seconds: float
    why: str
    """finished: evaluated, after all steps or after STOP; stopped: by Ctrl-C or the like; failed: by an error."""
    result: Mapping[str, Any] | None
    """What result.json holds; None unless finished."""


def check_observers(observers: Any) -> None:
    """Raise InputError unless all observers are objects with one of the four methods."""
    if isinstance(observers, str) or not isinstance(observers, Sequence):
        raise InputError(f"observers must be a list of them, got {type(observers).__name__}; give [observer]")
    for observer in observers:
        kind = observer.__name__ if isinstance(observer, type) else type(observer).__name__
        if isinstance(observer, type):
            raise InputError(f"an observer must be an object, got the class {kind}; give {kind}(...)")
        if not any(callable(getattr(observer, name, None)) for name in METHODS):
            raise InputError(
                f"an observer must have at least one of the methods {', '.join(METHODS)}, and {kind} has none"
            )


class Observers:
    """Several observers as one, told in their order; those without a method are not told of what it is for."""

    def __init__(self, observers: Iterable[Any] = ()) -> None:
        self._all = list(observers)
        self._ended = False

    def wants(self, method: str) -> bool:
        """Whether any of them has this method."""
        return any(hasattr(observer, method) for observer in self._all)

    def may_stop(self, method: str) -> bool:
        """Whether any of them has this method and may answer STOP, which those that only look never do."""
        return any(hasattr(each, method) and not getattr(each, "only_looks", False) for each in self._all)

    def notify(self, method: str, event: Any) -> bool:
        """Tell all of them, and return whether one has answered STOP.

        Raises ObserverError for the first that raises an error, once all have been told.
        """
        stop, failed = False, None
        for observer in self._all:
            called = getattr(observer, method, None)
            if called is None:
                continue
            try:
                stop |= called(event) is STOP
            except Exception as error:
                failed = failed or (getattr(observer, "name_in_errors", type(observer).__name__), error)
        if failed:
            name, why = failed
            said = str(why) if isinstance(why, SidestepError) else f"{type(why).__name__}: {why}"
            raise ObserverError(f"{name}.{method} failed: {said}") from why
        return stop

    def answer(self, method: str, event: Any) -> tuple[bool, ObserverError | None]:
        """Tell all of them as `notify` does, and return the error in place of raising it."""
        try:
            return self.notify(method, event), None
        except ObserverError as error:
            return False, error

    @contextmanager
    def of_the_end(self, state: State) -> Iterator[None]:
        """Tell of an end that comes by an error or a signal, which goes on whatever the observers make of it."""
        try:
            yield
        except BaseException as error:
            why = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(ObserverError):
                self.end(End(state.step, state.seconds, why, None))
            raise

    def end(self, event: End) -> None:
        """Tell all of the end, unless they have been told."""
        if not self._ended:
            self._ended = True
            self.notify("on_end", event)
