"""A table of accuracies beside the paper's: rows from the cells that are there, and the page that shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sidestep.bench.paper_tables.cells import Plan, cell_record, commits_of
from sidestep.bench.paper_tables.rows import FIRST_TEST, FIRST_TRAIN, command_for
from sidestep.bench.report import Table, share, wrapped
from sidestep.bench.studies.blocks import mean_and_error
from sidestep.measure.environment import environment_words
from sidestep.presets.catalogue import PaperCell, Preset
from sidestep.rules import RULES
from sidestep.rules.shared.variant import variant_of
from sidestep.version import __version__
from sidestep.wording import counted, spelled

__all__ = [
    "BUDGET_WORDS",
    "accuracy_record",
    "accuracy_row",
    "accuracy_tables",
    "accuracy_text",
    "changed_words",
    "verdict",
]

BUDGET_WORDS = {
    "full": "Epochs and settings are the paper's.",
    "cpu": "**Fewer epochs than the paper's** (columns `epochs` and `changed`), so that a row takes hours on a CPU and "
    "not days: a number below the paper's means nothing yet, so there is no verdict.",
    "tiny": f"**Only a check that everything runs**: trained on the first {FIRST_TRAIN:,} images for a few steps, "
    f"tested on the first {FIRST_TEST:,}. The numbers mean nothing, so there is no verdict.",
}
_NOTES = (
    "Test accuracy in %, with two errors in brackets. The first is the standard error over seeds, sd / sqrt(n) of "
    "their means: - for a single seed. The paper's is over training seeds times inference runs (`runs`), as if runs of "
    "one net were independent; ours by that count, which is mostly smaller, is `error` in the record. A reading that "
    "draws no noise has one value per seed. The second is that of the test images, sqrt(p (1 - p) / n): more seeds do "
    "not lessen it, and the paper's accuracies have it as well.",
    "`ours` is read as the paper reads it (`reading`); `by default` is the reading that the rule takes by itself, one "
    "value per seed.",
    "`verdict`, at the full budget: pass where ours >= paper - 2 e, with e the paper's own standard error, and 0 where "
    "it gives none. Our own error does not count, so noisier runs do not pass more easily.",
    "`memory`: on a GPU the most that torch's tensors took in that run, its evaluation included; on a CPU, with <=, "
    "the high-water mark of the whole process so far, in which the rows run one after another. `noprop-table2` "
    "measures training alone.",
)
_COLUMNS = [
    "row", "data", "paper", "ours", "reading", "runs", "by default", "verdict", "epochs", "changed", "s / run",
    "memory",
]  # fmt: skip


def verdict(mean: float, paper: PaperCell | None) -> str:
    """Return `pass` or `fail` against the paper's own error, or `-` where there is no number of the paper; all in %.

    pass: `mean >= paper - 2 e_paper`, with e_paper = 0 where the paper gives no error.

    >>> verdict(99.40, PaperCell(99.47, 0.04)), verdict(99.38, PaperCell(99.47, 0.04))
    ('pass', 'fail')
    """
    if paper is None:
        return "-"
    return "pass" if mean >= paper.mean - 2 * (paper.error or 0.0) else "fail"


def changed_words(preset: Preset, full: Preset) -> str:
    """Return which of a row's options a budget has changed, in words; "" for none."""
    return _words_for(_changed(preset, full))


def _changed(preset: Preset, full: Preset) -> dict[str, dict[str, Any]]:
    return {k: {"here": v, "paper": full.options[k]} for k, v in preset.options.items() if full.options[k] != v}


