"""The pictures of a comparison: accuracy against training time, peak memory and bytes exchanged."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sidestep.bench.race_numbers import finished, score
from sidestep.bench.study_report import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["race_figures"]

# the ten colours of Okabe and Ito's and Tableau's palettes that stay apart also for the colour-blind
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7a5195",
    "#8c564b",
    "#6b6b6b",
    "#bcbd22",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def race_figures(
    records: Sequence[Mapping[str, Any]], data: str, labels: Sequence[str], baseline: str
) -> "list[tuple[str, Figure]]":
    """Return (what it shows, picture) for a data set: a line or a point per run, a colour and a marker per entry."""
    return [
        (f"Validation accuracy on {data} against seconds of training", _course(records, data, labels, baseline, 1)),
        (f"Accuracy on {data} against peak memory above net, optimiser and data",
         _memory(records, data, labels, baseline)),
        (f"Validation accuracy on {data} against bytes exchanged, if every step were shared between machines",
         _course(records, data, labels, baseline, 0)),
    ]  # fmt: skip


def _course(
    records: Sequence[Mapping[str, Any]], data: str, labels: Sequence[str], baseline: str, by_seconds: int
) -> "Figure":
    figure = new_figure(9.5, 4.8)
    axes = figure.subplots()
    for index, label in enumerate(labels):
        name: str | None = label
        for record in finished(records, data, label):
            each = record.get("counts", {}).get("estimate_bytes")
            if not by_seconds and not each:
                continue
            across = [point[1] if by_seconds else point[0] * each / 2**20 for point in record["curve"]]
            up = [100 * point[2] for point in record["curve"]]
            style = {"color": _COLOURS[index % len(_COLOURS)], "linewidth": 2.2 if label == baseline else 1.3}
            axes.plot(across, up, alpha=0.75, label=name, **style)  # type: ignore[arg-type]
            axes.plot(across[-1], up[-1], marker=_MARKERS[index % len(_MARKERS)], markersize=6, **style)  # type: ignore[arg-type]
            name = None
    _finish(axes, "seconds of training" if by_seconds else "MiB exchanged", "validation accuracy, %")
    return figure


def _memory(records: Sequence[Mapping[str, Any]], data: str, labels: Sequence[str], baseline: str) -> "Figure":
    figure = new_figure(9.5, 4.8)
    axes = figure.subplots()
    for index, label in enumerate(labels):
        runs = finished(records, data, label)
        if runs:
            axes.scatter(
                [max(record["peak_memory_bytes"], 2**16) / 2**20 for record in runs],
                [100 * score(record) for record in runs],
                color=_COLOURS[index % len(_COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                s=90 if label == baseline else 48,
                edgecolors="black" if label == baseline else "white",
                linewidths=1.2 if label == baseline else 0.6,
                label=label,
            )
    _finish(axes, "MiB above net, optimiser and data", "accuracy, %")
    return figure


def _finish(axes: "Axes", across: str, up: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25, which="both", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8.5, frameon=False)
