"""The study of a loss's weight on times as tables, text and picture."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.noprop_weights.study import PLAIN
from sidestep.bench.report import Table, new_figure, share
from sidestep.wording import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["weights_figure", "weights_tables", "weights_text"]

_DISTANCE = "smallest embedding distance"
_COLOURS = ("#0b5cad", "#c2571a", "#3a7d34", "#8a2f8f", "#222222")


def weights_tables(record: Mapping[str, Any]) -> list[Table]:
    """Return the tables: who owns the gradient, and what became of the nets."""
    nets, times = record["nets"], record["times"]
    losses = list(nets["untrained"]["gradient_share"])
    owned = [
        [name, *(f"{100 * net['times_that_own_90_percent'][loss]:.0f}" for loss in losses)]
        for name, net in nets.items()
    ]
    plain = [
        [name, *(share(net["gradient_share_where_z_is_plain"][loss]) for loss in losses)] for name, net in nets.items()
    ]
    late = [[name, *(share(net["gradient_share"][loss][-1]) for loss in losses)] for name, net in nets.items()]
    readings, watched = list(nets["untrained"]["accuracy"]), list(nets["untrained"]["watched"])
    state = [
        [name, *(share(net["accuracy"][reading], images=record["images"]) for reading in readings),
         *(f"{net['watched'][key]:.3g}" for key in watched), f"{net['weight'][0]:.3g} to {net['weight'][-1]:.3g}"]
        for name, net in nets.items()
    ]  # fmt: skip
    columns = ["net, trained by", *losses]
    last = f"t = {times[-1]:.3f}"
    return [
        Table("Smallest share of times that owns 90 % of the squared gradient, under each loss, in %", columns, owned),
        Table(f"Share of the squared gradient from times at which z_t alone, without the image, gives the label in "
              f"{100 * PLAIN:.0f} % or more, in %", columns, plain),
        Table(f"Share of the squared gradient from the last of {len(times)} times ({last}), in %", columns, late),
        Table(f"The nets: accuracy without a label on {record['images']} {record['split']} images, in % (one seed; "
              "error of that many images); embeddings; and the weight eta/2 SNR'(t), first to last time",
              ["net, trained by", *readings, *watched, "weight"], state),
    ]  # fmt: skip


def weights_text(record: Mapping[str, Any]) -> str:
    """Return the heading and what was done."""
    return (
        f"# Which times own the gradient? {markdown(record['data'])}\n\n"
        f"One net per loss, {record['steps']} steps in batches of {record['batch']}, seed {record['seed']}; every "
        f"loss's gradient on each of them at {len(record['times'])} times, from the same {record['images']} "
        f"{record['split']} images with the same noise; eta {record['eta']:g}, clipped at "
        f"{record['largest_weight']:g}. All options and numbers are in study.json."
    )


def weights_figure(record: Mapping[str, Any]) -> "Figure":
    """Return four panels: shares of the gradient, weights, accuracies by time, and the course of training."""
    figure = new_figure(11, 8)
    (shares, weights), (accuracy, training) = figure.subplots(2, 2)
    nets, times = record["nets"], record["times"]
    name = next(iter(record["training"]), "untrained")
    for colour, (loss, values) in zip(_COLOURS, nets[name]["gradient_share"].items(), strict=False):
        shares.plot(times, [100 * value for value in values], color=colour, label=loss, marker=".", markersize=4)
    shares.set_yscale("log")
    shares.axhline(100 / len(times), color="grey", linewidth=0.8, linestyle=":")
    _label(shares, f"share of the squared gradient by time, net trained by: {name}", "t", "%")
    for colour, (net, found) in zip(_COLOURS, nets.items(), strict=False):
        weights.plot(times, found["weight"], color=colour, label=net)
        accuracy.plot(times, [100 * value for value in found["accuracy_given_true_z"]], color=colour, label=net)
    weights.set_yscale("log")
    weights.axhline(record["largest_weight"], color="grey", linewidth=0.8, linestyle=":", label="clipped at")
    _label(weights, "weight eta/2 SNR'(t) of each net's schedule", "t", "")
    alone = [100 * value for value in nets[name]["accuracy_of_z_alone"]]
    accuracy.plot(times, alone, color="grey", linestyle="--", label=f"z_t alone, nearest class ({name})")
    _label(accuracy, "accuracy of the block given the true label's z_t", "t", "%")
    _draw_training(training, record)
    return figure


def _draw_training(axes: "Axes", record: Mapping[str, Any]) -> None:
    """Draw the losses on the left axis, and the smallest distance of two class embeddings on the right one."""
    right = axes.twinx()
    for colour, (name, found) in zip(_COLOURS[1:], record["training"].items(), strict=False):
        total = [sum(step) for step in zip(*found["losses"].values(), strict=True)]
        axes.plot(range(1, len(total) + 1), total, color=colour, linewidth=0.9, label=f"loss, {name}")
        if _DISTANCE in found["watched"]:
            distance = found["watched"][_DISTANCE]
            right.plot(found["watched_at"], distance, color=colour, linestyle="--")
    if record["training"]:
        axes.set_yscale("log")
    right.set_ylabel(f"{_DISTANCE} (dashed)", fontsize=8)
    right.set_ylim(bottom=0)
    _label(axes, "training: the sum of all losses", "step", "")


def _label(axes: "Axes", title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
