"""The door of every rule: a net that it did not build is refused, and the message says what to call instead."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from sidestep.errors import InputError

if TYPE_CHECKING:
    from sidestep.rules.protocol import Rule

__all__ = ["built"]

N = TypeVar("N", bound=nn.Module)

_LET_IN: "WeakKeyDictionary[nn.Module, Rule]" = WeakKeyDictionary()  # net -> the last rule that took it


def built(
    net: nn.Module, kind: type[N] | tuple[type[N], ...], rule: "Rule", fits: Callable[[N], bool] = lambda _: True
) -> N:
    """Return `net` as what it is, if it is what the rule builds.

    A rule's estimate of any other net would be another rule's, such as the back-propagated gradient, or none.

    Args:
        net: what a method of the rule was given.
        kind: the class, or classes, of the nets that the rule builds.
        rule: the rule.
        fits: whether a net of that class is one of this rule's with its hyper-parameters.

    Raises:
        InputError: for another net; it says which rule needs what, and what to call.
    """
    if _LET_IN.get(net) is rule:  # looked at before: a walk through the net at each of a step's methods takes its time
        return net  # type: ignore[return-value]
    if isinstance(net, kind) and fits(net):
        _LET_IN[net] = rule
        return net
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted, given = " or ".join(one.__name__ for one in kinds), type(net).__name__
    others = " that was built by another rule or for other hyper-parameters" if isinstance(net, kind) else ""
    raise InputError(
        f"{rule.name} works on the net that it builds itself ({wanted}), got {given}{others}; call net = "
        "rule.build(task, noise, examples, module) first, or train(rule, data, module=...), which does all of it"
    )
