"""Every error that a user can meet, with one base class to catch them all."""

__all__ = ["BusyError", "CheckpointError", "DataError", "InputError", "NonFiniteError", "RankError", "SidestepError"]


class SidestepError(Exception):
    """Base of all errors that Sidestep raises on purpose; the command line prints it without a traceback."""


class InputError(SidestepError, ValueError):
    """A value that cannot work: the message says what was given, what is needed and the fix."""


class DataError(InputError):
    """A data set that is missing, damaged, or not of the form that training needs."""


class BusyError(InputError):
    """The folder of a run that another process is writing: nothing was touched."""


class CheckpointError(SidestepError):
    """A run folder or checkpoint that is missing, damaged, or belongs to another run."""


class NonFiniteError(SidestepError, FloatingPointError):
    """A loss that is not a finite number: training stopped, and the last good checkpoint is kept."""


class RankError(SidestepError):
    """Another process of the run has failed, has gone, or sent what is no message of ours."""
