"""Which rules train a model through the Trainer of another library, which gives its loss and nothing else of it."""

from typing import Any

from sidestep.errors import InputError
from sidestep.rules.shared.any_module import trains_any
from sidestep.training.evaluate import check_rule

__all__ = ["check_for_trainer"]


def check_for_trainer(rule: Any) -> None:
    """Raise InputError unless a rule needs no more of a model than its loss."""
    check_rule(rule)
    if not trains_any(rule):
        raise InputError(
            f"{getattr(rule, 'name', type(rule).__name__)} needs more of a model than its loss, which is what a "
            "Trainer gives; take SPSA(), Evolution(per='group'), ForwardGradient(kind='weights') or Backprop(), "
            "or a loop of your own, sidestep.attach"
        )
