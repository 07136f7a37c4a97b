"""The study of blocks as tables, text and picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sidestep.bench.chart import LINEAR, Line, chart
from sidestep.bench.html import figures, page, table_html
from sidestep.bench.report import Table, new_figure, share
from sidestep.bench.studies.blocks import AGREES, COMPARED, ORACLE
from sidestep.bench.studies.chain import CHAIN_READINGS, READINGS_BY_BLOCK
from sidestep.wording import html_text, markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["blocks_figure", "blocks_page", "blocks_tables", "blocks_text"]

_CURVES = {  # reading -> colour, marker
    "chain, read after block k": ("#0b5cad", "o"),
    "mean of the first k blocks": ("#c2571a", "s"),
    "block k on pure noise": ("#3a7d34", "^"),
}
_COLUMNS = {
    **dict(
        zip(
            READINGS_BY_BLOCK,
            ("chain after k", "mean of first k", "k on noise", "mean of first k on noise", "shuffled chain after k"),
            strict=True,
        )
    ),
    ORACLE: "oracle (label)",
    AGREES: "agrees with 1",
}
_SHUFFLED = "chain, z shuffled at every step"


def blocks_tables(record: Mapping[str, Any]) -> list[Table]:
    """Return the tables: every reading; what the chain adds; block by block; the costs. Shares are in percent.

    Accuracies have the error of the test images, too, where the record says how many these are; differences of two
    accuracies on the same images have not, since most of it cancels.
    """
    mean, error, other = record["mean"], record["standard_error"], record["baseline"]["name"]
    seeds = f"{len(record['seeds'])} seed" + ("s" if len(record["seeds"]) > 1 else "")
    of_images = record.get("test_images")
    spread = f" (standard error over seeds{'; of the test images' if of_images else ''})"

    def row(name: str, signed: bool = False) -> list[str]:
        return [name, share(mean[name], error[name], signed, None if signed else of_images)]

    readings = [row(name) for name in (*CHAIN_READINGS, other)]
    added = [row(f"chain minus {name}", signed=True) for name in (*COMPARED, other)]
    changed = [
        row(f"chain {what}") for what in ("differs from block 1", "right, block 1 wrong", "wrong, block 1 right")
    ]
    columns = ["k", *_COLUMNS.values()]
    by_block = [
        [str(block + 1), *(share(mean[name][block], error[name][block]) for name in _COLUMNS)]
        for block in range(record["blocks"])
    ]
    costs = [
        [name, f"{record['parameters'][name]:,}", f"{found['mean']:.1f}"
         + ("" if found["standard_error"] is None else f" ({found['standard_error']:.1f})")]
        for name, found in record["seconds"].items()
    ]  # fmt: skip
    images = f", {of_images:,} test images" if of_images else ""
    return [
        Table(f"Test accuracy in %, {seeds}{spread}{images}", ["read by", "accuracy"], readings),
        Table("What the chain adds, seed by seed, in points (standard error over seeds alone); and where it and block "
              "1 differ, in %", ["", ""], added + changed),
        Table("Block by block, in % (standard error over seeds alone; that of the test images comes on top); the "
              "oracle uses the label and predicts nothing", columns, by_block),
        Table("Training", ["rule", "parameters", "seconds"], costs),
    ]  # fmt: skip


def blocks_text(record: Mapping[str, Any]) -> str:
    """Return the heading and what was done."""
    blocks, seeds = record["blocks"], ", ".join(map(str, record["seeds"]))
    length = f"steps: {record['steps']}" if "steps" in record else f"epochs: {record['epochs']}"
    return (
        f"# Is it the denoising, or just classifiers? {markdown(record['data'])}, blocks: {blocks}\n\n"
        f"{record['rule']['name']}, and {record['baseline']['name']} on the same blocks in a chain. "
        f"Training images: {record['train_images']:,}; {length}; batch: {record['batch']}; "
        f"seeds: {seeds}. All options, and every seed's numbers, are in study.json."
    )


def blocks_page(record: Mapping[str, Any]) -> str:
    """Return study.html: back-propagation on the same blocks first, the tables, and the courses over blocks."""
    heading = f"Is it the denoising, or just classifiers? {record['data']}, blocks: {record['blocks']}"
    said = (
        f"{record['rule']['name']}, and {record['baseline']['name']} on the same blocks in a chain; training images: "
        f"{record['train_images']:,}; batch: {record['batch']}; seeds: {', '.join(map(str, record['seeds']))}."
    )
    first = (record["baseline"]["name"],)
    tables = [table_html(table, first) for table in blocks_tables(record)]
    ends = (1, record["blocks"])
    level = Line(first[0], [(k, 100 * record["mean"][first[0]]) for k in ends], -1)
    courses = [
        Line(name, [(k, 100 * share) for k, share in enumerate(record["mean"][name], 1)], look)
        for look, name in enumerate(_CURVES)
    ]
    drawn = [
        (what, chart([level, *lines], "k, blocks", "test accuracy, %", (LINEAR, LINEAR), what))
        for what, lines in (
            ("Test accuracy over the number of blocks", courses),
            ("The chain and the mean of blocks alone", courses[:2]),
        )
    ]
    return page(heading, heading, [f"<p class='said'>{html_text(said)}</p>", tables[0], figures(drawn), *tables[1:]])


def blocks_figure(record: Mapping[str, Any]) -> "Figure":
    """Return accuracy against the number of blocks: all of the scale, and the top of it."""
    figure = new_figure(11, 5)
    whole, top = figure.subplots(1, 2)
    for axes in (whole, top):
        for name, (colour, marker) in _CURVES.items():
            _curve(axes, name, record["mean"][name], record["standard_error"][name], colour, marker)
        lines = {"chain": "#0b5cad", _SHUFFLED: "#8a2f8f", record["baseline"]["name"]: "#222222"}
        for (name, colour), style in zip(lines.items(), ("--", ":", "-."), strict=True):
            _level(axes, name, record["mean"][name], record["standard_error"][name], colour, style)
        axes.set_xlabel("k, blocks")
        axes.set_xticks(range(1, record["blocks"] + 1), [str(k) for k in range(1, record["blocks"] + 1)])
        axes.grid(alpha=0.25)
    whole.set_ylim(0, 101)
    whole.set_ylabel("test accuracy, %")
    top.set_title("the top of the scale", fontsize=10)
    top.set_ylim(*_range(record))
    whole.set_title(f"{record['data']}; seeds: {len(record['seeds'])}; bands: standard error", fontsize=10)
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _curve(
    axes: "Axes", name: str, mean: Sequence[float], error: Sequence[float | None], colour: str, marker: str
) -> None:
    blocks = range(1, len(mean) + 1)
    height = [100 * value for value in mean]
    spread = [100 * (value or 0) for value in error]
    axes.plot(blocks, height, color=colour, marker=marker, markersize=4, label=name)
    low, high = ([y + sign * s for y, s in zip(height, spread, strict=True)] for sign in (-1, 1))
    axes.fill_between(blocks, low, high, color=colour, alpha=0.15, linewidth=0)


def _level(axes: "Axes", name: str, mean: float, error: float | None, colour: str, style: str) -> None:
    axes.axhline(100 * mean, color=colour, linestyle=style, linewidth=1.3, label=name)
    if error:
        axes.axhspan(100 * (mean - error), 100 * (mean + error), color=colour, alpha=0.08, linewidth=0)


def _range(record: Mapping[str, Any]) -> tuple[float, float]:
    """Return the range, in percent, that holds the chain, the means and the baseline with their errors."""
    mean, error = record["mean"], record["standard_error"]
    values = []
    for name in (*list(_CURVES)[:2], "chain", record["baseline"]["name"]):
        pairs = (
            zip(mean[name], error[name], strict=True) if isinstance(mean[name], list) else [(mean[name], error[name])]
        )
        values += [value + sign * (spread or 0) for value, spread in pairs for sign in (-1, 1)]
    low, high = 100 * min(values), 100 * max(values)
    margin = max(0.2, 0.15 * (high - low))
    return low - margin, high + margin
