"""What a loader has to tell of data that it can read but had to change: Python warnings of a kind of their own."""

import sys
import warnings

from sidestep.notices import DataNotice

__all__ = ["DataNotice", "report"]


_OURS = ("sidestep", "functools", "contextlib")  # the last two: `DataSet.test` is a cached property


def report(sentence: str) -> None:
    """Warn with a DataNotice at the line outside this package that has asked for the data."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, DataNotice, stacklevel=level)
