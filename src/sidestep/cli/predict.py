"""`sidestep predict RUN FILE`: the classes of images."""

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from torch import Tensor

from sidestep import checkpoint
from sidestep.cli.options import Repeated, all_words, check_order, run_in
from sidestep.cli.output import check_new, show, show_json, show_table
from sidestep.cli.parse import parsed
from sidestep.data import read_named_images
from sidestep.errors import InputError
from sidestep.training.compatibility import picture_form
from sidestep.training.folder import RunFolder
from sidestep.wording import counted, csv_text

__all__ = ["predict_command"]


def predict_command(arguments: list[str]) -> None:
    """Parse the options, predict, and print or write the classes."""
    parsed(_predict, "sidestep predict", arguments)


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
    check_order(run, file, "predict")
    trained = run_in(run, module, device, all_words(set))
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
    title = f"{counted(len(labels), 'image')}, read by {name}" + (f"; not finished: {unfinished}" if unfinished else "")
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
