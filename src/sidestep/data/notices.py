"""What a loader has to tell of data that it can read but had to change: Python warnings of a kind of their own."""

import sys
import warnings

__all__ = ["DataNotice", "report"]


class DataNotice(UserWarning):
    """A sentence on data that were read otherwise than they lie there: pages left out, files converted, cuts changed.

    The command line prints it as a notice. In Python it is a warning, so `warnings.catch_warnings` silences it, or
    makes an error of it.
    """


_OURS = ("sidestep", "functools", "contextlib")  # the last two: `DataSet.test` is a cached property


def report(sentence: str) -> None:
    """Warn with a DataNotice at the line outside this package that has asked for the data."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, DataNotice, stacklevel=level)
