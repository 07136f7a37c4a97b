"""The pages of a comparison: bench.md, and bench.html with everything in one file."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from sidestep import checkpoint
from sidestep.bench.comparison.figures import race_figures
from sidestep.bench.comparison.numbers import Baseline, baseline_labels, common_threshold, finished
from sidestep.bench.comparison.records import ComparisonFolder
from sidestep.bench.comparison.rounds import Comparison
from sidestep.bench.comparison.summary import sentences
from sidestep.bench.comparison.tables import race_tables
from sidestep.bench.html import figures, page, table_html
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
    said_first = f"<pre>{html_text(report.command)}</pre>\n<p class='small'>{html_text(report.where(asked))}</p>"
    parts = [said_first]
    for data in report.race.data:
        main, *more = report.tables[data]
        parts.append(f"<h2>{html_text(data)}</h2>")
        said = "".join(f"<p>{html_text(line)}</p>" for line in (*report.unfinished(data), *report.said[data]))
        parts.append(f'<div class="said">{said}</div>')
        parts.append(_table(main, report.baseline))
        parts.append(figures(race_figures(report.records, data, report.labels, report.baseline)))
        parts += [_table(table, report.baseline) for table in more]
    notes = "".join(f"<li>{html_text(note)}</li>" for note in (*report.variants, *NOTES))
    parts.append(f"<h2>How to read it</h2>\n<ul class='small'>{notes}</ul>")
    return page(report.command, "What does it gain, and what does it take?", parts)


def _table(table: Table, baseline: Baseline) -> str:
    return table_html(table, baseline_labels(baseline), ("how", "why", "baseline"))
