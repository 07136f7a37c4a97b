"""Make the pages of the matched suite, and put their tables into docs/rules-compared.md and docs/rules-cifar10.md.

    python -m experiments.matched_pages [--runs runs/matched] [--budget quick]

Nothing is trained: the runs are those of `sidestep bench --suite matched`, in --runs or already in docs/results, and
the same records give the same pages. What stands between the marks of a page is replaced; the rest is left alone.
"""

import argparse
from pathlib import Path

from experiments.given import a_count
from sidestep.bench.suite.page import write_pages
from sidestep.bench.suite.suite import Suite, chosen_rows

BEGIN, END = "<!-- the matched suite -->", "<!-- end of the matched suite -->"
PAGES = {"mnist": Path("docs/rules-compared.md"), "cifar10": Path("docs/rules-cifar10.md")}
REPORT = Path("docs/results")


def put_into(page: Path, made: Path) -> None:
    """Replace what stands between the marks of a page by a page of the suite without its title, a level further down.

    Raises:
        ValueError: if a mark is missing.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    lines = made.read_text(encoding="utf-8").split("\n\n", 1)[1].rstrip().splitlines()
    body = "\n".join(f"#{line}" if line.startswith("## ") else line for line in lines)
    kept = f"The records of all runs lie beside [this page](results/{made.name})."
    page.write_text(f"{before}{BEGIN}\n\n{kept}\n\n{body}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Parse the options, and make the pages of the data sets that have runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/matched"))
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--seeds", type=a_count, default=5)
    parser.add_argument("--trials", type=a_count, default=12)
    given = parser.parse_args()
    for data, page in PAGES.items():
        nets = ("mlp", "conv")
        suite = Suite((data,), nets, chosen_rows([]), given.seeds, given.trials, given.budget, given.runs)
        words = f"--data {data} --nets {','.join(nets)} --seeds {given.seeds} --trials {given.trials}"
        write_pages(suite, {}, REPORT, f"sidestep bench --suite matched {words} --budget {given.budget}")
        made = REPORT / f"matched-{data}.md"
        if made.exists():
            put_into(page, made)


if __name__ == "__main__":
    main()