def _words_for(changed: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{name} {value['here']}, not {value['paper']}" for name, value in changed.items())


def accuracy_row(
    preset: Preset, full: Preset, cells: Sequence[Mapping[str, Any]], budget: str, readings: int | None = None
) -> dict[str, Any]:
    """Return a row of the table.

    Args:
        preset: with the values of the budget.
        full: with its own values.
        cells: what is known of the seeds that were run.
        budget: whether there is a verdict.
        readings: how many inference runs of a seed count; all by default.
    """
    done = [cell for cell in cells if "failed" not in cell]
    read = [cell["accuracies"][:readings] for cell in done]
    row: dict[str, Any] = {
        "preset": preset.name,
        "row": preset.row,
        "data": preset.data,
        "paper": None if preset.paper is None else {"mean": preset.paper.mean, "error": preset.paper.error},
        "reading": preset.reading,
        "variant": variant_of(RULES[preset.rule](**preset.options)),
        "values": [100 * value for shares in read for value in shares],
        "seeds": len(done),
        "inference_runs": list(map(len, read)),
        "test_images": min((n for cell in done if (n := cell.get("test_images"))), default=None),
        "failed": [{"seed": cell["seed"], "why": cell["failed"]} for cell in cells if "failed" in cell],
        "epochs": {"wanted": preset.train["epochs"], "paper": full.train["epochs"]},
        "changed": _changed(preset, full),
        "cells": done,
        "verdict": "-",
    }
    if not done:
        return row
    row["epochs"]["done"] = min(cell["epochs"] for cell in done)
    row |= _numbers(done, read)
    if budget == "full":
        row["verdict"] = verdict(row["mean"], preset.paper)
    return row


def _numbers(done: Sequence[Mapping[str, Any]], read: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return what finished runs reach and take, by the shares that were read of each."""
    mean, error = mean_and_error([100 * value for shares in read for value in shares])
    _, error_of_seeds = mean_and_error([100 * sum(shares) / len(shares) for shares in read])
    name = next(iter(done[0]["default_reading"]))
    default = [100 * cell["default_reading"][name] for cell in done]
    by_default = dict(zip(("mean", "error"), mean_and_error(default), strict=True))
    return {
        "mean": mean,
        "error": error,
        "error_of_seeds": error_of_seeds,
        "by_default": {"reading": name, "values": default, **by_default},
        "seconds": sum(cell["seconds"] for cell in done) / len(done),
        "peak_memory_bytes": max(cell["peak_memory_bytes"] for cell in done),
        "computed_on": sorted({f"{cell['device']}, {cell['precision']}" for cell in done}),
    }


def _place(cell: Mapping[str, Any], commits: Sequence[str] = ()) -> str:
    """Return on what a run was computed, and where it was first read and with which versions, as far as it is known.

    Args:
        cell: the run.
        commits: of the sources of all runs there.
    """
    words, found = [f"{cell['device']}, {cell['precision']}"], cell.get("environment")
    return "; ".join([*words, environment_words(found, commits)] if found else words)


def accuracy_record(
    table: str, presets: Sequence[Preset], wanted: Sequence[Preset], plan: Plan, command: str
) -> dict[str, Any]:
    """Return the record of a table: its wanted rows, and those others that were run earlier, into the same folder.

    Args:
        table: its name.
        presets: all rows of the table, with their own values.
        wanted: those that were asked for.
        plan: where the cells lie.
        command: what was typed; the record has the one that asks for all of its rows.
    """
    rows, shown = [], []
    names = {preset.name for preset in wanted}
    for full in presets:
        preset = full.for_budget(plan.budget)
        cells = [cell for seed in range(plan.seeds) if (cell := cell_record(preset, seed, plan)) is not None]
        if cells or preset.name in names:
            shown.append(full)
            rows.append(accuracy_row(preset, full, cells, plan.budget, plan.readings(preset)))
    several = len({cell["precision"] for row in rows for cell in row["cells"]}) > 1
    return {
        "table": table,
        "command": command_for(command, shown, wanted, ["--precision"] if several else []),
        "budget": plan.budget,
        "seeds": plan.seeds,
        "inference_runs": plan.inference_runs,
        "sidestep": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "computed_on": sorted({place for row in rows for place in row.get("computed_on", [])}),
        "rows": rows,
        "rows_left_out": len(presets) - len(rows),
    }


def accuracy_text(record: Mapping[str, Any]) -> str:
    """Return what stands above the table: the command, where it ran, and how to read it."""
    left_out, places = record["rows_left_out"], _places(record["rows"])
    most = "Up to " if any(row["seeds"] < record["seeds"] for row in record["rows"]) else ""
    counts = f"{most}{counted(record['seeds'], 'seed')}, {counted(record['inference_runs'], 'inference run')} each"
    not_asked = f" {counted(left_out, 'row')} of the table {'was' if left_out == 1 else 'were'} not asked for."
    merged = sum(cell.get("merged", False) for row in record["rows"] for cell in row["cells"])
    parts = [
        f"# {record['table']}, budget {record['budget']}",
        "\n".join(f"    {spelled(line)}" for line in record["command"].splitlines()),
        wrapped(BUDGET_WORDS[record["budget"]]),
        wrapped(
            f"{counts}; {next(iter(places), 'nothing yet') if len(places) < 2 else 'in several places, see below'}."
            + (not_asked if left_out else "")
        ),
        "Trained on, and first read by:\n\n"
        + "\n".join(wrapped(f"- {place}: {', '.join(runs)}", "  ") for place, runs in places.items())
        if len(places) > 1
        else "",
        wrapped(
            f"{counted(merged, 'run')} of other folders {'was' if merged == 1 else 'were'} merged (`--merge`). Without "
            "that, and with an `--out` and a `--report` of its own, the command above trains them all."
        )
        if merged
        else "",
        *map(wrapped, (*_variants(record["rows"]), *_NOTES)),
    ]
    return "\n\n".join(part for part in parts if part)


def _places(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return where runs were computed, and which: rows, and of a row with several places the seeds."""
    found: dict[str, list[str]] = {}
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        seeds: dict[str, list[int]] = {}
        for cell in row["cells"]:
            place = _place(cell)
            seeds.setdefault(place, []).append(cell["seed"])
            cells.setdefault(place, []).append(cell)
        for place, of_row in seeds.items():
            which = f", seed{'s' * (len(of_row) > 1)} {' '.join(map(str, of_row))}" if len(seeds) > 1 else ""
            found.setdefault(place, []).append(f"{row['row']} ({row['data']}{which})")
    return {_place(cells[place][0], commits_of(cells[place])): which for place, which in found.items()}


def _variants(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line about each variant of the paper's methods among the rows; how long they train is another matter."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.get("variant"):
            found.setdefault(row["variant"], []).append(row["row"])
    return [f"By the options of {', '.join(dict.fromkeys(names))}: {variant}." for variant, names in found.items()]


def accuracy_tables(record: Mapping[str, Any]) -> list[Table]:
    """Return the table, and a second one of the runs that failed, if any did."""
    tables = [Table("", _COLUMNS, [_words(row) for row in record["rows"]])]
    failed = [[row["preset"], str(run["seed"]), run["why"]] for row in record["rows"] for run in row["failed"]]
    if failed:
        tables.append(Table("Failed, to be tried again by the same command:", ["preset", "seed", "why"], failed))
    return tables


def _words(row: Mapping[str, Any]) -> list[str]:
    paper = row["paper"]
    theirs = "-" if paper is None else _percent(paper["mean"], paper["error"])
    epochs, of = row["epochs"], row["epochs"]["paper"]
    changed = _words_for(row["changed"]) or "-"
    if not row["seeds"]:
        state = "failed" if row["failed"] else "not finished"
        return [row["row"], row["data"], theirs, state, row["reading"], "0", "-", "-", f"- of {of}", changed, "-", "-"]
    default, images = row["by_default"], row.get("test_images")
    each = " to ".join(map(str, dict.fromkeys((min(row["inference_runs"]), max(row["inference_runs"])))))
    on_gpu = any(place.startswith("cuda") for place in row["computed_on"])
    return [
        row["row"],
        row["data"],
        theirs,
        _percent(row["mean"], row["error_of_seeds"], images),
        row["reading"],
        f"{row['seeds']} x {each}",
        f"{_percent(default['mean'], default['error'], images)} {default['reading']}",
        row["verdict"],
        f"{epochs['done']:g} of {of}",
        changed,
        f"{row['seconds']:,.0f}",
        f"{'' if on_gpu else '<= '}{row['peak_memory_bytes'] / 2**30:.2f} GiB",
    ]


def _percent(mean: float, error: float | None, images: int | None = None) -> str:
    return share(mean / 100, None if error is None else error / 100, images=images)
