"""`sidestep runs [FOLDER]` lists runs; `sidestep compare RUN RUN` asks whether one is better on the same examples."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from sidestep import checkpoint
from sidestep.bench.comparison.paired import Paired, paired
from sidestep.bench.comparison.paired_page import paired_page
from sidestep.cli.options import data_of, run_in
from sidestep.cli.output import check_new, show, show_json, show_table
from sidestep.cli.parse import parsed
from sidestep.cli.quality import score_cell
from sidestep.data import DataSet
from sidestep.data.task import Task
from sidestep.errors import CheckpointError, InputError
from sidestep.training import Run
from sidestep.training.compatibility import check_task, check_test
from sidestep.training.folder import RunFolder
from sidestep.wording import counted

__all__ = ["compare_command", "runs_command"]

TUNED = "tune.json"  # what the folder of a fine-tune holds
_DEEPEST = 3  # folders below the one that is listed
_NO_DIFFERENCE = frozenset({"out", "resume", "overwrite", "checkpoint_seconds", "data_dir", "path"})


def runs_command(arguments: list[str]) -> None:
    """Parse the options and list the runs of a folder."""
    parsed(_runs, "sidestep runs", arguments)


def compare_command(arguments: list[str]) -> None:
    """Parse the options, evaluate both runs, and print what differs."""
    parsed(_compare, "sidestep compare", arguments)


def _runs(folder: Annotated[Path, tyro.conf.Positional] = Path("runs"), /, *, json: bool = False) -> None:
    """List the runs in a folder and those below it: rule, data, seed, accuracy (or another score), state and size.

    A fine-tune is there with its base model in the place of data, and with the accuracy on its validation texts.

    Args:
        folder: Where to look.
        json: Print one JSON object.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; name the one that your runs lie in: sidestep runs FOLDER")
    found = [_record(path) for path in _folders(folder, _DEEPEST)]
    if json:
        show_json({"folder": str(folder), "runs": found})
        return
    if not found:
        show(f"no runs in {folder}; `sidestep train RULE` leaves one in runs/")
        return
    rows = [
        [each["run"], each["rule"] or "-", each["data"] or "-", "-" if each["seed"] is None else str(each["seed"]),
         "-" if each["score"] is None else score_cell(each["score"], each["score_name"]), each["state"],
         f"{each['bytes'] / 2**20:,.1f} MiB"]
        for each in found
    ]  # fmt: skip
    show_table("", ["run", "rule", "data", "seed", "accuracy", "finished", "size"], rows)


def _folders(folder: Path, deep: int) -> Iterator[Path]:
    """Yield the folders of runs, in the order of their names; no link is followed."""
    if (folder / "config.toml").is_file() or (folder / TUNED).is_file():
        yield folder
    elif deep:
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
                yield from _folders(entry, deep - 1)


def _record(path: Path) -> dict[str, Any]:
    folder = RunFolder(path)
    size = sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    found: dict[str, Any] = {"run": str(path), "rule": None, "data": None, "seed": None, "score": None,
                             "score_name": None, "finished": False, "state": "", "bytes": size}  # fmt: skip
    try:
        if (path / TUNED).is_file():
            return found | _of_tuned(path)
        config, result = folder.config(), folder.result()
        found |= {"rule": config["rule"]["name"], "data": config["data"]["name"], "seed": config["train"]["seed"]}
        if result is None:
            state = folder.open_state()
            step = state[1].get("step", 0) if state else 0
            return found | {"state": f"no: {folder.unfinished(step) or 'not evaluated'}"}
    except (CheckpointError, KeyError, TypeError) as error:  # one damaged run does not hide the others
        return found | {"state": f"cannot be read: {error}"}
    name = result.get("score")
    kind = "score" if name else "accuracy"
    scores = [result.get(f"{split}_{kind}") for split in ("test", "validation")]
    score = next((value for value in scores if value is not None), None)
    return found | {"finished": True, "state": "yes", "score": score, "score_name": name}


def _of_tuned(path: Path) -> dict[str, Any]:
    """Return what there is to say of a fine-tune, whose score is that of its validation texts."""
    from sidestep.integrations.tuning.folder import TuneFolder  # for such a folder alone

    folder = TuneFolder(path)
    config, result = folder.config(), folder.result()
    known = {"rule": config["rule"]["name"], "data": config["recipe"]["base"], "seed": config["recipe"]["seed"]}
    if result is None:
        return known | {"state": "no: go on with --resume"}
    name = "accuracy" if config["recipe"]["labels"] else "token accuracy"
    return known | {"finished": True, "state": "yes", "score": result["validation_accuracy"], "score_name": name}


