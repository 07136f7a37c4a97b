"""The pictures of a comparison: accuracy against training time, peak memory and bytes exchanged."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sidestep.bench.comparison.numbers import Baseline, baseline_labels, finished, score
from sidestep.bench.report import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["race_figures"]

# colours of Okabe and Ito's and Tableau's palettes that stay apart also for the colour-blind; black is the baseline's
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c564b", "#bcbd22")
_BLACK = "#111111"
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
_LEAST, _MOST = 0.01, 0.9995  # of an accuracy that is drawn: the axis is stretched towards both ends
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def race_figures(
    records: Sequence[Mapping[str, Any]], data: str, labels: Sequence[str], baseline: Baseline
) -> "list[tuple[str, Figure]]":
    """Return (what it shows, picture) for a data set: a line or a point per run, a colour and a marker per entry."""
    baselines = baseline_labels(baseline)
    return [
        (f"Validation accuracy on {data} against seconds of training", _course(records, data, labels, baselines, 1)),
        (f"Accuracy on {data} against peak memory above net, optimiser and data",
         _memory(records, data, labels, baselines)),
        (f"Validation accuracy on {data} against bytes exchanged, if every step were shared between machines",
         _course(records, data, labels, baselines, 0)),
    ]  # fmt: skip


def _course(
    records: Sequence[Mapping[str, Any]], data: str, labels: Sequence[str], baselines: Sequence[str], by_seconds: int
) -> "Figure":
    figure = new_figure(9.5, 4.8)
    axes = figure.subplots()
    for index, label in enumerate(labels):
        colour, marker = _look(index, label in baselines)
        for number, record in enumerate(finished(records, data, label)):
            each = record.get("counts", {}).get("estimate_bytes")
            if not by_seconds and not each:
                continue
            across = [point[1] if by_seconds else point[0] * each / 2**20 for point in record["curve"]]
            up = [_drawn(point[2]) for point in record["curve"]]
            axes.plot(
                across,
                up,
                color=colour,
                alpha=0.8,
                linewidth=2.2 if label in baselines else 1.3,
                marker=marker,
                markevery=[len(up) - 1],  # where it ended
                label=None if number else label,
            )
    _finish(axes, "seconds of training" if by_seconds else "MiB exchanged", "validation accuracy, %")
    return figure


def _memory(
    records: Sequence[Mapping[str, Any]], data: str, labels: Sequence[str], baselines: Sequence[str]
) -> "Figure":
    figure = new_figure(9.5, 4.8)
    axes = figure.subplots()
    for index, label in enumerate(labels):
        colour, marker = _look(index, label in baselines)
        runs = finished(records, data, label)
        axes.scatter(
            [max(record["peak_memory_bytes"], 2**16) / 2**20 for record in runs],
            [_drawn(score(record)) for record in runs],
            color=colour,
            marker=marker,
            s=80 if label in baselines else 48,
            edgecolors="white",
            linewidths=0.6,
            label=label if runs else None,
        )
    _finish(axes, "MiB above net, optimiser and data", "accuracy, %")
    return figure


def _look(index: int, is_baseline: bool) -> tuple[str, str]:
    """Return an entry's colour and marker."""
    return _BLACK if is_baseline else _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]


def _drawn(accuracy: float) -> float:
    return min(max(accuracy, _LEAST), _MOST)


def _finish(axes: "Axes", across: str, up: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("logit")
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in _TICKS if low <= tick <= high])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    left, right = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if right < 1000 * left else (1.0,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3, which="major", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8.5, frameon=False)
