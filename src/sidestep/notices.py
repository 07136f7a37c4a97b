"""The kinds of warnings that Sidestep gives; they stand apart, so that the command line knows them without torch."""

import sys
import warnings

__all__ = ["DataNotice", "RunNotice", "tell"]

_OURS = ("sidestep", "functools", "contextlib")  # the last two: cached properties and blocks of ours


class DataNotice(UserWarning):
    """A sentence on data that were read otherwise than they lie there: pages left out, files converted, cuts changed.

    The command line prints it as a notice. In Python it is a warning, so `warnings.catch_warnings` silences it, or
    makes an error of it.
    """


class RunNotice(UserWarning):
    """What somebody who reads or writes a folder should know of it; the command line prints it as a notice."""


def tell(sentence: str, kind: type[Warning] = RunNotice) -> None:
    """Warn at the line outside this package that has asked for what the sentence is about."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, kind, stacklevel=level)
