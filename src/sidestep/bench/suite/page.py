"""The page of a suite on a data set: how it was made, a table for each net, what is published, what does not fit."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sidestep import checkpoint
from sidestep.bench.paper_tables.reproduce import folder_for_tables
from sidestep.bench.report import Table, wrapped
from sidestep.bench.suite.nets import hidden_of
from sidestep.bench.suite.records import SuiteRecords
from sidestep.bench.suite.suite import Suite, file_of
from sidestep.bench.suite.table import RowRuns, cautions, fit_table, rows_of, suite_table, verdict
from sidestep.measure.environment import environment_words
from sidestep.presets.matched import BASELINE, COMMON, NETS, TRAIN
from sidestep.presets.matched_budgets import ANCHORS, SuiteBudget, suite_budget
from sidestep.wording import counted

__all__ = ["computed_by", "suite_page", "suite_tables", "write_pages"]

_NOTES = (
    "matched: what a row has alike with the others: epochs, images, augmentation, batch, decay of the learning rate, "
    "label smoothing, weight decay, batch norm, and the number of trials. `all but` names what it has not, or what it "
    "has of its own. Operations and time are not matched: see the columns.",
    "test: mean over seeds; in brackets its standard error over seeds, and that of the test images, sqrt(p (1 - p) / "
    "n), which more seeds do not make smaller. The test images were read once for each seed, after its training.",
    f"less {BASELINE}: the difference to the row `{BASELINE}` on the same net, with an interval from 2,000 bootstrap "
    "draws of seeds (in pairs) and of test images; p: McNemar's test (mid-p) of two runs of one seed, the median over "
    "seeds. Few seeds make intervals of the bootstrap too narrow.",
    "forward passes a step: operations of an estimate over those of a prediction; step's tensors: the most that "
    "tensors took in one step. Processor seconds are of training, on a machine that others used too.",
)


def write_pages(suite: Suite, environment: Mapping[str, Any], report: Path, command: str) -> None:
    """Write, for each data set, matched-DATA.md, and for each of its nets the records, matched-DATA-NET.jsonl.

    A net without a run of a seed is left out, and so is a data set without such a net.

    Raises:
        InputError: if the folder cannot be made.
        CheckpointError: if a file cannot be written.
    """
    folder_for_tables(report)
    for data in suite.data:
        found = {}
        for net in suite.nets:
            records = SuiteRecords(file_of(suite.out, data, net), environment)
            records.take(report / f"matched-{data}-{net}.jsonl")
            if any(row.runs for row in rows_of(suite, data, net, records)):
                found[net] = records
        for net, records in found.items():
            records.write(report / f"matched-{data}-{net}.jsonl")
        if found:
            checkpoint.write_text(report / f"matched-{data}.md", suite_page(suite, data, found, command))


def suite_tables(suite: Suite, environment: Mapping[str, Any]) -> Iterator[tuple[Table, str]]:
    """Yield the table of each net on each data set that has finished rows in the suite's folder, and what it says."""
    for data in suite.data:
        for net in suite.nets:
            rows = list(rows_of(suite, data, net, SuiteRecords(file_of(suite.out, data, net), environment)))
            if any(row.runs for row in rows):
                lengths = _lengths(suite_budget(suite.budget, data, NETS[net].kind))
                yield (
                    suite_table(f"{net} on {data}, budget {suite.budget}", rows),
                    " ".join([lengths, *_said(suite, rows)]),
                )


def suite_page(suite: Suite, data: str, records: Mapping[str, SuiteRecords], command: str) -> str:
    """Return the page as Markdown.

    Args:
        suite: what is shown.
        data: name of the data set.
        records: of each net.
        command: by which it was made.
    """
    parts = [f"# Matched runs on {data}", wrapped(_how(suite)), f"    {command}"]
    rows = {net: list(rows_of(suite, data, net, kept)) for net, kept in records.items()}
    for net, found in rows.items():
        if any(row.runs for row in found):
            parts += _net(suite, data, net, found, records[net])
    parts += _published(data)
    parts += ["\n".join(wrapped(f"- {note}", "  ") for note in _NOTES)]
    for net, found in rows.items():
        table = fit_table(f"Not in the table of {net}.", found)
        parts += [table.markdown()] if table.rows else []
    return "\n\n".join(parts) + "\n"


def _how(suite: Suite) -> str:
    same = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in COMMON.items())
    return (
        f"Every row has the same {counted(suite.trials, 'trial')} on validation images, the first of them its own "
        f"values; then seeds at the trial that was best there. All rows: batches of {TRAIN['batch']}, {same}, a "
        f"learning rate that falls as half a cosine, {TRAIN['precision']}."
    )


def _net(suite: Suite, data: str, net: str, rows: list[RowRuns], records: SuiteRecords) -> Iterator[str]:
    budget = suite_budget(suite.budget, data, NETS[net].kind)
    widths = "-".join(map(str, hidden_of(NETS[net], data)))
    yield f"## {net} on {data}"
    words = f"{NETS[net].words[0].upper()}{NETS[net].words[1:]}{f' ({widths})' if widths else ''}"
    yield wrapped(f"{words}. {_lengths(budget)}")
    yield from map(wrapped, _said(suite, rows))
    yield suite_table("", rows).markdown().lstrip("\n")  # the heading is its title
    yield computed_by(rows, records)


def computed_by(rows: Sequence[RowRuns], records: SuiteRecords) -> str:
    """Return a paragraph on where rows were computed, and which of them on which processor, where they are several."""
    used = {run["environment"] for row in rows for run in (*row.trials, *row.runs)}
    places = [records.environments[index] for index in sorted(used)]
    by = "Computed by " + "; ".join(dict.fromkeys(map(environment_words, places))) + "."
    return wrapped(" ".join([by, *_processors(rows, records)]))


def _said(suite: Suite, rows: list[RowRuns]) -> list[str]:
    """What the rows show, of a few steps on a few images nothing, and what to keep in mind; a paragraph each."""
    few = "The budget `tiny` is to see that everything runs: so few steps compare nothing."
    said = few if suite.budget == "tiny" else verdict(rows)
    return [words for words in (said, cautions(rows)) if words]


def _processors(rows: Sequence[RowRuns], records: SuiteRecords) -> Iterator[str]:
    """Which rows' seeds ran on which processor, where they are several."""
    found: dict[str, list[str]] = {}
    for row in (each for each in rows if not each.row.counted):
        for processor in sorted({records.environments[run["environment"]]["processor"] for run in row.runs}):
            found.setdefault(processor, []).append(row.row.name)
    if len(found) > 1:
        parts = "; ".join(f"on {processor} those of {', '.join(names)}" for processor, names in found.items())
        yield f"Processor seconds compare rows of one processor: {parts}."


def _lengths(budget: SuiteBudget) -> str:
    def images(number: int | None) -> str:
        return "all training images" if number is None else f"the first {number:,} training images"

    changed = f", images changed by `{budget.train['augment']}`" if "augment" in budget.train else ""
    return (
        f"A trial: {counted(budget.search_epochs, 'epoch')} of {images(budget.search_images)}; a seed: "
        f"{counted(budget.epochs, 'epoch')} of {images(budget.images)}{changed}."
    )


def _published(data: str) -> Iterator[str]:
    lines = [[each.words, f"{each.accuracy:g}", each.source] for each in ANCHORS if each.data == data]
    if lines:
        yield Table(
            f"Published on {data}, with other nets and lengths.", ["what", "test %", "source"], lines
        ).markdown()
