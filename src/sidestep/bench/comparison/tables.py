"""The tables of a comparison: what every rule reached, what it took, and which runs failed."""

from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.bench.comparison.numbers import (
    Baseline,
    Spread,
    baseline_of,
    finished,
    ratios,
    rounded,
    score,
    spread_of,
    value_of,
)
from sidestep.bench.comparison.one_run import THRESHOLDS
from sidestep.bench.process import FAILED
from sidestep.bench.report import Table, share
from sidestep.bench.studies.blocks import mean_and_error

__all__ = ["race_tables"]

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def race_tables(
    records: Sequence[Mapping[str, Any]], data: str, labels: Sequence[str], baseline: Baseline, threshold: float | None
) -> list[Table]:
    """Return the table of a data set, that of the seconds to every accuracy, and that of failures, if there are any.

    Args:
        records: of all runs.
        data: the data set.
        labels: entries, in the order of the rows.
        baseline: the entry that all ratios are taken to, or entry -> the one of its own, which a last column names.
        threshold: the validation accuracy that seconds are counted to.
    """
    rows = [_row(records, data, label, baseline, threshold) for label in labels]
    reach = "seconds to accuracy" if threshold is None else f"s to {100 * threshold:g} %"
    columns = ["rule", "runs", "accuracy, %", reach, "x", "ms a step", "x", "images/s", "memory", "x", "tensors", "x",
               "forward passes", "exchange", "decided", "parameters"]  # fmt: skip
    if isinstance(baseline, str):
        title = f"{data}: x is the ratio to {baseline}"
    else:
        title = f"{data}: x is the ratio to back-propagation on the same net, by the entry in the last column"
        columns.append("baseline")
        rows = [[*row, _name_of(baseline, row[0])] for row in rows]
    tables = [Table(title, columns, rows)]
    reached = _thresholds(records, data, labels, threshold)
    tables += [reached] if len(reached.columns) > 1 else []
    failed = [[r["entry"], str(r["seed"]), *_failure(r)] for r in records if r["data"] == data and _failure(r)]
    if failed:
        tables.append(Table(f"{data}: runs that failed", ["rule", "seed", "how", "why"], failed))
    return tables


def _name_of(baseline: Baseline, label: str) -> str:
    found = baseline_of(baseline, label)
    return "itself" if found == label else found or "-"


def _failure(record: Mapping[str, Any]) -> list[str]:
    """Return how and why a run failed, or the count of its steps; nothing if neither did."""
    if FAILED in record:
        return [record[FAILED]["kind"], _plain(record[FAILED]["why"])]
    failed = record.get("counts", {}).get(FAILED)
    return [f"{failed['kind']}, while a step was counted", _plain(failed["why"])] if failed else []


def _row(
    records: Sequence[Mapping[str, Any]], data: str, label: str, baseline: Baseline, threshold: float | None
) -> list[str]:
    runs = finished(records, data, label)
    every = [record for record in records if (record["entry"], record["data"]) == (label, data)]
    count = f"{len(runs)}" if len(runs) == len(every) else f"{len(runs)} of {len(every)}"
    if not runs:
        kinds = list(dict.fromkeys(record[FAILED]["kind"] for record in every))
        return [label, count, ", ".join(kinds) or "not run", *["-"] * 13]

    def ratio(key: str) -> str:
        return _ratio(ratios(records, data, label, baseline, key, threshold))

    def median(key: str) -> float | None:
        found = spread_of([value_of(run, key) for run in runs])
        return found and found.median

    return [
        label,
        count,
        share(*mean_and_error(list(map(score, runs))), images=runs[0].get("judged_images")),
        _reached(runs, threshold),
        ratio("seconds_to"),
        _number(median("seconds_per_step"), 1000),
        ratio("seconds_per_step"),
        _number(median("images_per_second")),
        _bytes(median("peak_memory_bytes")),
        ratio("peak_memory_bytes"),
        _bytes(median("allocated_bytes")),
        ratio("allocated_bytes"),
        _number(median("forward_equivalents")),
        _bytes(median("estimate_bytes")),
        _bytes(median("decided_bytes")),
        _number(median("parameters"), whole=True),
    ]


def _thresholds(
    records: Sequence[Mapping[str, Any]], data: str, labels: Sequence[str], threshold: float | None
) -> Table:
    runs = {label: finished(records, data, label) for label in labels}
    every = [run for of_one in runs.values() for run in of_one]
    passed = [each for each in THRESHOLDS if any(value_of(run, "seconds_to", each) is not None for run in every)]
    wanted = sorted({*passed, *filter(None, [threshold])})
    columns = ["rule", *(f"{100 * each:g} %" for each in wanted)]
    rows = [[label, *(_reached(runs[label], each) if runs[label] else "-" for each in wanted)] for label in labels]
    return Table(f"{data}: seconds of training until a validation accuracy was measured", columns, rows)


def _reached(runs: Sequence[Mapping[str, Any]], threshold: float | None) -> str:
    if threshold is None:
        return "-"
    found = spread_of([value_of(run, "seconds_to", threshold) for run in runs])
    if found is None:
        return "not reached"
    some = f" ({found.runs} of {len(runs)})" if found.runs < len(runs) else ""
    return f"{_number(found.median)}{some}"


def _ratio(found: Spread | None) -> str:
    if found is None:
        return "-"
    ends = f" ({rounded(found.least)}–{rounded(found.most)})" if found.runs > 1 and found.least < found.most else ""
    return f"{rounded(found.median)}{ends}"


def _number(value: float | None, times: float = 1, whole: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if whole else rounded(value * times)


def _bytes(value: float | None) -> str:
    """Return bytes in a unit in which they are readable.

    >>> _bytes(2048), _bytes(0)
    ('2 KiB', '0 B')
    """
    if value is None:
        return "-"
    unit, size = next(((unit, size) for unit, size in _UNITS if value >= size), _UNITS[-1])
    return f"{rounded(value / size)} {unit}"


def _plain(text: str) -> str:
    return text.replace("|", "/")
