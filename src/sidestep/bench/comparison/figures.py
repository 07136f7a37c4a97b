"""The pictures of a comparison: accuracy against training time, peak memory and bytes exchanged."""

from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.bench.chart import LOG, LOGIT, Line, chart
from sidestep.bench.comparison.numbers import Baseline, baseline_labels, finished, score

__all__ = ["race_figures"]

_LEAST, _MOST = 0.01, 0.9995  # of an accuracy that is drawn: the axis is stretched towards both ends


def race_figures(
    records: Sequence[Mapping[str, Any]], data: str, labels: Sequence[str], baseline: Baseline
) -> list[tuple[str, str]]:
    """Return (what it shows, chart) for a data set: a line or a point per run, a colour and a mark per entry."""
    baselines = [label for label in labels if label in baseline_labels(baseline)]
    others = [label for label in labels if label not in baselines]
    looks = {label: -1 - index for index, label in enumerate(baselines)} | {o: i for i, o in enumerate(others)}
    seconds = _courses(records, data, looks, by_seconds=True)
    exchanged = _courses(records, data, looks, by_seconds=False)
    memory = [
        Line(label, [(max(run["peak_memory_bytes"], 2**16) / 2**20, _drawn(score(run))) for run in runs], look, False)
        for label, look in looks.items()
        if (runs := finished(records, data, label))
    ]
    drawn = (
        (f"Validation accuracy on {data} against seconds of training", seconds, "seconds of training"),
        (f"Accuracy on {data} against peak memory above net, optimiser and data", memory, "MiB"),
        (f"Validation accuracy on {data} against bytes exchanged, if every step were shared between machines",
         exchanged, "MiB exchanged"),
    )  # fmt: skip
    return [(said, chart(lines, across, "accuracy, %", (LOG, LOGIT), said)) for said, lines, across in drawn]


def _courses(records: Sequence[Mapping[str, Any]], data: str, looks: Mapping[str, int], by_seconds: bool) -> list[Line]:
    lines = []
    for label, look in looks.items():
        for record in finished(records, data, label):
            each = record.get("counts", {}).get("estimate_bytes")
            if not by_seconds and not each:
                continue
            points = [
                (point[1] if by_seconds else point[0] * each / 2**20, _drawn(point[2])) for point in record["curve"]
            ]
            lines.append(Line(label, [point for point in points if point[0] > 0], look))
    return lines


def _drawn(accuracy: float) -> float:
    return min(max(accuracy, _LEAST), _MOST)
