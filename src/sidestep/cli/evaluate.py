"""`sidestep eval RUN`: how good a trained run is, by every reading of its rule."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sidestep.cli.options import Repeated, all_words, data_of, run_in
from sidestep.cli.output import notice, show, show_json, show_table
from sidestep.cli.parse import parsed
from sidestep.cli.quality import quality_cells, quality_columns
from sidestep.cli.tuned import eval_tuned, names_tuned
from sidestep.errors import InputError
from sidestep.rules.shared.variant import variant_of
from sidestep.training.calibration import Quality
from sidestep.training.compatibility import check_cut, check_task, check_test, difference
from sidestep.training.folder import RunFolder
from sidestep.training.likelihood import bits_of
from sidestep.training.trained import Run
from sidestep.wording import counted

__all__ = ["eval_command"]


def eval_command(arguments: list[str]) -> None:
    """Parse the options, evaluate, and print the accuracies."""
    if names_tuned(arguments):
        return eval_tuned(arguments)
    parsed(_evaluate, "sidestep eval", arguments)


def _evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    data: str | None = None,
    data_dir: Path | None = None,
    split: Literal["test", "validation", "train"] = "test",
    reading: Repeated = (),
    set: Repeated = (),
    module: str | None = None,
    device: str = "auto",
    calibrate: bool = False,
    json: bool = False,
) -> None:  # long: the options of the command
    """Print accuracy, negative log-likelihood and calibration error of a trained run, by every reading of its rule.

    The likelihood (nats) and the error (ECE, 15 bins) are those of probabilities, by the temperature T that was fitted
    on validation images at the end of training. Where there is no T, they are those of the reading's own scores. Of
    next tokens, the share of right ones and bits a token are printed.

    Args:
        run: Folder of the run.
        data: Data set, .npz file or image folder; by default what the run was trained on. Of another folder of classes
            without train/ and test/ all images are evaluated on.
        data_dir: Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA.
        split: Which split to evaluate on.
        reading: Only these readings (`sidestep rules` lists them).
        set: Other settings of the samplers than at training, NAME=VALUE, e.g. --set steps=200 draws=16.
        module: Image path the run was trained with, FILE.py:NAME, if it was one of your own.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        calibrate: Fit the temperatures anew, at these settings, on the run's validation images. They are not kept.
        json: Print one JSON object.
    """
    given = all_words(set)
    trained = run_in(run, module, device, given)
    found = data_of(run, data, data_dir)
    check_task(trained.task, found)
    row = trained.task.example
    rows = f"{row}s"
    other = difference(RunFolder(run).config(), found) if data else None
    if other and split != "test":
        notice(f"{found.name} is not what {run} was trained on ({other}): some {split} {rows} may have been trained on")
    if other and split == "test" and found.cut_test:
        part = found.every_image()
        notice(
            f"{found.name} is not what {run} was trained on ({other}), and has no splits: all its {len(part):,} {rows} "
            "are evaluated on; if some of them were trained on, that says little"
        )
    else:
        part = found.test if split == "test" else found.validation if split == "validation" else found.train
    if not len(part):
        raise InputError(f"{found.name} has no {split} {rows}; choose another --split")
    if data is None and split == "test":
        check_test(run, part)
    if calibrate:
        check_cut(run, found, instead="leave --calibrate out")
        trained = trained.recalibrated(found.validation, all_words(reading))
    found_by = trained.assess(part, all_words(reading))
    unfinished = RunFolder(run).unfinished(trained.step)
    if json:
        show_json({
            "rule": trained.rule.name, "variant": variant_of(trained.rule),
            "data": found.name, "split": split, "images": len(part), "seed": trained.seed,
            "settings": list(given), "finished": unfinished is None,
            "steps": trained.step, **_records(trained, found_by), "run": str(run),
        })  # fmt: skip
        return
    title = f"{trained.rule.name} on {found.name}, {split}, {counted(len(part), row)}"
    title += f" ({', '.join(given)})" if given else ""
    title += f"; not finished: {unfinished}" if unfinished else ""
    score = None if trained.task.targets == "classes" else trained.task.objective.score_name
    show_table(title, ["by", *quality_columns(score)], [[n, *quality_cells(q, score)] for n, q in found_by.items()])
    variant = variant_of(trained.rule)
    if variant:
        show(f"variant: {variant}")
    for missing in () if score else dict.fromkeys(filter(None, map(trained.uncalibrated, found_by))):
        show(f"without T, NLL and ECE are those of scores: {missing}")


def _records(trained: Run, found: dict[str, Quality]) -> dict[str, Any]:
    """Return the numbers of the first reading, and those of all by their names."""
    qualities = {name: quality.record(trained.task.objective.score_name) for name, quality in found.items()}
    return {
        **next(iter(qualities.values())),
        "readings": {name: quality.accuracy for name, quality in found.items()},
        "qualities": qualities,
        **({"bits_per_token": bits} if (bits := _bits(trained, found)) else {}),
    }


def _bits(trained: Run, found: dict[str, Quality]) -> dict[str, float | None]:
    """Return reading name -> bits a token, of a net of next tokens."""
    return {name: bits_of(quality) for name, quality in found.items()} if trained.task.targets == "tokens" else {}
