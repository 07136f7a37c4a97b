"""Put the tables of `experiments.blockwise`, `blockwise_text` and `blockwise_images` into docs/rules/blockwise.md.

    python -m experiments.blockwise_page

Nothing is trained: the rows are those of docs/results, and what stands between the marks of a table is replaced.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

from experiments.blockwise_images import WAYS, chosen_rate
from experiments.kept_rows import Row, kept_rows

__all__ = ["image_table", "picture_table", "spread", "text_table"]

PAGE, RESULTS = Path("docs/rules/blockwise.md"), Path("docs/results")


def spread(values: Iterable[float], digits: int) -> str:
    """Return the mean and, in brackets, its standard error; a single value as it is.

    >>> spread([1.0, 2.0, 3.0], 2), spread([1.0], 1)
    ('2.00 (0.58)', '1.0')
    """
    found = list(values)
    if len(found) == 1:
        return f"{found[0]:.{digits}f}"
    return f"{mean(found):.{digits}f} ({stdev(found) / math.sqrt(len(found)):.{digits}f})"


def _by_way(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault(row["way"], []).append(row)
    return found


def text_table(rows: list[Row]) -> str:
    """Return bits a character of every way and reading, with the distance to end to end, seed by seed."""
    ways = _by_way(rows)
    base = [row["test"]["forward"]["bits"] for row in ways["end to end"]]
    lines = [
        "| trained | read by | test bits | above end to end | validation bits | right, % |",
        "|---|---|---|---|---|---|",
    ]
    for way, mine in ways.items():
        title = way
        for reading in mine[0]["test"]:
            test = [row["test"][reading]["bits"] for row in mine]
            above = spread([one - other for one, other in zip(test, base, strict=False)], 3)
            cells = [
                spread(test, 3), "" if way == "end to end" else above,
                spread([row["validation"][reading]["bits"] for row in mine], 3),
                spread([100 * row["test"][reading]["right"] for row in mine], 1),
            ]  # fmt: skip
            lines.append(f"| {title} | {reading} | {' | '.join(cells)} |")
            title = ""
    return "\n".join(lines)


def image_table(rows: list[Row]) -> str:
    """Return test accuracy of every way and reading, and the memory that a process grows by."""
    memory = {row["way"]: row["MiB"] for row in rows if row["kind"] == "memory"}
    ways = _by_way([row for row in rows if row["kind"] == "accuracy"])
    lines = ["| trained | read by | test, % | MiB | processor seconds |", "|---|---|---|---|---|"]
    for way, mine in ways.items():
        title, grown = way, memory.get(way.replace(" below 0.5", ""))
        for reading in mine[0]["test"]:
            test = spread([100 * row["test"][reading] for row in mine], 2)
            more = [f"{grown:.1f}", spread([row["seconds"] for row in mine], 1)] if title else ["", ""]
            lines.append(f"| {title} | {reading} | {test} | {' | '.join(more)} |")
            title = ""
    return "\n".join(lines)


def picture_table(rows: list[Row]) -> str:
    """Return the Frechet distance of every way, at the rate that its search took."""
    lines = ["| made by | Frechet distance | rate | processor seconds |", "|---|---|---|---|"]
    taken = {way: chosen_rate(rows, way, least=3) for way in WAYS} | {"real": 0.0}
    ran = [row for row in rows if row["kind"] == "run" and row["rate"] == taken[row["way"]]]
    for way, mine in _by_way(ran).items():
        seconds = spread([row["seconds"] for row in mine], 1) if "seconds" in mine[0] else ""
        rate = f"{mine[0]['rate']:g}" if mine[0]["rate"] else ""
        lines.append(f"| {way} | {spread([row['distance'] for row in mine], 2)} | {rate} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    """Replace the tables whose rows there are."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (("text", text_table), ("images", image_table), ("pictures", picture_table)):
        rows = kept_rows(RESULTS / f"blockwise-{name}.jsonl")
        if not rows:
            continue
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{PAGE} lacks the marks {begin} and {end}")
        text = f"{before}{begin}\n\n{table(rows)}\n\n{end}{after}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
