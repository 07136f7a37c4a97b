"""README is short, opens with what to run, and its table of rules says what the rules themselves declare."""

import re
from pathlib import Path

import pytest

from sidestep.rules import RULES
from sidestep.rules.support import support_of

README = Path(__file__).resolve().parents[2] / "README.md"
MODULES = {
    "any": "any module",
    "stages": "a chain of stages",
    "residual": "a chain of residual blocks",
    "blocks": "a module in each block",
    "none": "no module",
}
LOGS = {"no": [], "yes": ["log"], "own loop": ["log in own loop"]}


def rows() -> dict[str, list[str]]:
    """The cells of each row whose first cell is a link to a rule's page, by the rule's name."""
    found = re.findall(r"^\| \[`([\w-]+)`\]\(docs/rules/\1\.md\) \|(.+)\|$", README.read_text(encoding="utf-8"), re.M)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in found}


def test_every_rule_has_one_row_with_no_empty_cell():
    table = rows()
    assert set(table) == set(RULES)
    assert all(len(cells) == 4 and all(cells) for cells in table.values())


@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_takes_is_what_it_declares(name):
    support = support_of(RULES[name])
    expected = [
        MODULES[support["module"]],
        *(["own loop"] if support["own_loop"] != "none" else []),
        *(["any targets"] if "own" in support["targets"] else support["targets"]),
        *(["tokens"] if {"own", "tokens"} <= set(support["targets"]) else []),
        *LOGS[support["log"]],
    ]
    assert rows()[name][-1] == ", ".join(expected)


def test_what_is_said_of_all_rules_holds_for_all():
    assert all(set(support_of(kind)["inputs"]) >= {"image", "features"} for kind in RULES.values())
    for kind in RULES.values():
        targets = set(support_of(kind)["targets"])
        assert "own" not in targets or targets - {"tokens"} == {"classes", "labels", "values", "own"}


def test_it_is_short_and_opens_with_what_to_run():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    opening = "\n".join(lines[:10])
    assert "make demo" in opening
    assert "make test" in opening
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
