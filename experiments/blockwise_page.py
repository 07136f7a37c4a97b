"""Put the tables of `experiments.blockwise`, `blockwise_text` and `blockwise_images` into docs/rules/blockwise.md.

    python -m experiments.blockwise_page

Nothing is trained: the rows are those of docs/results, and what stands between the marks of a table is replaced.
"""

from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from experiments import blockwise as images
from experiments import blockwise_text as text
from experiments.blockwise_images import WAYS, chosen_rate
from experiments.kept_rows import Row, kept_rows
from sidestep.bench.report import rounded_error
from sidestep.bench.studies.blocks import mean_and_error

__all__ = ["ablation_table", "image_table", "picture_table", "spread", "text_table"]

PAGE, RESULTS = Path("docs/rules/blockwise.md"), Path("docs/results")


def spread(values: Iterable[float], digits: int, sign: str = "") -> str:
    """Return the mean and, in brackets, its standard error; a single value as it is.

    >>> spread([1.0, 2.0, 3.0], 2), spread([1.0], 1)
    ('2.00 (0.58)', '1.0')
    """
    found = list(values)
    _, error = mean_and_error(found)
    return f"{mean(found):{sign}.{digits}f}" + ("" if error is None else f" ({rounded_error(error, digits)})")


def _by_way(rows: list[Row], order: list[str]) -> dict[str, list[Row]]:
    """Return the rows of every way by their seeds, the ways in order."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (order.index(row["way"]), row["seed"])):
        found.setdefault(row["way"], []).append(row)
    return found


def text_table(rows: list[Row]) -> str:
    """Return bits a character of every way and reading, with the distance to end to end, seed by seed."""
    ways = _by_way(rows, list(text.WAYS))
    base = [row["test"]["forward"]["bits"] for row in ways[text.END]]
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
    """Return test accuracy of every way and reading, the distance to end to end, seed by seed, and the memory."""
    memory = {row["way"]: row["MiB"] for row in rows if row["kind"] == "memory" and row.get("patch", 8) == 8}
    ways = _by_way([row for row in rows if row["kind"] == "run"], list(images.WAYS))
    base = [100 * row["test"]["forward"] for row in ways[images.END]]
    lines = [
        "| trained | rate | read by | test, % | less end to end | processor seconds | memory, of end to end |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, mine in ways.items():
        title = way
        for reading in mine[0]["test"]:
            test = [100 * row["test"][reading] for row in mine]
            less = [one - other for one, other in zip(test, base, strict=False)]
            grown = f"{memory[way] / memory[images.END]:.2f}" if title and way in memory else ""
            cells = [
                f"{mine[0]['rate']:g}" if title else "",
                reading,
                spread(test, 1),
                "" if way == images.END else spread(less, 1, "+"),
                spread([row["seconds"] for row in mine], 0) if title else "",
                grown,
            ]
            lines.append(f"| {title} | {' | '.join(cells)} |")
            title = ""
    return "\n".join(lines)


def ablation_table(rows: list[Row]) -> str:
    """Return validation accuracy of each change of three groups, beside end to end, one seed at half the steps."""
    ways: list[Row] = []
    for way in (images.END, images.GROUPS):
        tried = [row for row in rows if row["way"] == way and row["kind"] == "search"]
        ways += sorted(tried, key=lambda row: -max(row["validation"].values()))[:1]
    ways += sorted(
        (row for row in rows if row["kind"] == "ablation"), key=lambda row: list(images.CHANGES).index(row["way"])
    )
    readings = ["mean of groups", "walk", "group 1 alone"]
    lines = ["| three groups, but | mean of groups | walk | group 1 alone |", "|---|---|---|---|"]
    for row in ways:
        found = row["validation"]
        cells = [f"{100 * found[name]:.1f}" if name in found else "" for name in readings]
        if row["way"] == images.END:
            cells[0] = f"{100 * found['forward']:.1f}"
        title = {images.END: "end to end", images.GROUPS: "nothing changed"}.get(row["way"], row["way"])
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture_table(rows: list[Row]) -> str:
    """Return the Frechet distance of every way, at the rate that its search took."""
    lines = ["| made by | Frechet distance | rate | processor seconds |", "|---|---|---|---|"]
    taken = {way: chosen_rate(rows, way, least=3) for way in WAYS} | {"real": 0.0}
    ran = [row for row in rows if row["kind"] == "run" and row["rate"] == taken[row["way"]]]
    for way, mine in _by_way(ran, ["real", *WAYS]).items():
        seconds = spread([row["seconds"] for row in mine], 1) if "seconds" in mine[0] else ""
        rate = f"{mine[0]['rate']:g}" if mine[0]["rate"] else ""
        lines.append(f"| {way} | {spread([row['distance'] for row in mine], 2)} | {rate} | {seconds} |")
    return "\n".join(lines)


TABLES = {
    "text": text_table, "text-drawn": text_table, "images": image_table, "ablation": ablation_table,
    "pictures": picture_table,
}  # fmt: skip


def main() -> None:
    """Replace the tables whose rows there are."""
    page = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        rows = kept_rows(RESULTS / f"blockwise-{'images' if name == 'ablation' else name}.jsonl")
        if not rows:
            continue
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{PAGE} lacks the marks {begin} and {end}")
        page = f"{before}{begin}\n\n{table(rows)}\n\n{end}{after}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