def _compare(
    first: Annotated[Path, tyro.conf.Positional],
    second: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    module: str | None = None,
    device: str = "auto",
    html: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:  # long: the options of the command
    """Compare two finished runs on the same test images: the difference of their accuracies with a 95% interval (paired
    bootstrap), McNemar's test on the images that only one has right, and what differs in their configurations.

    One run each says nothing of other seeds: a difference between rules takes several (`sidestep bench`).

    Args:
        first: Folder of a run.
        second: Folder of the run that is compared with it.
        data: What both were trained on, if it has moved.
        data_dir: Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA.
        module: Module that both were trained with, FILE.py:NAME, if it was one of your own.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        html: Write a page with charts there, one file that needs no other.
        overwrite: Let --html replace a file that exists.
        json: Print one JSON object.
    """
    if html:
        check_new(html, overwrite, (".html",), "--html")
    runs = [run_in(path, module, device, ()) for path in (first, second)]
    for path, run in zip((first, second), runs, strict=True):
        _check_comparable(path, run)
    configs = [RunFolder(path).config() for path in (first, second)]
    found = _same_data(first, second, data, data_dir, runs)
    answers = [_right(run, found) for run in runs]
    compared = paired(*answers)
    differs = _differences(*configs)
    if html:
        rules = runs[0].rule.name, runs[1].rule.name
        page = paired_page((str(first), str(second)), found.name, compared, differs, rules)
        checkpoint.write_text(html, page)
    if json:
        show_json({"first": str(first), "second": str(second), "data": found.name, **dataclasses.asdict(compared),
                   "differs": {name: list(values) for name, values in differs.items()}})  # fmt: skip
        return
    _print(first, second, found, compared, differs)
    if html:
        show("", f"written: {html}")


def _check_comparable(path: Path, run: Run) -> None:
    folder = RunFolder(path)
    if folder.result() is None:
        where = folder.unfinished(run.step) or "not evaluated"
        raise InputError(f"{path} has not finished ({where}): finish it with sidestep train ... --resume --out {path}")
    if run.task.targets != "classes":
        raise InputError(
            f"sidestep compare counts right answers, and {path} was trained on {run.task.targets}; compare the scores "
            "of sidestep eval"
        )


def _same_data(first: Path, second: Path, data: str | None, data_dir: Path | None, runs: list[Run]) -> DataSet:
    """Return the data with the test split that both runs were evaluated on, or raise InputError."""
    results = [RunFolder(path).result() or {} for path in (first, second)]
    pixels = [result.get("test_pixels") for result in results]
    if pixels[0] is None or pixels[1] is None:
        path = first if pixels[0] is None else second
        raise InputError(f"{path} was trained on data without a test split, on which runs are compared")
    if pixels[0] != pixels[1] or runs[0].task.class_names != runs[1].task.class_names:
        names = " and ".join(str(result.get("data")) for result in results)
        raise InputError(
            f"{first} and {second} were evaluated on other test images ({names}): only runs on the same are compared"
        )
    found = data_of(first, data, data_dir)
    check_test(first, found.test)
    for run in runs:
        check_task(run.task, found)
    return found


def _right(run: Run, data: DataSet) -> Tensor:
    return run.predict(data.test.images).argmax(1) == data.test.targets.cpu()


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what two configurations say differently of rule, training and data, by name."""
    values = []
    for config in (first, second):
        parts = {part: config.get(part, {}) for part in ("rule", "train", "data")}
        values.append({f"{part}.{key}": value for part, held in parts.items() for key, value in held.items()})
    names = sorted({name for each in values for name in each if name.partition(".")[2] not in _NO_DIFFERENCE})
    pairs = {name: (values[0].get(name), values[1].get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _print(first: Path, second: Path, data: DataSet, found: Paired, differs: Mapping[str, tuple[Any, Any]]) -> None:
    rows = [
        [str(first), f"{found.first:.2%}", f"{found.only_first:,}"],
        [str(second), f"{found.second:.2%}", f"{found.only_second:,}"],
    ]
    example = Task.of(data).example
    show_table(
        f"{data.name}, test, {counted(found.examples, example)}",
        ["run", "accuracy", "right where the other is wrong"],
        rows,
    )
    show(
        "",
        f"{second} less {first}: {100 * found.difference:+.2f} points, 95% interval {100 * found.low:+.2f} to "
        f"{100 * found.high:+.2f} (paired bootstrap over {example}s)",
        f"McNemar's test: p = {found.p_exact:.3g} (exact), {found.p_mid:.3g} (mid-p);",
        "of these two runs alone: other seeds may say otherwise",
    )
    show("")
    if not differs:
        show("their configurations are the same")
        return
    columns = ["differs", str(first), str(second)]
    show_table("", columns, [[name, *("-" if v is None else str(v) for v in pair)] for name, pair in differs.items()])
