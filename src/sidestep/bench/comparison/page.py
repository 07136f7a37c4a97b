"""The pages of a comparison: bench.md, and bench.html with everything in one file."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sidestep import checkpoint
from sidestep.bench.chart import STYLE
from sidestep.bench.comparison.figures import race_figures
from sidestep.bench.comparison.numbers import Baseline, baseline_labels, common_threshold, finished
from sidestep.bench.comparison.records import ComparisonFolder
from sidestep.bench.comparison.rounds import Comparison
from sidestep.bench.comparison.summary import sentences
from sidestep.bench.comparison.tables import race_tables
from sidestep.bench.report import Table
from sidestep.rules.shared.variant import variant_of
from sidestep.wording import counted, html_text, markdown, spelled

__all__ = ["NOTES", "Report", "write_report"]

NOTES = (
    "accuracy: mean test accuracy at the end of each run, in brackets its standard error over seeds, and that of a "
    "test set of this size, sqrt(p (1 - p) / n), which more seeds do not make smaller; validation accuracy where the "
    "data have no test split. With --to it is that of the moment at which a run stopped.",
    "s to: median seconds of training until that validation accuracy was measured, which is once an epoch unless "
    "--every says otherwise; (2 of 3) where only some runs reached it. The clock runs during steps, with the making of "
    "their batches; evaluation is left out, and there are no checkpoints.",
    "ms a step: median over all steps of a run, then over runs; images/s follows from it.",
    "x: ratio to the baseline's run of the same seed, pair by pair: the median, in brackets the least and the most. By "
    "default the baseline is back-propagation on the same net: the layers that the rule's own prediction runs through, "
    "trained end to end by AdamW with the same options of training, and the rule's own learning rate, weight decay and "
    "label smoothing where it has them. Rows whose nets and options are the same share one.",
    "memory: the most that the process held during the steps before the first evaluation, over what it held when net, "
    "optimiser and data were there, less the optimiser's state (with units=one-resident these are in files, and what "
    "is in use of them counts); on a GPU torch's own count. A few MiB are there whatever the rule does.",
    "tensors: the most that tensors took in one step, counted to the byte; on a CPU with one thread, where units that "
    "could run at once run in turn.",
    "forward passes: operations of one estimate over those of one prediction of the same batch by the default reading, "
    "counted in matrix products and convolutions; norms, activations, noise and optimisers are not counted.",
    "exchange: bytes of one step's estimate, which machines with different images would exchange; decided: bytes of "
    "what is decided, which is enough for a machine that follows. Plain arrays, not compressed.",
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 86rem;
       margin: 2rem auto 4rem; padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .3rem }
h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line) }
pre { background: var(--panel); border-radius: 6px; padding: .7rem 1rem; white-space: pre-wrap;
      font: 14px/1.45 monospace }
.said { border-left: 4px solid var(--first); background: var(--panel); padding: .5rem 1rem; margin: 1rem 0 }
.said p { margin: .35rem 0 } .wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th { text-align: right; vertical-align: bottom; border-bottom: 2px solid var(--soft); background: var(--panel) }
th, td { padding: .28rem .5rem; white-space: nowrap }
td small { display: block; font-size: 12px; color: var(--soft) }
td { border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left; font-weight: 600; white-space: normal }
td:first-child { min-width: 9rem; overflow-wrap: anywhere }
tr.baseline td { background: var(--mark) } td.words { text-align: left; white-space: normal; min-width: 9rem }
ul { padding-left: 1.2rem } li { margin: .3rem 0 } .small, .soft { color: var(--soft); font-size: 14px }
"""


