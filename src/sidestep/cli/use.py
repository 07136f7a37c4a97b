"""`sidestep eval RUN` and `sidestep predict RUN FILE`: use what was trained."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from torch import Tensor

from sidestep import checkpoint
from sidestep.cli.options import module_from
from sidestep.cli.output import check_new, default_data_dir, error_console, notice, show, show_json, show_table
from sidestep.cli.parse import parsed
from sidestep.cli.quality import quality_cells, quality_columns
from sidestep.cli.repeated import Repeated, all_words, settings
from sidestep.data import DataSet, load, read_named_images
from sidestep.errors import DataError, InputError
from sidestep.rules.shared.variant import variant_of
from sidestep.training import Run, load_run
from sidestep.training.compatibility import check_cut, check_task, check_test, difference, picture_form
from sidestep.training.folder import RunFolder
from sidestep.wording import csv_text

__all__ = ["data_of", "eval_command", "predict_command"]


def eval_command(arguments: list[str]) -> None:
    """Parse the options, evaluate, and print the accuracies."""
    parsed(_evaluate, "sidestep eval", arguments)


def predict_command(arguments: list[str]) -> None:
    """Parse the options, predict, and print or write the classes."""
    parsed(_predict, "sidestep predict", arguments)


def _load(path: Path, module: str | None, device: str, given: Sequence[str]) -> Run:
    # never from the run's own configuration: looking at somebody's run must not run their code
    made = module_from(module) if module else None
    return load_run(path, module=made, device=device, inference=settings(given))


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
    on validation images at the end of training. Where there is no T, they are those of the reading's own scores.

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
    trained = _load(run, module, device, given)
    found = data_of(run, data, data_dir)
    check_task(trained.task, found)
    other = difference(RunFolder(run).config(), found) if data else None
    if other and split != "test":
        notice(f"{found.name} is not what {run} was trained on ({other}): some {split} images may have been trained on")
    if other and split == "test" and found.cut_test:
        part = found.every_image()
        notice(
            f"{found.name} is not what {run} was trained on ({other}), and has no splits: all its {len(part):,} images "
            "are evaluated on; if some of them were trained on, that says little"
        )
    else:
        part = found.test if split == "test" else found.validation if split == "validation" else found.train
    if not len(part):
        raise InputError(f"{found.name} has no {split} images; choose another --split")
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
            "steps": trained.step, **dataclasses.asdict(next(iter(found_by.values()))),
            "readings": {name: quality.accuracy for name, quality in found_by.items()},
            "qualities": {name: dataclasses.asdict(quality) for name, quality in found_by.items()}, "run": str(run),
        })  # fmt: skip
        return
    title = f"{trained.rule.name} on {found.name}, {split}, {len(part):,} images"
    title += f" ({', '.join(given)})" if given else ""
    title += f"; not finished: {unfinished}" if unfinished else ""
    score = None if trained.task.targets == "classes" else trained.task.objective.score_name
    show_table(title, ["by", *quality_columns(score)], [[n, *quality_cells(q, score)] for n, q in found_by.items()])
    variant = variant_of(trained.rule)
    if variant:
        show(f"variant: {variant}")
    for missing in () if score else dict.fromkeys(filter(None, map(trained.uncalibrated, found_by))):
        show(f"without T, NLL and ECE are those of scores: {missing}")


def data_of(run: Path, data: str | None, data_dir: Path | None) -> DataSet:
    """Return the data set of that name, or the one that a run was trained on."""
    config = RunFolder(run).config()
    saved = config.get("data", {})
    directory = data_dir or default_data_dir() or (Path(saved["data_dir"]) if "data_dir" in saved else None)
    name = data or str(saved.get("name", "arrays"))
    if data is None and (saved.get("in_memory") or name == "arrays"):
        raise InputError(f"{run} was trained on arrays in memory; name a data set or a .npz file with --data")
    try:
        found = load(
            name,
            data_dir=directory,
            validation=saved.get("validation", 0.1),
            size=saved.get("size") if data is None or data == saved.get("name") else None,
            form=picture_form(run),
            targets=config.get("task", {}).get("targets", "classes"),
            progress=error_console.is_terminal,
        )
    except DataError as error:
        if data is not None:
            raise
        raise DataError(
            f"{error} ({RunFolder(run).config_file} says that the run was trained on them); give them with --data if "
            "they lie elsewhere now"
        ) from error
    other = difference(config, found)
    if other and data is None:
        raise InputError(
            f"{name} is not what {run} was trained on ({other}): bring these data back, or give those that you mean "
            "with --data"
        )
    return found


def _predict(
    run: Annotated[Path, tyro.conf.Positional],
    file: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    out: Path | None = None,
    reading: str | None = None,
    set: Repeated = (),
    module: str | None = None,
    device: str = "auto",
    most: int = 20,
    overwrite: bool = False,
    json: bool = False,
) -> None:  # long: the options of the command
    """Print the class of every image in files or folders; pictures are stretched as those trained on were.

    Args:
        run: Folder of the run.
        file: Images: pictures, folders of them, a .npz (array `images`, `x`, `x_test`, `test_images`, or its only one),
            a .npy.
        out: Write all predictions there: .csv (index, class, probability, file) or .npz (labels, probabilities,
            class_names, files); without a temperature (see `sidestep eval`) it says score and scores instead. In the
            .csv a name that a spreadsheet would calculate has an apostrophe in front.
        reading: Which of the rule's readings to use, e.g. ancestral; by default the first (see `sidestep rules`).
        set: Other settings of the samplers than at training, NAME=VALUE, e.g. --set steps=200.
        module: Image path the run was trained with, FILE.py:NAME, if it was one of your own.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        most: How many predictions to print.
        overwrite: Let --out replace a file that exists.
        json: Print one JSON object with all labels.
    """
    trained = _load(run, module, device, all_words(set))
    if out:
        check_new(out, overwrite, (".csv", ".npz"))
    unfinished = RunFolder(run).unfinished(trained.step)
    if not file:
        raise InputError("name the images to classify: sidestep predict RUN FILE ..., or a folder of pictures")
    if trained.task.inputs != "image" or trained.task.targets != "classes":
        raise InputError(
            f"sidestep predict shows the classes of images, and {run} was trained on {trained.task.inputs} with "
            f"{trained.task.targets} as targets; in Python: sidestep.load_run({str(run)!r}).predict(inputs)"
        )
    images, files = read_named_images(file, trained.task.image_shape, picture_form(run))
    name = reading or trained.rule.readings[0]
    probabilities = trained.predict(images, name)
    missing = trained.uncalibrated(name)
    kind, form = ("score", ".3f") if missing else ("probability", ".1%")
    labels = probabilities.argmax(dim=1).tolist()
    classes = trained.task.class_names
    if out:
        _write(out, probabilities, classes, kind, files)
    if json:
        show_json({
            "run": str(run), "finished": unfinished is None, "reading": name, "images": len(labels), "labels": labels,
            "classes": [classes[label] for label in labels], "files": list(files),
            "temperature": trained.temperature(name), kind: probabilities.amax(dim=1).tolist(),
        })  # fmt: skip
        return
    rows = [[files[i], classes[k], f"{probabilities[i, k]:{form}}"] for i, k in enumerate(labels[: max(0, most)])]
    title = f"{len(labels):,} images, read by {name}" + (f"; not finished: {unfinished}" if unfinished else "")
    show_table(title, ["image", "class", kind], rows)
    if missing:
        show(f"scores, which need not say how often they are right: {missing}")
    if len(labels) > len(rows):
        show(f"... and {len(labels) - len(rows)} more" + ("" if out else "; --out FILE.csv writes all"))
    if out:
        show(f"written: {out}")


def _write(out: Path, probabilities: Tensor, names: tuple[str, ...], kind: str, files: tuple[str, ...]) -> None:
    labels = probabilities.argmax(dim=1)
    if out.suffix == ".npz":
        buffer = io.BytesIO()
        answers, shares, classes, where = labels.numpy(), probabilities.numpy(), np.array(names), np.array(files)
        if kind == "probability":
            np.savez(buffer, labels=answers, probabilities=shares, class_names=classes, files=where)
        else:
            np.savez(buffer, labels=answers, scores=shares, class_names=classes, files=where)
        checkpoint.write_bytes(out, buffer.getvalue())
    else:
        rows = [
            [index, names[label], f"{probabilities[index, label]:.6f}", files[index]]
            for index, label in enumerate(labels.tolist())
        ]
        checkpoint.write_text(out, csv_text([["index", "class", kind, "file"], *rows]))
