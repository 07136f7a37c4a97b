"""What `sidestep train` prints of its data before, and of a run after."""

from collections.abc import Mapping
from typing import Any

from sidestep.cli.output import show, show_json, show_table
from sidestep.cli.quality import quality_cells, quality_columns, score_cell
from sidestep.data import DataSet
from sidestep.training import Run
from sidestep.training.calibration import Quality
from sidestep.wording import counted

__all__ = ["report", "show_columns"]


def show_columns(data: DataSet) -> None:
    """Print what each column of a table is taken for."""
    if data.table is None or not data.table.seen:
        return
    rows = [[each.name, each.kind, f"{each.gaps:,}", each.about] for each in data.table.seen]
    count = len(data.train) + len(data.validation) + (len(data.test) if data.has_test else 0)
    show_table(f"{data.name}: {counted(count, 'row')}", ["column", "type", "missing", ""], rows)
    show("")


def _length(result: Mapping[str, Any]) -> str:
    """How long a run was: in epochs where they are whole, else in steps."""
    whole = float(result["epochs"]).is_integer()
    return counted(result["epochs"], "epoch") if whole else counted(result["steps"], "step")


def report(run: Run, as_json: bool) -> None:
    """Print accuracies, size and time of a run, and what each reading reaches."""
    result = run.result
    if as_json:
        show_json(result)
        return

    score = result.get("score")  # of targets that are no classes
    kind = "score" if score else "accuracy"

    def number(split: str) -> str:
        value = result[f"{split}_{kind}"]
        return "-" if value is None else score_cell(value, score)

    named = f" {score}" if score and "accuracy" not in score else ""  # a percentage needs no name
    show_table(
        f"{result['rule']} on {result['data']}, seed {result['seed']}: "
        f"{_length(result)}, {result['seconds']:.1f} s",
        [*(f"{split}{named}" for split in ("train", "validation", "test")), "parameters", "peak memory"],
        [[number("train"), number("validation"), number("test"), f"{result['parameters']:,}",
          f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB"]],
    )  # fmt: skip
    if result["qualities"]:
        which = "test" if result[f"test_{kind}"] is not None else "validation"
        rows = [
            [name, *quality_cells(Quality.from_record(quality), score)] for name, quality in result["qualities"].items()
        ]
        show_table("", [f"{which}, by", *quality_columns(score)], rows)
    if "kept_step" in result:
        show(f"kept: the weights of step {result['kept_step']:,} of {result['steps']:,}, by the validation score")
    if result["variant"]:
        show(f"variant: {result['variant']}")
    show(f"run: {result['run']}")