class Report:
    """What a comparison says: for every data set its sentences and its tables, and how it was made."""

    def __init__(
        self, race: Comparison, records: Sequence[Mapping[str, Any]], baseline: Baseline, command: str
    ) -> None:
        seeds = range(race.seed, race.seed + race.seeds)
        self.records = [record for record in records if record["seed"] in seeds]
        self.race, self.baseline, self.command = race, baseline, command
        entries = (*race.entries, *race.baselines)
        self.labels = [entry.label for entry in entries]
        made = {entry.label: variant_of(entry.make()) for entry in race.entries}
        self.variants = [f"{label}: {variant}" for label, variant in made.items() if variant]
        self.said: dict[str, list[str]] = {}
        self.tables: dict[str, list[Table]] = {}
        for data in race.data:
            threshold = common_threshold(self.records, data, baseline, race.budget.accuracy)
            rules = {entry.label: entry.kind for entry in entries}
            self.said[data] = sentences(self.records, data, rules, baseline, threshold)
            self.tables[data] = race_tables(self.records, data, self.labels, baseline, threshold)

    def unfinished(self, data: str) -> list[str]:
        """Return a sentence on the runs of a data set that have not finished, or nothing."""
        wanted, there = self.race.seeds * len(self.labels), len(finished(self.records, data))
        return [f"Not finished: {wanted - there} of {counted(wanted, 'run')}."] if there < wanted else []

    def where(self, asked: Mapping[str, Any]) -> str:
        """Return a line about the machine, the versions and the runs."""
        machine, versions = asked["machine"], asked["versions"]
        wanted = self.race.seeds * len(self.race.data) * len(self.labels)
        precisions = sorted({record["precision"] for record in self.records if "precision" in record})
        given = self.race.budget
        budget = {"epochs": given.epochs, "steps": given.steps, "seconds": given.seconds,
                  "forward passes": given.forward_passes}  # fmt: skip
        spent = ", or ".join(f"{value:g} {name}" for name, value in budget.items() if value is not None)
        until = f", or {100 * self.race.budget.accuracy:g} % of validation" if self.race.budget.accuracy else ""
        return (
            f"{len(self.records)} of {wanted} runs, until {spent}{until}; {machine['device']}, {machine['processor']}, "
            f"{counted(machine['threads'], 'thread')}, {', '.join(precisions) or 'nothing yet'}; "
            f"sidestep {versions['sidestep']}, torch {versions['torch']}, Python {sys.version.split()[0]}."
        )


def write_report(report: Report, folder: ComparisonFolder, asked: Mapping[str, Any]) -> None:
    """Write bench.md and bench.html into the folder, each in one move."""
    parts = [
        "# What does it gain, and what does it take?",
        f"    {spelled(report.command)}",
        markdown(report.where(asked)),
    ]
    for data in report.race.data:
        parts += [
            f"## {markdown(data)}",
            *map(markdown, report.said[data]),
            *(table.markdown() for table in report.tables[data]),
        ]
    parts += ["\n".join(f"- {markdown(line)}" for line in report.variants)] if report.variants else []
    parts += ["## How to read it", "\n".join(f"- {note}" for note in NOTES)]
    checkpoint.write_text(folder.page_file, "\n\n".join(parts) + "\n")
    checkpoint.write_text(folder.html_file, _html(report, asked))


def _html(report: Report, asked: Mapping[str, Any]) -> str:
    parts = []
    for data in report.race.data:
        main, *more = report.tables[data]
        parts.append(f"<h2>{html_text(data)}</h2>")
        said = "".join(f"<p>{html_text(line)}</p>" for line in (*report.unfinished(data), *report.said[data]))
        parts.append(f'<div class="said">{said}</div>')
        parts.append(_table(main, report.baseline))
        drawn = race_figures(report.records, data, report.labels, report.baseline)
        figures = (f"<figure><figcaption>{html_text(said)}</figcaption>{chart}</figure>" for said, chart in drawn)
        parts.append(f"<div class='charts'>{''.join(figures)}</div>")
        parts += [_table(table, report.baseline) for table in more]
    notes = "".join(f"<li>{html_text(note)}</li>" for note in (*report.variants, *NOTES))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(report.command)}</title>\n<style>{STYLE}{_STYLE}</style>\n"
        "<h1>What does it gain, and what does it take?</h1>\n"
        f"<pre>{html_text(report.command)}</pre>\n<p class='small'>{html_text(report.where(asked))}</p>\n"
        + "\n".join(parts)
        + f"\n<h2>How to read it</h2>\n<ul class='small'>{notes}</ul>\n</html>\n"
    )


def _table(table: Table, baseline: Baseline) -> str:
    head = "".join(f"<th>{html_text(column)}</th>" for column in table.columns)
    lines, baselines = [], baseline_labels(baseline)
    for row in sorted(table.rows, key=lambda row: row[0] not in baselines):  # the honest baseline first
        kinds = [' class="words"' if table.columns[i] in ("how", "why", "baseline") else "" for i in range(len(row))]
        cells = "".join(f"<td{kind}>{_cell(word)}</td>" for kind, word in zip(kinds, row, strict=True))
        lines.append(f'<tr class="baseline">{cells}</tr>' if row[0] in baselines else f"<tr>{cells}</tr>")
    title = f"<p><b>{html_text(table.title)}</b></p>" if table.title else ""
    return (
        f'{title}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _cell(word: str) -> str:
    """Return a cell's words; what stands in brackets behind a number goes below it."""
    number, bracket, spread = word.partition(" (")
    if bracket and number.replace(".", "").replace(",", "").isdigit():
        return f"{html_text(number)}<small>{html_text(spread.removesuffix(')'))}</small>"
    return html_text(word)
