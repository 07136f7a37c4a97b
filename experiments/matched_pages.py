"""Make the pages of the matched suite, and put their tables into docs/rules-compared.md and docs/rules-cifar10.md.

The rows of ternary nets, with those of float nets to compare them with, go into docs/ternary-results.md, too.

    python -m experiments.matched_pages [--runs runs/matched] [--budget quick]

Nothing is trained: the runs are those of `sidestep bench --suite matched`, in --runs or already in docs/results, and
the same records give the same pages. What stands between the marks of a page is replaced; the rest is left alone.
"""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from experiments.given import a_count
from sidestep.bench.suite.page import write_pages
from sidestep.bench.suite.records import SuiteRecords
from sidestep.bench.suite.suite import Suite, chosen_rows, file_of
from sidestep.bench.suite.table import rows_of
from sidestep.cli.suite import SuiteOptions

BEGIN, END = "<!-- the matched suite -->", "<!-- end of the matched suite -->"
PAGES = {"mnist": Path("docs/rules-compared.md"), "cifar10": Path("docs/rules-cifar10.md")}
STAGES, BLOCKS = ("mlp", "conv"), ("blocks-1", "blocks-3", "blocks-10")
NETS = {"mnist": STAGES + BLOCKS, "cifar10": STAGES}
REPORT = Path("docs/results")
TRIALS = SuiteOptions.trials
TERNARY = Path("docs/ternary-results.md")
TERNARY_ROWS = ("linear", "backprop", "adam-ternary", "noise-step", "noise-step-forward")
TERNARY_COLUMNS = ("row", "matched", "seeds", "test % (seeds; test set)", "less backprop, points (95 %)",
                   "forward passes a step", "processor s a run", "step's tensors, MiB")  # fmt: skip


def put_into(page: Path, made: Path) -> None:
    """Replace what stands between the marks of a page by a page of the suite without its title, a level further down.

    Raises:
        ValueError: if a mark is missing.
    """
    lines = made.read_text(encoding="utf-8").split("\n\n", 1)[1].rstrip().splitlines()
    body = "\n".join(f"#{line}" if line.startswith("## ") else line for line in lines)
    kept = f"The records of all runs lie beside [this page](results/{made.name})."
    replace_between_marks(page, f"{kept}\n\n{body}")


def replace_between_marks(page: Path, body: str) -> None:
    """Replace what stands between the marks of a page.

    Raises:
        ValueError: if a mark is missing.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")


def seeds_of(suite: Suite, data: str, net: str) -> int:
    """Return the most seeds that a trained row of a net has, by the records of docs/results and the suite's folder."""
    records = SuiteRecords(file_of(suite.out, data, net), {})
    records.take(REPORT / f"matched-{data}-{net}.jsonl")
    return max((len(each.runs) for each in rows_of(suite, data, net, records) if not each.row.counted), default=0)


def part_of_tables(text: str, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Return some rows and columns of every table of stages on a page of the suite, with its net and machine.

    >>> lines = ["# t", "", "## mlp", "", "| row | a | b |", "| --- | --- | --- |", "| x | 1 | 2 |", "| y | 3 | 4 |"]
    >>> part_of_tables("\\n".join(lines), ["y"], ["row", "b"]).splitlines()
    ['### mlp', '', '| row | b |', '| --- | --- |', '| y | 4 |']
    """
    found = []
    for section in text.split("\n## ")[1:]:
        first = section[section.find("| row") :].partition("\n\n")[0]
        lines = [line[2:-2].split(" | ") for line in first.splitlines()]
        if not set(columns) <= set(lines[0]) or section.startswith(BLOCKS):
            continue
        places = [lines[0].index(name) for name in columns]
        kept = [line for line in lines if line in lines[:2] or line[0] in rows]
        table = "\n".join(f"| {' | '.join(line[place] for place in places)} |" for line in kept)
        where = section.find("Computed by")
        by = [_of_rows(section[where:].partition("\n\n")[0].strip(), rows)] if where >= 0 else []
        found.append("\n\n".join([f"### {section.partition(chr(10))[0]}", table, *by]))
    return "\n\n".join(found)


def _of_rows(said: str, rows: Sequence[str]) -> str:
    """Return the paragraph on what computed a table, without the rows that are not shown.

    >>> _of_rows("By this. Processor seconds compare ...: on A those of x, y; on B those of z.", ["y", "z"])
    'By this. Processor seconds compare ...: on A those of y; on B those of z.'
    >>> _of_rows("By this. Processor seconds compare ...: on A those of x, y; on B those of z.", ["y"])
    'By this.'
    """
    by, _, places = " ".join(said.split()).partition(": on ")
    found = []
    for place in places.rstrip(".").split("; on "):
        where, _, names = place.partition(" those of ")
        kept = [name for name in names.split(", ") if name in rows]
        found += [f"on {where} those of {', '.join(kept)}"] if kept else []
    whole = f"{by}: {'; '.join(found)}." if len(found) > 1 else by.partition(" Processor seconds")[0]
    return textwrap.fill(whole, 118, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Parse the options, and make the pages of the data sets that have runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/matched"))
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--seeds", type=a_count, default=5)
    parser.add_argument("--trials", type=a_count, default=TRIALS)
    given = parser.parse_args()
    parts = []
    for data, page in PAGES.items():
        nets = NETS[data]
        suite = Suite((data,), nets, chosen_rows([]), given.seeds, given.trials, given.budget, given.runs)
        trials = "" if given.trials == TRIALS else f" --trials {given.trials}"
        words = f"sidestep bench --suite matched --data {data} --budget {given.budget}{trials}"
        made_by = [f"{words} --nets {net} --seeds {count}" for net in nets if (count := seeds_of(suite, data, net))]
        write_pages(suite, {}, REPORT, "\n    ".join(made_by))
        made = REPORT / f"matched-{data}.md"
        if made.exists():
            put_into(page, made)
            parts.append(part_of_tables(made.read_text(encoding="utf-8"), TERNARY_ROWS, TERNARY_COLUMNS))
    replace_between_marks(TERNARY, "\n\n".join(parts))


if __name__ == "__main__":
    main()
