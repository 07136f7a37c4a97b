"""The kinds of warnings that Sidestep gives; they stand apart, so that the command line knows them without torch."""

__all__ = ["DataNotice", "RunNotice"]


class DataNotice(UserWarning):
    """A sentence on data that were read otherwise than they lie there: pages left out, files converted, cuts changed.

    The command line prints it as a notice. In Python it is a warning, so `warnings.catch_warnings` silences it, or
    makes an error of it.
    """


class RunNotice(UserWarning):
    """What somebody who reads or writes a folder should know of it; the command line prints it as a notice."""
