"""How fast those who take part in a step are, and how many of its parts each is given for it."""

from collections.abc import Mapping
from statistics import median

__all__ = ["Pace", "given_out"]

_NEW = 0.3  # weight of the newest


class Pace:
    """Seconds that a part takes somebody, as a moving average; None before the first."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def took(self, seconds: float, parts: int) -> None:
        """Take note of how long some parts have taken, one after another."""
        each = seconds / parts
        self.seconds = each if self.seconds is None else (1 - _NEW) * self.seconds + _NEW * each


def given_out(count: int, paces: Mapping[int, Pace]) -> dict[int, int]:
    """Return part -> member: one each while there are some, then such that all end at about the same time.

    Whoever has not shown yet how fast it is counts as the median of the others.

    >>> fast, slow = Pace(), Pace()
    >>> fast.took(1.0, 1), slow.took(3.0, 1)
    (None, None)
    >>> given_out(5, {0: fast, 7: slow}), given_out(3, {0: Pace(), 7: Pace()})
    ({0: 0, 1: 7, 2: 0, 3: 0, 4: 0}, {0: 0, 1: 7, 2: 0})
    """
    known = [pace.seconds for pace in paces.values() if pace.seconds is not None]
    usual = median(known) if known else 1.0
    each = {member: usual if pace.seconds is None else pace.seconds for member, pace in paces.items()}
    busy = dict.fromkeys(each, 0.0)
    found, first = {}, list(each)
    for part in range(count):
        member = first[part] if part < len(first) else min(each, key=lambda one: busy[one] + each[one])
        busy[member] += each[member]
        found[part] = member
    return found
