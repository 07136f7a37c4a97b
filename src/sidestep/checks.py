"""Numbers and choices that a user gives, held to what can be used; errors name the value and the remedy."""

import math
from dataclasses import fields
from numbers import Real
from typing import Any

from sidestep.errors import InputError

__all__ = ["check_multiple", "check_positive", "check_range", "check_used", "check_whole"]


def check_positive(most: float, /, **values: float) -> None:
    """Raise InputError for a hyper-parameter that is not above 0 and at most `most`."""
    for name, value in values.items():
        _check_number(name, value)
        if not 0 < value <= most:  # false for NaN too
            raise InputError(f"{name} must be above 0 and at most {most:g}, got {value}")


def check_range(low: float, high: float, **values: float) -> None:
    """Raise InputError for a hyper-parameter outside [low, high]."""
    for name, value in values.items():
        _check_number(name, value)
        if not low <= value <= high:
            ends = " and ".join(f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (low, high))
            raise InputError(f"{name} must lie between {ends}, got {value}")


def check_whole(low: int, high: int, **values: float) -> None:
    """Raise InputError for a hyper-parameter that is no whole number in [low, high]."""
    check_range(low, high, **values)
    for name, value in values.items():
        if value != int(value):
            raise InputError(f"{name} must be a whole number, got {value}")


def check_multiple(examples: int, name: str, value: int) -> None:
    """Raise InputError for a batch whose size is not a multiple of the hyper-parameter of that name and value."""
    if examples % value:
        raise InputError(
            f"the batch must be a multiple of {name} = {value}, got {examples} examples; change one of them"
        )


def check_used(rule: Any, option: str, choice: str, *users: str) -> None:
    """Raise InputError for an option that is not at its default where the rule's `choice` is none of its `users`."""
    value, chosen = getattr(rule, option), getattr(rule, choice)
    default = next(field.default for field in fields(rule) if field.name == option)
    if chosen not in users and value != default and not _rounded(value, default):
        raise InputError(
            f"{option} = {value} needs {choice} = {' or '.join(users)}, got {chosen}, which has no use for it; leave "
            f"{option} at its default, {default}"
        )


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} must be a number, got {value!r:.80}")


def _rounded(value: Any, default: Any) -> bool:
    """Whether a number is the default as float32 has it: NumPy's and torch's numbers may come so."""
    both = isinstance(value, float) and isinstance(default, float)
    return both and math.isclose(value, default, rel_tol=1e-7)
