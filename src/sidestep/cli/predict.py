"""`sidestep predict RUN FILE ...`: the classes of images, and the classes or values of rows of a table."""

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import tyro

from sidestep.cli.options import Repeated, all_words, check_order, run_in
from sidestep.cli.output import check_new, notice, show, show_json, show_table
from sidestep.cli.parse import parsed
from sidestep.cli.predict_inputs import Given, given_inputs
from sidestep.cli.predict_output import SUFFIXES, Answers, write_answers
from sidestep.cli.tuned import names_tuned, predict_tuned
from sidestep.training import Run
from sidestep.training.folder import RunFolder
from sidestep.wording import counted

__all__ = ["predict_command"]


def predict_command(arguments: list[str]) -> None:
    """Parse the options, predict, and print or write the classes."""
    if names_tuned(arguments):
        return predict_tuned(arguments)
    parsed(_predict, "sidestep predict", arguments)


def _predict(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    file: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE ...")],
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
    """Print the class of every image in files or folders, pictures stretched as those trained on were; or what every
    row of a table is predicted to be, its columns encoded as in training.

    A picture among several that cannot be read is left out with a sentence that names it; the others are predicted, and
    the status at the end is 1.

    Args:
        run: Folder of the run.
        file: Images: pictures, folders of them, a pattern in quotes such as 'photos/*.jpg', a .npz (array `images`,
            `x`, `x_test`, `test_images`, or its only one), a .npy; of a run on a table .csv, .tsv or .parquet files,
            with or without the target. - stands for standard input: one such file.
        out: Write all predictions there: .csv (index, class, probability, file), .ndjson (an object a line, with the
            probabilities of all classes) or .npz (labels, probabilities, class_names, files); without a temperature
            (see `sidestep eval`) it says score and scores instead, and of numbers value. In the .csv a name that a
            spreadsheet would calculate has an apostrophe in front.
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
        check_new(out, overwrite, SUFFIXES)
    unfinished = RunFolder(run).unfinished(trained.step)
    given = given_inputs(trained, run, file)
    name = reading or trained.rule.readings[0]
    values = trained.task.targets != "classes"
    missing = None if values else trained.uncalibrated(name)
    kind = "value" if values else "score" if missing else "probability"
    answers = Answers(torch.zeros(0, trained.task.classes), trained.task.class_names, kind, given.names)
    blocks = trained.predict_blocks(given.inputs, name)
    if json or (out and out.suffix == ".npz"):  # which hold all of it
        blocks = iter([torch.cat([answers.found, *blocks])])
    rows: list[list[str]] = []
    parts = _seen(answers.parts(blocks), rows, max(0, most))
    last = write_answers(out, parts) if out else deque(parts, maxlen=1).pop()
    if json:
        show_json(_record(run, unfinished, trained, name, given, last))
    else:
        _show(rows, answers, given.noun, name, unfinished, missing, out)
    for lost in given.lost:
        notice(f"left out: {lost}")
    if given.lost:
        raise SystemExit(1)


def _record(
    run: Path, unfinished: str | None, trained: Run, name: str, given: Given, answers: Answers
) -> dict[str, object]:
    found: dict[str, object] = {
        "run": str(run), "finished": unfinished is None, "reading": name, f"{given.noun}s": len(answers.names),
        "files": list(answers.names), "left_out": list(given.lost), answers.kind: answers.best,
    }  # fmt: skip
    if answers.kind != "value":
        labels = answers.labels
        found |= {"labels": labels, "classes": [answers.outputs[label] for label in labels]}
        found["temperature"] = trained.temperature(name)
    return found


def _seen(parts: Iterable[Answers], rows: list[list[str]], most: int) -> Iterator[Answers]:
    """Yield the parts, and keep the first rows that are printed."""
    for part in parts:
        rows += part.rows(most - len(rows))
        yield part


def _show(  # long: what is printed, and what has to be said beside it
    rows: list[list[str]],
    answers: Answers,
    noun: str,
    name: str,
    unfinished: str | None,
    missing: str | None,
    out: Path | None,
) -> None:
    count = len(answers.names)
    title = f"{counted(count, noun)}, read by {name}" + (f"; not finished: {unfinished}" if unfinished else "")
    columns = ["class", answers.kind] if answers.kind != "value" else [answers.outputs[0]]
    show_table(title, [noun, *columns], rows)
    if missing:
        show(f"scores, which need not say how often they are right: {missing}")
    if count > len(rows):
        show(f"... and {count - len(rows)} more" + ("" if out else "; --out FILE.csv writes all"))
    if out:
        show(f"written: {out}")
