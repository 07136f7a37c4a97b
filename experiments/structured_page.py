"""Put the tables of `experiments.structured_targets` into docs/structured-targets.md.

    python -m experiments.structured_page [--rows docs/results/structured-targets.jsonl]

Nothing is trained, and the same rows give the same page; what stands between its marks is replaced.
"""

import argparse
import math
from pathlib import Path
from statistics import mean

from experiments.kept_rows import Row, kept_rows
from experiments.structured_nets import BLOCKS
from experiments.structured_targets import LEAST, NARROW, PRIMARY, SEEDS, TASKS, WAYS, chosen_rate, searched
from experiments.structured_tasks import TESTED
from sidestep.bench.report import rounded_error
from sidestep.bench.studies.blocks import mean_and_error

__all__ = ["difference", "tables", "taken_reading"]

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
PAGE, ROWS = Path("docs/structured-targets.md"), Path("docs/results/structured-targets.jsonl")
PLAIN = {
    "plain": "plain net",
    "joint": "plain net, one class for each answer",
    "energy": "plain net with a noise input, energy score",
    "plain twice": "plain net, twice the steps",
}
STACK = {
    "walk": (f"walk to block {BLOCKS}",),
    "sampled walk": ("sampled walk",),
    "mean of blocks along the walk": ("mean of blocks along the walk",),
    "block 1 alone": ("block 1 alone",),
    "best block alone": tuple(f"block {index + 1} alone" for index in range(BLOCKS)),
    "mean of blocks, each alone": ("mean of blocks alone",),
}
TITLES = {
    "chain": "NoProp", "blind": "blocks that never see a target", "blocks end to end": "the same blocks end to end"
}  # fmt: skip
READ = {"chain": tuple(STACK), "blind": tuple(STACK)[4:], "blocks end to end": ("walk", "sampled walk")}
SHARES = {"string", "hidden digit", "string, of draws", "both right", "both right, of draws", "recognised"}


def taken_reading(row: Row, reading: str) -> str:
    """Return the reading's name within a row; of several blocks the one that the row's validation part takes."""
    sign = -1 if PRIMARY[row["task"]] in LEAST else 1
    return max(STACK[reading], key=lambda name: sign * row["validation"][name][PRIMARY[row["task"]]])


def _values(rows: list[Row], way: str, reading: str, score: str) -> list[float]:
    """Return a score for each seed, shares in %."""
    factor = 100 if score in SHARES else 1
    mine = sorted((row for row in rows if row["way"] == way), key=lambda row: row["seed"])
    return [
        factor * row["test"]["forward" if reading == "forward" else taken_reading(row, reading)][score] for row in mine
    ]


def _cell(values: list[float], score: str) -> str:
    """Return mean and standard error over seeds, and of shares that of the test set."""
    digits, centre, (_, spread) = (1 if score in SHARES else 3), mean(values), mean_and_error(values)
    error = "-" if spread is None else rounded_error(spread, digits)
    test = f"; {math.sqrt(max(0, centre * (100 - centre)) / TESTED):.1f}" if score in SHARES else ""
    return f"{centre:.{digits}f} ({error}{test})"


def _lines(rows: list[Row], task: str) -> list[str]:
    names = list(next(iter(rows[0]["test"].values())))
    found = [f"| net | reading | {' | '.join(names)} | seconds |", f"|---|---|{'---|' * (len(names) + 1)}"]
    for way in WAYS[task]:
        mine = [row for row in rows if row["way"] == way]
        if len(mine) < len(SEEDS):
            continue
        base = way.removesuffix(NARROW)
        title = (TITLES | PLAIN)[base] + (", narrow" if way.endswith(NARROW) else "")
        seconds = f"{mean(row['seconds'] for row in mine):.0f}"
        for reading in READ.get(base, ("forward",)):
            cells = [_cell(_values(rows, way, reading, name), name) for name in names]
            found.append(f"| {title} | {reading} | {' | '.join(cells)} | {seconds} |")
            title, seconds = "", ""
    return found


def difference(rows: list[Row], one: tuple[str, str], other: tuple[str, str], score: str) -> tuple[float, float]:
    """Return the mean difference of two readings, (way, reading) each, seed by seed, and its standard error.

    Raises:
        ValueError: for a single seed, which has none.
    """
    values = [a - b for a, b in zip(_values(rows, *one, score), _values(rows, *other, score), strict=True)]
    centre, error = mean_and_error(values)
    if error is None:
        raise ValueError(f"a difference of one seed has no standard error: {one}, {other}")
    return centre, error


def _differences(rows: list[Row], task: str) -> list[str]:
    score, found = PRIMARY[task], []
    reading = "walk" if task == "strings" else "sampled walk"
    count = {way: sum(row["way"] == way for row in rows) for way in WAYS[task]}
    there = {way for way, rows_of_way in count.items() if rows_of_way == len(SEEDS)}
    for end in ("", NARROW):
        others = [("chain", "best block alone"), ("chain", "mean of blocks, each alone")]
        others += [("blind", "mean of blocks, each alone"), ("blocks end to end", "walk")]
        others += [(name, "forward") for name in PLAIN]
        for way, other in others:
            if way + end not in there or "chain" + end not in there:
                continue
            centre, error = difference(rows, ("chain" + end, reading), (way + end, other), score)
            digits = 1 if score in SHARES else 3
            name = (TITLES | PLAIN)[way] + ("" if other == "forward" else f", {other}")
            what = f"{reading}{',' + end if end else ''} - {name}"
            found.append(f"| {what} | {centre:+.{digits}f} ({rounded_error(error, digits)}) |")
    return [f"| {score} | difference (standard error over seeds) |", "|---|---|", *found]


def _at_its_rate(rows: list[Row], row: Row) -> bool:
    """Whether a run has the rate that its search took: rows of a narrower search may stand in the file, too."""
    return bool(row["rate"] == chosen_rate(rows, row["task"], searched(row["way"]), row["steps"]))


def tables(rows: list[Row]) -> str:
    """Return the tables of all tasks, in Markdown."""
    parts = []
    for task in TASKS:
        mine = [row for row in rows if row["task"] == task and row["kind"] == "run" and _at_its_rate(rows, row)]
        if mine:
            parts += [f"### {task.capitalize()}", "\n".join(_lines(mine, task)), "\n".join(_differences(mine, task))]
    return "\n\n".join(parts)


def main() -> None:
    """Replace the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--show", action="store_true", help="print the tables, and leave the page alone")
    given = parser.parse_args()
    made = tables(kept_rows(given.rows))
    if given.show:
        print(made)
        return
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE} lacks the marks {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
