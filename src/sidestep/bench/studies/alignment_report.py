"""Alignment with the true gradient as tables and pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sidestep.bench.report import Table, new_figure
from sidestep.measure import Alignment
from sidestep.training import Aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["alignment_figure", "alignment_table"]

_COLUMNS = ["tensor", "elements", "cosine", "spread", "same sign", "norm ratio", "signal to noise", "effective probes"]
_BARS = 40  # more tensors than that cannot be told apart in a picture


def alignment_table(found: Aligned) -> Table:
    """Return one line per tensor, in the order of the net, and one for all of them."""
    title = (
        f"{found.rule} on {found.data}, seed {found.seed}, after {found.step:,} steps: {found.estimates} estimates of "
        f"{found.images} validation images"
    )
    rows = [_row(name, alignment) for name, alignment in (*found.tensors.items(), ("all", found.whole))]
    return Table(title, _COLUMNS, rows)


def _row(name: str, found: Alignment) -> list[str]:
    return [
        name, f"{found.elements:,}", _number(found.cosine, "+.4f"), _number(found.spread, ".4f"),
        _number(found.sign_agreement, ".3f"), _number(found.norm_ratio, ".4g"),
        _number(found.signal_to_noise, ".3g", "no noise"), _number(found.effective_probes, ",.4g", "exact"),
    ]  # fmt: skip


def _number(value: float, form: str, infinite: str = "-") -> str:
    """Return a number, or words where it is infinite or does not exist."""
    if math.isnan(value):
        return "-"
    return infinite if math.isinf(value) else format(value, form)


def alignment_figure(found: Aligned, curves: Mapping[str, Sequence[tuple[int, float]]]) -> "Figure":
    """Return a panel of cosines by tensor, and one of cosines over training where these were measured."""
    names = [name for name in found.tensors if found.tensors[name].elements > 1][:_BARS]
    figure = new_figure(12 if curves else 7, max(3.0, 1.5 + 0.22 * len(names)))
    bars, *rest = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    cosines = [found.tensors[name].cosine for name in names]
    spreads = [found.tensors[name].spread for name in names]
    places = range(len(names))
    bars.barh(places, [0 if math.isnan(c) else c for c in cosines], xerr=spreads, color="#0b5cad", height=0.7)
    bars.set_yticks(places, names, fontsize=7)
    bars.invert_yaxis()
    bars.axvline(0, color="black", linewidth=0.8)
    bars.axvline(found.whole.cosine, color="#c2571a", linestyle="--", linewidth=1, label="all tensors")
    _label(bars, f"{found.rule} on {found.data}, after {found.step:,} steps", "cosine with the true gradient")
    for axes in rest:
        for name, points in curves.items():
            style = {"color": "black", "linewidth": 1.6} if name == "all" else {"linewidth": 0.9}
            axes.plot(*zip(*points, strict=True), label=name, **style)
        _label(axes, "over training", "step")
        axes.set_ylabel("cosine")
    return figure


def _label(axes: "Axes", title: str, across: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.grid(alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:20], labels[:20], fontsize=6)
