"""What is known of every rule, for tables: what it takes, and which of the optional methods it has."""

import dataclasses
from typing import Any

from sidestep.rules.protocol import HasTrueGradient, Rule, UnitByUnit
from sidestep.rules.shared.any_module import trains_any
from sidestep.rules.shared.chain import ChainOfStages

__all__ = ["support_of"]


def support_of(kind: type[Rule]) -> dict[str, Any]:
    """Return a rule's `takes` as plain values, and what follows from its methods.

    own_loop: what `attach` trains by it: any (module), stages (of a chain), or none.
    units_in_turn: whether its units can take their steps one after another.
    true_gradient: whether its estimates can be measured against the gradient end to end.

    >>> from sidestep.rules import SPSA
    >>> support_of(SPSA)["own_loop"], support_of(SPSA)["units_in_turn"]
    ('any', False)
    """
    takes, rule = dataclasses.asdict(kind.takes), kind()
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in takes.items()},
        "own_loop": "any" if trains_any(rule) else "stages" if isinstance(rule, ChainOfStages) else "none",
        "units_in_turn": issubclass(kind, UnitByUnit),
        "true_gradient": issubclass(kind, HasTrueGradient),
    }
