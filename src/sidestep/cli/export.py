"""`sidestep export RUN FILE`: a trained net as a file that other programs run."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from sidestep.cli.options import check_order, run_in
from sidestep.cli.output import notice, show, show_json
from sidestep.cli.parse import parsed
from sidestep.integrations.export import CHECKED, export
from sidestep.training.folder import RunFolder

__all__ = ["export_command"]


def export_command(arguments: list[str]) -> None:
    """Parse the options, write the file, and say what it takes and gives."""
    parsed(_export, "sidestep export", arguments)


def _export(
    run: Annotated[Path, tyro.conf.Positional],
    file: Annotated[Path, tyro.conf.Positional],
    /,
    reading: str | None = None,
    module: str | None = None,
    check: bool = False,
    opset: int = 18,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write a trained net as one file for other programs: .onnx, or .pt2 for torch. It takes raw inputs, in batches of
    any size, and gives what `sidestep predict` gives: standardisation, reading and temperature are inside.

    Args:
        run: Folder of the run.
        file: What to write; the name's end, .onnx or .pt2, says in which form.
        reading: Which of the rule's readings answers, one that draws no noise; by default the first.
        module: Image path the run was trained with, FILE.py:NAME, if it was one of your own.
        check: Run the file on batches of 1, 7 and 128 made-up inputs, and print the largest difference.
        opset: Version of ONNX's operators.
        overwrite: Replace a file that is there.
        json: Print one JSON object.
    """
    check_order(run, [file], "export")
    trained = run_in(run, module, "cpu", ())
    unfinished = RunFolder(run).unfinished(trained.step)
    if unfinished:
        notice(f"{run} is not finished: {unfinished}")
    done = export(trained, file, reading, check=check, opset=opset, overwrite=overwrite)
    if json:
        show_json({**dataclasses.asdict(done), "path": str(done.path), "rule": trained.rule.name})
        return
    shape = ", ".join(["n", *map(str, done.shape)])
    show(f"written: {done.path}, {done.path.stat().st_size:,} bytes; takes {done.dtype} ({shape}), gives "
         f"(n, {trained.task.classes}), by {done.reading}")  # fmt: skip
    missing = trained.uncalibrated(reading)
    if missing and trained.task.targets == "classes":
        show(f"its answers are scores, no probabilities: {missing}")
    if done.difference is not None:
        sizes = ", ".join(map(str, CHECKED))
        show(f"largest difference to this library's answers, batches of {sizes}: {done.difference:.2g}")
