"""Words that messages and pages have in common."""

import difflib
from collections.abc import Iterable

__all__ = ["counted", "suggestion"]


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, one of it or several.

    >>> counted(1, "seed"), counted(3, "inference run"), counted(1.0, "epoch")
    ('1 seed', '3 inference runs', '1 epoch')
    """
    return (f"{number:,}" if isinstance(number, int) else f"{number:g}") + f" {noun}" + "s" * (number != 1)


def suggestion(given: str, known: Iterable[str], listing: str) -> str:
    """Return a clause that lists what is known, after the nearest of it to a name that is not, if one is near.

    >>> suggestion("mnits", ["mnist", "digits"], "there are: mnist, digits")
    'did you mean mnist? There are: mnist, digits'
    >>> suggestion("x", ["mnist", "digits"], "there are: mnist, digits")
    'there are: mnist, digits'
    """
    near = difflib.get_close_matches(given, list(known), 1)
    return f"did you mean {near[0]}? {listing[:1].upper()}{listing[1:]}" if near else listing
