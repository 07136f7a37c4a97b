"""Rows of the experiments on blockwise: what is still to be run, at which rate, and the tables made of them."""

import pytest

from experiments import blockwise as images
from experiments.blockwise_page import ablation_table, image_table, text_table

SEARCH = {"kind": "search", "seed": images.SEARCH_SEED, "steps": 10, "patch": 8}


def searched(way, best, readings=("forward",)):
    return [
        SEARCH | {"way": way, "rate": rate, "validation": dict.fromkeys(readings, 0.5 - abs(rate - best))}
        for rate in images.RATES
    ]


def test_a_rate_is_taken_by_validation_and_nothing_runs_before():
    rows = searched(images.GROUPS, 2e-3)
    assert images.chosen_rate(rows[:2], images.GROUPS, 20) is None
    assert not images.wanted_rows(rows[:2], ["run", "ablation"], 20, 8)
    wanted = images.wanted_rows(rows, ["run", "ablation"], 20, 8)
    assert {row["rate"] for row in wanted} == {2e-3}
    assert {row["way"] for row in wanted if row["kind"] == "ablation"} == set(images.CHANGES)
    ran = {row["way"] for row in wanted if row["kind"] == "run"}
    assert ran == {way for way in images.WAYS if images.searched(way) == images.GROUPS}
    assert len(images.wanted_rows([*rows, wanted[0]], ["run", "ablation"], 20, 8)) == len(wanted) - 1


@pytest.mark.parametrize("way", [*images.WAYS, *images.CHANGES])
def test_every_way_is_a_rule(way):
    rule = images.rule_of({"way": way, "rate": 1e-3, "patch": 8})
    assert rule.groups == ({"B = 2": 2, "B = 4": 4, "B = 6": 6}.get(way[-5:], 1 if "four" in way else 3))


def test_the_table_of_pictures_has_differences_seed_by_seed():
    def row(way, seed, test):
        return {"way": way, "seed": seed, "kind": "run", "rate": 1e-3, "seconds": 1.0, "test": test}

    rows = [row(images.END, seed, {"forward": 0.4 + seed / 100}) for seed in (0, 1)]
    rows += [row(images.GROUPS, seed, {"mean of groups": 0.39 + seed / 100, "walk": 0.3}) for seed in (0, 1)]
    rows += [{"way": way, "kind": "memory", "MiB": size} for way, size in ((images.END, 80.0), (images.GROUPS, 20.0))]
    lines = image_table(rows).splitlines()
    assert lines[2] == "| end to end | 0.001 | forward | 40.5 (0.5) |  | 1 (0) | 1.00 |"
    assert lines[3] == "| blockwise, B = 3 | 0.001 | mean of groups | 39.5 (0.5) | -1.0 (0) | 1 (0) | 0.25 |"
    assert lines[4] == "|  |  | walk | 30.0 (0) | -10.5 (0.5) |  |  |"


def test_the_table_of_changes_begins_with_what_the_searches_took():
    names = ("mean of groups", "walk", "group 1 alone")
    rows = searched(images.END, 1e-3) + searched(images.GROUPS, 5e-4, names)
    rows.append({"way": "B = 2", "kind": "ablation", "validation": dict.fromkeys(names, 0.25)})
    lines = ablation_table(rows).splitlines()
    assert lines[2:] == [
        "| end to end | 50.0 |  |  |", "| nothing changed | 50.0 | 50.0 | 50.0 |", "| B = 2 | 25.0 | 25.0 | 25.0 |"
    ]  # fmt: skip


def test_bits_are_compared_with_end_to_end_of_the_same_seed():
    def row(way, seed, bits):
        found = {"forward" if way == "end to end" else "walk": {"bits": bits, "right": 0.25}}
        return {"way": way, "seed": seed, "test": found, "validation": found}

    rows = [row("to 0.5", 1, 3.1), row("end to end", 0, 3.0), row("to 0.5", 0, 3.2), row("end to end", 1, 2.9)]
    lines = text_table(rows).splitlines()
    assert lines[2].startswith("| end to end | forward | 2.950 (0.050) |  |")
    assert lines[3].startswith("| to 0.5 | walk | 3.150 (0.050) | 0.200 (0) |")
