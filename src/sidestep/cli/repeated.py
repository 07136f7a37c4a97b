"""Options that take several values and may be given more than once: what all of them say counts."""

from collections.abc import Sequence
from typing import Annotated

import tyro

from sidestep.errors import InputError

__all__ = ["Repeated", "all_words", "settings"]

Repeated = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]  # --rows a b --rows c


def all_words(given: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the values of an option in the order in which they were given.

    >>> all_words((("a", "b"), ("c",)))
    ('a', 'b', 'c')
    """
    return tuple(word for words in given for word in words)


def settings(words: Sequence[str]) -> dict[str, int | float | str]:
    """Return name -> value of the NAME=VALUE of --set; a value that reads as a number is one.

    Raises:
        InputError: for a word of another form, or a name that is given twice.

    >>> settings(["steps=20", "start=noise"])
    {'steps': 20, 'start': 'noise'}
    """
    found: dict[str, int | float | str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise InputError(f"--set takes NAME=VALUE, for instance steps=200, got {word!r}")
        if name in found:
            raise InputError(f"--set gives {name} twice, {name}={found[name]} and {word}; give it once")
        found[name] = _number_or_text(value)
    return found


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
