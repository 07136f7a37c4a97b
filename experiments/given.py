"""Numbers that a command of an experiment is given, for argparse: it refuses others in one sentence."""

import argparse

__all__ = ["a_count", "a_seed", "a_share"]


def a_count(text: str) -> int:
    """Return a whole number from 1 on.

    >>> a_count("3")
    3
    """
    found = _whole(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, got {text!r}")
    return found


def a_seed(text: str) -> int:
    """Return a whole number from 0 on, of 63 bits at most.

    >>> a_seed("0")
    0
    """
    found = _whole(text)
    if not 0 <= found < 1 << 63:
        raise argparse.ArgumentTypeError(f"a whole number from 0 on is needed, got {text!r}")
    return found


def a_share(text: str) -> float:
    """Return a number from 0 to 1.

    >>> a_share("0.25")
    0.25
    """
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:  # false for NaN, too
        raise argparse.ArgumentTypeError(f"a number from 0 to 1 is needed, got {text!r}")
    return found


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, got {text!r}") from None
