"""Make the pages of the matched suite, and put their tables into docs/rules-compared.md and docs/rules-cifar10.md.

The rows of ternary nets, with those of float nets to compare them with, go into docs/ternary-results.md, too.

    python -m experiments.matched_pages [--runs runs/matched] [--budget quick]

Nothing is trained: the runs are those of `sidestep bench --suite matched`, in --runs or already in docs/results, and
the same records give the same pages. What stands between the marks of a page is replaced; the rest is left alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.given import a_count
from sidestep.bench.report import Table
from sidestep.bench.suite.page import computed_by, write_pages
from sidestep.bench.suite.records import SuiteRecords
from sidestep.bench.suite.suite import Suite, chosen_rows, file_of
from sidestep.bench.suite.table import RowRuns, rows_of, suite_table
from sidestep.cli.suite import SuiteOptions

BEGIN, END = "<!-- the matched suite -->", "<!-- end of the matched suite -->"
PAGES = {"mnist": Path("docs/rules-compared.md"), "cifar10": Path("docs/rules-cifar10.md")}
STAGES = ("mlp", "conv")
NETS = {"mnist": (*STAGES, "blocks-1", "blocks-3", "blocks-10"), "cifar10": STAGES}
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


def kept_records(suite: Suite, data: str, net: str) -> SuiteRecords:
    """Return the records of docs/results and of the suite's folder."""
    records = SuiteRecords(file_of(suite.out, data, net), {})
    records.take(REPORT / f"matched-{data}-{net}.jsonl")
    return records


def seeds_of(suite: Suite, data: str, net: str) -> int:
    """Return the most seeds that a trained row of a net has, by the records of docs/results and the suite's folder."""
    records = kept_records(suite, data, net)
    return max((len(each.runs) for each in rows_of(suite, data, net, records) if not each.row.counted), default=0)


def part_of_table(rows: Sequence[RowRuns], records: SuiteRecords, names: Sequence[str], columns: Sequence[str]) -> str:
    """Return some rows and columns of a net's table, and where these rows were computed."""
    table = suite_table("", rows)
    places = [table.columns.index(name) for name in columns]
    lines = [[line[place] for place in places] for line in table.rows if line[0] in names]
    shown = [row for row in rows if row.runs and row.row.name in names]
    return f"{Table('', list(columns), lines).markdown().lstrip()}\n\n{computed_by(shown, records)}"


def ternary_part(suite: Suite, data: str) -> str:
    """Return the rows of ternary nets on a data set, and of float ones beside them: a table for each net of stages."""
    found = []
    for net in (net for net in suite.nets if net in STAGES):
        records = kept_records(suite, data, net)
        rows = list(rows_of(suite, data, net, records))
        if any(row.runs for row in rows):
            part = part_of_table(rows, records, TERNARY_ROWS, TERNARY_COLUMNS)
            found.append(f"### {net} on {data}\n\n{part}")
    return "\n\n".join(found)


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
            parts.append(ternary_part(suite, data))
    replace_between_marks(TERNARY, "\n\n".join(parts))


if __name__ == "__main__":
    main()
