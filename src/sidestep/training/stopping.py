"""Stopping between two steps: a signal sets a flag, the loop saves and ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "Stopped", "stop_on_signals"]


class Stopped(KeyboardInterrupt):
    """Training was stopped by a signal, after the step that was under way; what can be saved has been saved."""

    def __init__(self, message: str, step: int, signal_number: int) -> None:
        super().__init__(message)
        self.step, self.signal_number = step, signal_number


class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_number = 0

    @property
    def requested(self) -> bool:
        """True once a signal came."""
        return self.signal_number != 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP (the terminal is gone) into a request to stop after this step.

    A second one stops at once. A SIGHUP that is ignored, as under `nohup`, stays ignored. Signals can only be caught in
    the main thread; elsewhere the request is simply never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def receive(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.signal_number = number

    earlier = {number: signal.signal(number, receive) for number in _caught()}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _caught() -> list[signal.Signals]:
    found = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        found.append(hangup)
    return found
