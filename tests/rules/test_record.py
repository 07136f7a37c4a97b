"""A rule's record holds all that it takes to make it again."""

import dataclasses
import json

import pytest

from sidestep.errors import CheckpointError
from sidestep.rules import RULES, rule_from_record
from sidestep.rules.record import rule_record


@pytest.mark.parametrize("name", RULES)
def test_a_rule_comes_back_from_its_record_as_json_with_every_hyper_parameter(name):
    plain = RULES[name]()
    changed = [field.name for field in dataclasses.fields(plain) if isinstance(getattr(plain, field.name), float)]
    rule = plain
    for field in changed:
        try:
            rule = dataclasses.replace(rule, **{field: getattr(rule, field) / 2})
        except ValueError:  # half of it is not allowed
            continue
    assert rule_from_record(json.loads(json.dumps(rule_record(rule)))) == rule


def test_a_rule_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(CheckpointError, match=r"'no-such' is not there; there are: .*backprop"):
        rule_from_record({"name": "no-such"})
