"""Every number that README claims stands in the rows that it links to, and so does its verdict."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def part() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What it reaches")[2]
    return text.partition("\n## ")[0]


def claims() -> list[str]:
    return [line for line in part().splitlines() if line.startswith("|")][2:]


def rows(link: str) -> dict[str, list[str]]:
    """Return the rows of a section's first table, by their first cell: docs/PAGE.md#SECTION."""
    page, section = link.split("#")
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    starts = [i for i, line in enumerate(lines) if re.sub(r"^#+ ", "", line).lower().replace(" ", "-") == section]
    assert len(starts) == 1, f"{page} has {len(starts)} sections {section}"
    after = lines[starts[0] + 1 :]
    end = next((i for i, line in enumerate(after) if line.startswith("#")), len(after))
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in after[:end] if line.startswith("|")]
    assert found, f"{link} has no table"
    return {cells[0]: cells for cells in found[2:]}


def accuracies(row: str) -> set[str]:
    return set(re.findall(r"\d+\.\d+ \([^)]*\)", row))  # with their errors


def test_there_are_claims():
    assert len(claims()) >= 6


RESTS_ON = {  # a claim's first cell -> its row, and the one that is beside it
    "`local-loss`, MLP": ("local-loss", "backprop"),
    "`noise-step` by local probes, forward-only, ternary MLP": ("noise-step-forward", "adam-ternary"),
    "`local-loss`, conv net": ("local-loss", "backprop"),
    "`feedback-alignment --feedback kolen-pollack`, conv net": ("kolen-pollack", "backprop"),
    "`noise-step`, ternary conv net": ("noise-step", "adam-ternary"),
    "`noprop-dt`, three blocks, 12,000 images once, three seeds": ("noprop-dt", "backprop"),
}


@pytest.mark.parametrize("row", claims(), ids=lambda row: row.split("|")[1].strip())
def test_a_claim_is_linked_to_the_rows_that_it_rests_on(row):
    link = re.search(r"\]\((docs/[^)]+#[^)]+)", row)
    assert link, f"no section is linked by {row}"
    found = rows(link[1])
    own, beside = (found[name] for name in RESTS_ON[row.split("|")[1].strip()])
    claimed = [accuracy for cell in row.split("|")[3:] for accuracy in accuracies(cell)]
    assert len(claimed) == 2
    assert claimed[0] in own, f"{link[1]} has no such row with {claimed[0]}"
    assert claimed[1] in beside, f"{link[1]} has no such row with {claimed[1]}"


def difference(row: list[str]) -> tuple[float, float, float]:
    """Return a row's difference from back-propagation, with its interval."""
    (found,) = [re.fullmatch(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)", cell) for cell in row if " to " in cell]
    assert found
    return float(found[1]), float(found[2]), float(found[3])


def test_the_verdict_is_what_the_rows_say():
    """Each figure of the verdict, by its own words, which change with it."""
    said = " ".join(part().partition("The verdict: ")[2].split())
    words = (
        r"local losses are (\S+) points above back-propagation, \[level\]\((\S+)\) or (\S+) below "
        r"\((\S+) if it gets their heads\); NoProp's blocks are level with a chain with \[a loss at each\]\((\S+)\); "
        r"all else here is at most level, unless back-propagation \[fails\]\((\S+)\)"
    )
    found = re.match(words, said)
    assert found, said
    above, level, below, heads, blocks, failed = found.groups()
    mlp, cifar = rows("docs/rules-compared.md#mlp-on-mnist"), rows("docs/rules-cifar10.md#conv-on-cifar10")
    assert round(difference(mlp["local-loss"])[0], 1) == float(above)
    assert difference(rows(level)["local-loss"])[1] <= 0 <= difference(rows(level)["local-loss"])[2]
    assert round(-difference(cifar["local-loss"])[0], 1) == float(below)
    with_heads = difference(cifar["deep-supervision"])[0] - difference(cifar["local-loss"])[0]
    assert float(heads) == pytest.approx(with_heads, abs=0.051)
    ten = rows(blocks)
    one, other = (difference(ten[name]) for name in ("noprop-dt", "deep-supervision"))
    assert one[2] >= other[1]  # their intervals overlap
    assert other[2] >= one[1]
    every = [mlp, rows(level), cifar, rows("docs/rules-compared.md#blocks-3-on-mnist")]
    others = [difference(cells) for table in every for name, cells in table.items()
              if name not in ("local-loss", "deep-supervision") and any(" to " in cell for cell in cells)]  # fmt: skip
    assert len(others) >= 40
    assert all(low <= 0 for _, low, _ in others)
    page, section = failed.split("#")
    assert section == "blocks-1-on-mnist"
    text = (ROOT / page).read_text(encoding="utf-8").partition("\n### blocks-1 on mnist\n")[2]
    assert "The seeds of backprop have from" in text.partition("\n### ")[0]


COPIES = {  # page -> its rows' first cells -> rows of the suite
    "docs/results.md": {"`local-loss`": "local-loss", "back-propagation with a loss at each stage": "deep-supervision",
                        "`feedback-alignment`": "feedback-alignment", "the same, Kolen-Pollack": "kolen-pollack",
                        "`direct-feedback-alignment`": "direct-feedback-alignment"},
    "docs/rules/local-loss.md": {"`local-loss`": "local-loss",
                                 "back-propagation with a loss at each stage": "deep-supervision"},
    "docs/rules/feedback-alignment.md": {"`random`": "feedback-alignment", "`sign-symmetric`": "sign-symmetric",
                                         "`kolen-pollack`": "kolen-pollack"},
    "docs/rules/direct-feedback-alignment.md": {"`direct-feedback-alignment`": "direct-feedback-alignment"},
    "docs/rules/hebbian.md": {"`winner`": "hebbian", "random ones that do not learn": "hebbian-random"},
}  # fmt: skip


@pytest.mark.parametrize("page", COPIES)
def test_differences_are_those_of_the_suite(page):
    sections = ("rules-compared.md#mlp-on-mnist", "rules-compared.md#conv-on-mnist", "rules-cifar10.md#conv-on-cifar10")
    tables = [rows(f"docs/{section}") for section in sections]
    pattern = r"[+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)"
    text = (ROOT / page).read_text(encoding="utf-8")
    copied = [line for line in text.splitlines() if re.search(pattern, line)]
    assert {line.split("|")[1].strip() for line in copied} == COPIES[page].keys()
    for line in copied:
        name = COPIES[page][line.split("|")[1].strip()]
        assert re.findall(pattern, line) == [re.findall(pattern, " ".join(table[name]))[0] for table in tables]
