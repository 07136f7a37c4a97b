"""Every number that README claims stands in a row of the page that its row links to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def claims() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What it reaches")[2]
    table = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return table[2:]


def numbers_of(row: str) -> set[str]:
    return set(re.findall(r"\d+\.\d+(?= \()", row))  # those with an error behind them


def test_there_are_claims():
    assert len(claims()) >= 6


@pytest.mark.parametrize("row", claims(), ids=lambda row: row.split("|")[1].strip())
def test_a_claim_is_linked_to_the_rows_that_it_rests_on(row):
    page = re.search(r"\]\((docs/[^)#]+)", row)
    assert page, f"no page is linked by {row}"
    rows = [line for line in (ROOT / page[1]).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    found = {number for line in rows for number in re.findall(r"\d+\.\d+", line)}
    assert numbers_of(row)
    assert numbers_of(row) <= found, f"{page[1]} has no row with {numbers_of(row) - found}"
