"""Keywords that a function or a class does not take: an error that names the nearest, or where the keyword belongs."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from typing_extensions import Self

from sidestep.errors import InputError

__all__ = ["ALIASES", "KeywordError", "KnownKeywords", "known_keywords"]

Given = ParamSpec("Given")
Found = TypeVar("Found")

ALIASES = {"lr": "learning_rate", "batch_size": "batch", "wd": "weight_decay"}  # other libraries' names -> ours


class KeywordError(InputError, TypeError):
    """A keyword that is not one: the TypeError that Python raises, with the name that was meant."""


def known_keywords(*owners: type[Any]) -> Callable[[Callable[Given, Found]], Callable[Given, Found]]:
    """Let a function say which keyword was meant, where it is given one that it does not take.

    Args:
        owners: classes whose keywords are given to the function by mistake, such as `Options`; those of its arguments
            are known.

    >>> @known_keywords()
    ... def grow(height=1): ...
    >>> grow(hight=2)
    Traceback (most recent call last):
    sidestep.keywords.KeywordError: grow takes no hight: did you mean height?
    """

    def with_door(function: Callable[Given, Found]) -> Callable[Given, Found]:
        @wraps(function)
        def checked(*given: Given.args, **named: Given.kwargs) -> Found:
            try:
                return function(*given, **named)
            except TypeError:
                said = _unknown(function.__name__, function, given, named, owners)
                if said:
                    raise KeywordError(said) from None
                raise  # of what the function does

        return checked

    return with_door


class KnownKeywords:
    """Base of classes that say which keyword was meant, where they are made with one that they do not take."""

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Make the object, or raise KeywordError."""
        others = [each for each in _below(KnownKeywords) if each is not cls] if named else []
        said = _unknown(cls.__name__, cls.__init__, (cls, *given), named, others)
        if said:
            raise KeywordError(said)
        return super().__new__(cls)


def _unknown(
    what: str, function: Callable[..., Any], given: Sequence[Any], named: Mapping[str, Any], owners: Sequence[type] = ()
) -> str | None:
    """Return the sentence about the first keyword that a function does not take, or None if it takes all."""
    parameters = inspect.signature(function).parameters if named else {}
    wrong = next((name for name in named if name not in parameters), None)
    if wrong is None or any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return None
    left = list(parameters)[len(given) :]
    missing = [name for name in left if parameters[name].default is inspect.Parameter.empty and name not in named]
    kinds = [type(value) for value in (*given, *named.values()) if isinstance(value, KnownKeywords)]
    meant = _meant(wrong, named[wrong], left, [*kinds, *owners]) or (
        f": did you mean {missing[0]}?" if len(missing) == 1 else ""
    )
    missing = [name for name in missing if not meant.endswith(f" {name}?")]
    said = meant or f"; it takes {', '.join(left)}"
    return f"{what} takes no {wrong}{said}" + (f" ({' and '.join(missing)} is missing, too)" if missing else "")


def _meant(wrong: str, value: Any, own: Sequence[str], owners: Sequence[type]) -> str:
    """Return what follows a keyword that there is not: the nearest name, or whose it is; nothing if neither is known.

    It may be a name exactly as an owner has it, or nearly one of the function or its owners.
    """
    for pair in ALIASES.items():
        if wrong in pair and {*pair} & {*own}:
            return f": did you mean {pair[pair[0] == wrong]}?"
    name = ALIASES.get(wrong, wrong)
    takers = [kind for kind in owners if name in _names(kind)]
    if takers:
        return _belongs(takers, name, value)
    near = difflib.get_close_matches(wrong, own, 1)
    if near:
        return f": did you mean {near[0]}?"
    found = ((kind, difflib.get_close_matches(wrong, _names(kind), 1)) for kind in owners)
    return next((_belongs([kind], near[0], value) for kind, near in found if near), "")


def _belongs(takers: Sequence[type], name: str, value: Any) -> str:
    first = takers[0].__name__
    who = f"{first} does" if len(set(takers)) == 1 else f"{first} and others do"
    plain = isinstance(value, int | float | str) and len(repr(value)) <= 40
    return f"; {who}: {first}({name}={repr(value) if plain else '...'})"


def _names(kind: type[Any]) -> list[str]:
    return list(inspect.signature(kind.__init__).parameters)[1:]


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    each: type[Any]
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)
