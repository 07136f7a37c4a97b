"""What a loader has to tell of data that it can read but had to change: Python warnings of a kind of their own."""

from sidestep.notices import DataNotice, tell

__all__ = ["DataNotice", "report"]


def report(sentence: str) -> None:
    """Warn with a DataNotice at the line outside this package that has asked for the data."""
    tell(sentence, DataNotice)
