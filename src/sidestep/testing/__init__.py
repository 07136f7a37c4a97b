"""What every learning rule promises, as checks that a rule of your own can be put to.

>>> import pytest
>>> from sidestep import rules, testing
>>> @pytest.mark.parametrize("check", testing.CHECKS)
... def test_my_rule(check):
...     testing.check_rule(rules.LocalLoss(hidden=(8,)), only=check)
"""

import os
from collections.abc import Callable, Collection

from sidestep.data import DataSet
from sidestep.errors import InputError
from sidestep.rules.protocol import Rule
from sidestep.testing import runs, steps
from sidestep.testing.subject import CheckFailedError, Subject, small_data
from sidestep.training.given import given_data

__all__ = ["CHECKS", "CheckFailedError", "check_rule"]

CHECKS: dict[str, Callable[[Subject], None]] = {  # in the order of their files: what later ones build on comes first
    name: getattr(module, name)
    for module in (steps, runs)
    for name in sorted(module.__all__, key=lambda name: getattr(module, name).__code__.co_firstlineno)
}


def check_rule(
    rule: Rule,
    data: DataSet | str | os.PathLike[str] | None = None,
    *,
    only: str | Collection[str] | None = None,
) -> None:
    """Put a rule to the checks that every rule passes; it takes seconds with small nets.

    The net that the rule builds should be small, and its options such that something is learned. A check without an
    object, such as that of the log of a rule that leaves none, passes.

    Args:
        rule: with its hyper-parameters; it need not stand in `rules.RULES`.
        data: a data set, or the name of one; by default 128 made-up images, or rows of features, in four classes.
        only: the name of a check, or several, of `CHECKS`; by default all.

    Raises:
        CheckFailedError: an AssertionError: which check, and what the rule does that it should not.
        InputError: for something that is no rule, a name of no check, or data that the rule does not take.

    >>> from sidestep import rules, testing
    >>> testing.check_rule(rules.LocalLoss(hidden=(8,)), only=["units_cover", "estimate_leaves_the_net"])
    """
    if not isinstance(rule, Rule):
        raise InputError(f"check_rule takes a rule, with its hyper-parameters, got {rule!r:.80}; make one, MyRule()")
    names = list(CHECKS) if only is None else [only] if isinstance(only, str) else list(only)
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise InputError(f"there is no check {unknown[0]!r}; there are: {', '.join(CHECKS)}")
    subject = Subject(rule, small_data(rule) if data is None else given_data(data))
    for name in names:
        try:
            CHECKS[name](subject)
        except CheckFailedError as failed:
            raise CheckFailedError(f"{name}, of {rule.name}: {failed}") from None
        except Exception as error:
            raise CheckFailedError(f"{name}, of {rule.name}: {type(error).__name__}: {error}") from error
