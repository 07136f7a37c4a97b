"""A rule as plain values, for files of every kind; `sidestep.rules.rule_from_record` makes it again."""

from dataclasses import fields
from typing import Any

from sidestep.rules.protocol import Rule
from sidestep.rules.shared.whole_model import OnWholeModel

__all__ = ["WHOLE", "hyper_parameters", "rule_record"]

WHOLE = "whole_model"  # the entry that says that the rule trains a whole model of the user's


def hyper_parameters(rule: Rule) -> dict[str, Any]:
    """Return a rule's hyper-parameters by name as JSON and TOML have them: a tuple is a list."""
    rule = rule.rule if isinstance(rule, OnWholeModel) else rule
    values = {field.name: getattr(rule, field.name) for field in fields(rule)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def rule_record(rule: Rule) -> dict[str, Any]:
    """Return the name of a rule and its hyper-parameters, from which `rule_from_record` makes it again.

    >>> from sidestep.rules import Backprop, rule_from_record
    >>> rule_from_record(rule_record(Backprop(net="mlp"))) == Backprop(net="mlp")
    True
    """
    if isinstance(rule, OnWholeModel):
        return {**rule_record(rule.rule), WHOLE: True}
    return {"name": rule.name, **hyper_parameters(rule)}
