"""The numbers of a comparison: medians over seeds, ratios pair by pair, and what they come to in a sentence."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sidestep.bench.comparison.one_run import THRESHOLDS
from sidestep.bench.process import FAILED

__all__ = [
    "MEASURES",
    "Baseline",
    "Measure",
    "Spread",
    "baseline_labels",
    "baseline_of",
    "common_threshold",
    "finished",
    "ratios",
    "rounded",
    "score",
    "spread_of",
    "value_of",
]


Baseline = str | Mapping[str, str]  # the entry that all are compared with; or entry -> the one of its own


def baseline_of(baseline: Baseline, entry: str) -> str | None:
    """Return the entry that an entry is compared with, which may be itself, or None."""
    return baseline if isinstance(baseline, str) else baseline.get(entry)


def baseline_labels(baseline: Baseline) -> list[str]:
    """Return the entries that others are compared with, each once."""
    return [baseline] if isinstance(baseline, str) else list(dict.fromkeys(baseline.values()))


class Spread(NamedTuple):
    """Several values in three numbers."""

    median: float
    least: float
    most: float
    runs: int


class Measure(NamedTuple):
    """Something that is paid, the less the better."""

    key: str
    words: str  # as a column's head, without its unit
    superlative: str  # as in "keeps ..."


MEASURES = (
    Measure("seconds_to", "seconds to", "the least time to that accuracy"),
    Measure("seconds_per_step", "step", "the shortest step"),
    Measure("peak_memory_bytes", "memory", "the least memory"),
    Measure("estimate_bytes", "exchange", "the fewest bytes exchanged"),
)


def rounded(value: float, digits: int = 3) -> str:
    """Return a number with so many digits, or with all of those before the point.

    >>> rounded(0.012345), rounded(99.96), rounded(999.7), rounded(1234.4), rounded(123.4, 2)
    ('0.0123', '100', '1,000', '1,234', '123')
    """
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) - 0.05 else f"{value:.{digits}g}"


def finished(records: Sequence[Mapping[str, Any]], data: str, entry: str | None = None) -> list[Mapping[str, Any]]:
    """Return the records of runs on a data set that did not fail, of one entry or of all."""
    return [
        record for record in records
        if record["data"] == data and (entry is None or record["entry"] == entry) and FAILED not in record
    ]  # fmt: skip


def value_of(record: Mapping[str, Any], key: str, threshold: float | None = None) -> float | None:
    """Return a number of a run by name; `seconds_to` is to a validation accuracy, None where it was not reached."""
    if key == "seconds_to":
        found = record["reached"].get(f"{threshold:g}") if threshold is not None else None
        return None if found is None else float(found["seconds"])
    value = record.get(key, record.get("counts", {}).get(key))
    return None if value is None else float(value)


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Return median, least and most of the values that are there, or None of none.

    >>> spread_of([3.0, None, 1.0, 2.0])
    Spread(median=2.0, least=1.0, most=3.0, runs=3)
    """
    there = [value for value in values if value is not None]
    return Spread(statistics.median(there), min(there), max(there), len(there)) if there else None


def ratios(
    records: Sequence[Mapping[str, Any]],
    data: str,
    entry: str,
    baseline: Baseline,
    key: str,
    threshold: float | None = None,
) -> Spread | None:
    """Return an entry's number over the baseline's, pair by pair: of the runs with the same seed.

    A pair counts where both have the number, and the baseline's is not 0.
    """
    other_label = baseline_of(baseline, entry)
    others = finished(records, data, other_label) if other_label else []
    theirs = {record["seed"]: value_of(record, key, threshold) for record in others}
    found = []
    for record in finished(records, data, entry):
        own, other = value_of(record, key, threshold), theirs.get(record["seed"])
        found.append(own / other if own is not None and other else None)
    return spread_of(found)


def score(record: Mapping[str, Any]) -> float:
    """Return the test accuracy of a run, or the validation accuracy where the data have no test split."""
    test = record["test_accuracy"]
    return float(record["validation_accuracy"] if test is None else test)


def common_threshold(
    records: Sequence[Mapping[str, Any]], data: str, baseline: Baseline, wanted: float | None
) -> float | None:
    """Return the accuracy that seconds are counted to: the wanted one, or the highest that all baselines' runs
    reached (without a finished one of these, that any run reached); None if there is none.
    """
    if wanted is not None:
        return wanted
    own = [run for label in baseline_labels(baseline) for run in finished(records, data, label)]
    runs = own or finished(records, data)
    enough = all if own else any
    passed = [each for each in THRESHOLDS if enough(value_of(run, "seconds_to", each) is not None for run in runs)]
    return max(passed, default=None) if runs else None
