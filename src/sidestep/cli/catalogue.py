"""`sidestep rules`, `sidestep presets` and `sidestep data`: what there is to train with, and on."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sidestep.cli.listing import listed
from sidestep.cli.output import check_new, default_data_dir, error_console, show, show_json, show_table
from sidestep.cli.parse import parsed
from sidestep.cli.preset_times import fitting, machine, matrix_seconds, said_minutes, times
from sidestep.errors import InputError
from sidestep.wording import suggestion

__all__ = ["data_command", "presets_command", "rules_command"]


def rules_command(arguments: list[str]) -> None:
    """Parse the options and list the learning rules."""
    parsed(_rules, "sidestep rules", arguments)


def presets_command(arguments: list[str]) -> None:
    """Parse the options and list the presets."""
    parsed(_presets, "sidestep presets", arguments)


def data_command(arguments: list[str]) -> None:
    """List the data sets, or show pictures of one."""
    if arguments and arguments[0] == "show":
        parsed(_show, "sidestep data show", arguments[1:])
    elif arguments and not arguments[0].startswith("-"):
        raise InputError(
            f"unknown word {arguments[0]!r}: use `sidestep data` or `sidestep data show NAME --out grid.png`"
        )
    else:
        parsed(_data, "sidestep data", arguments)


def _rules(*, json: bool = False) -> None:
    """List the learning rules.

    Args:
        json: Print one JSON object, with the hyper-parameters and their defaults.
    """
    rules = listed("rules")
    if json:
        shown = ("summary", "variant", "defaults", "takes")
        show_json({name: {key: entry[key] for key in shown} for name, entry in rules.items()})
        return
    rows = [[name, entry["summary"], ", ".join(entry["readings"])] for name, entry in rules.items()]
    show_table("", ["rule", "what it does", "readings at inference"], rows)
    support = _support(rules)
    show_table("", ["rule", "module of yours", "own loop", "targets", "log", "in turn", "true gradient"], support)
    show(
        "",
        "module of yours: what `train` takes by --module; own loop: what `attach` trains; in turn: units that take",
        "their steps one after another; true gradient: what `align` compares with. All take images and rows of tables,",
        "and leave frozen parameters as they are.",
    )
    variants = {name: entry["variant"] for name, entry in rules.items()}
    show("", *(f"{name}, by default: {variant}" for name, variant in variants.items() if variant))
    show("", "`sidestep train RULE --help` explains a rule's options.")


def _support(rules: Mapping[str, Any]) -> list[list[str]]:
    rows, words = [], listed("modules")
    for name, entry in rules.items():
        found = entry["takes"]
        marks = ["yes" if found[key] else "no" for key in ("units_in_turn", "true_gradient")]
        modules = [words[found[key]] for key in ("module", "own_loop")]
        rows.append([name, *modules, ", ".join(found["targets"]), _log(found), *marks])
    return rows


def _log(takes: Mapping[str, Any]) -> str:
    """Say whether runs leave a log: by default, and with which option."""
    with_option = takes["log_with"].replace("_", "-").replace(" = ", " ")
    return takes["log"] + (f"; yes with --{with_option}" if with_option else "")


def _presets(
    *, data: str | None = None, rule: str | None = None, minutes: float | None = None, json: bool = False
) -> None:
    """List the presets.

    Args:
        data: Only those for this data set.
        rule: Only those of this rule.
        minutes: Only those that train in about so many minutes on one core here, each with the longest of its budgets
            that does. A step of each was timed on one machine, and is scaled by a matrix product on this one.
        json: Print one JSON object, with the values of every preset.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise InputError(f"minutes must be above 0, got {minutes:g}; for instance --minutes 5")
    presets = listed("presets")
    found = _chosen(_chosen(presets, "data", data, "for the data set"), "rule", rule, "of")
    chosen, fits = found, _fitting(found, minutes) if minutes is not None else {}
    if minutes is not None:
        found = {name: of for name, of in found.items() if name in fits}
    if json:
        timed = {name: {"budget": budget, "minutes": round(took, 2)} for name, (budget, took) in fits.items()}
        show_json({name: {**of, **timed.get(name, {})} for name, of in found.items()})
        return
    rows = [[name, of["data"], of["rule"], _reported(of["paper"]), of["summary"]] for name, of in found.items()]
    columns = ["preset", "data", "rule", "the paper's %", "what it is"]
    if minutes is not None:
        columns[3:4] = ["budget", "trains in about"]
        rows = [[*row[:3], fits[row[0]][0], said_minutes(fits[row[0]][1]), row[4]] for row in rows]
    show_table("", columns, rows)
    show("", "`sidestep train --preset NAME` trains by one; options given beside it go first.")
    if minutes is not None:
        _say_of_times(chosen)


def _say_of_times(presets: Mapping[str, Any]) -> None:
    timed = times()
    untimed = [name for name in presets if name not in timed]
    if untimed:
        show(f"No step was timed of {', '.join(untimed)}.")
    show(
        "Times are rough, and of training alone, on one core of this machine: a step on",
        f"up to 64 images was timed on {machine()}, and is scaled to the batch and by a matrix product here.",
        "--budget is an option of `train`; what a paper's preset reaches is said of its full budget.",
    )


def _chosen(presets: Mapping[str, Any], key: str, value: str | None, word: str) -> dict[str, Any]:
    """Return the presets with a value of theirs, all for None; raises InputError where there are none."""
    found = {name: entry for name, entry in presets.items() if value in (None, entry[key])}
    if found:
        return found
    known = list(dict.fromkeys(entry[key] for entry in presets.values()))
    if key == "rule" and value in listed("rules"):
        raise InputError(f"there is no preset of {value} here: leave --rule out, or `sidestep train {value}` as it is")
    said = suggestion(str(value), known, f"there are some {word.split()[0]} {', '.join(known)}")
    raise InputError(f"there is no preset {word} {value!r}: {said}")


def _fitting(presets: Mapping[str, Any], minutes: float) -> dict[str, tuple[str, float]]:
    """Return the presets whose training fits, with budget and minutes; raises InputError where none does."""
    timed, here = {name: of for name, of in times().items() if name in presets}, matrix_seconds()
    fits = fitting(timed, minutes, here)
    if fits:
        return fits
    if not timed:
        raise InputError(f"of {', '.join(presets)} no step was timed here; leave --minutes out")
    name, (budget, least) = min(fitting(timed, math.inf, here, shortest=True).items(), key=lambda item: item[1][1])
    raise InputError(
        f"no preset trains in {minutes:g} min here; the quickest, {name} with --budget {budget}, takes about "
        f"{said_minutes(least)}: --minutes {math.ceil(least)}"
    )


def _reported(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "-"
    return f"{cell['mean']:.2f}" + ("" if cell["error"] is None else f" ± {cell['error']:.2f}")


def _data(*, json: bool = False) -> None:
    """List the data sets.

    Args:
        json: Print one JSON object.
    """
    found = listed("data")
    if json:
        show_json(found)
        return
    columns = ["data set", "what it is", "train", "test", "download", "licence"]
    rows = [
        [name, of["description"], f"{of['train']:,}", f"{of['test']:,}", of["download"], of["licence"]]
        for name, of in found.items()
    ]
    show_table("", columns, rows)
    show(
        "",
        "Also: a .npz file, a table (.csv, .tsv, .parquet), a text (.txt), a folder of .npy files, or a folder with "
        "one folder of images per class.",
    )


def _show(
    name: Annotated[str, tyro.conf.Positional],
    /,
    out: Path = Path("grid.png"),
    data_dir: Path | None = None,
    split: Literal["train", "validation", "test"] = "train",
    rows: int = 5,
    columns: int = 10,
    image_size: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a picture of a data set's first images with their class names.

    Args:
        name: Data set, .npz file or image folder.
        out: The picture, .png.
        data_dir: Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA.
        split: Which split to show.
        rows: Rows of images.
        columns: Images in a row.
        image_size: Height and width of the images: 28, 64 or 128 for bloodmnist; image folders are resized to it.
        overwrite: Let --out replace a file that exists.
    """
    from sidestep.data import grid, load  # here, since they import torch, and a list needs none of it

    check_new(out, overwrite, (".png",))
    found = load(name, data_dir=data_dir or default_data_dir(), size=image_size, progress=error_console.is_terminal)
    part = found.test if split == "test" else found.validation if split == "validation" else found.train
    grid(part, found.class_names, out, rows, columns)
    channels, height, width = found.image_shape
    show(f"{found.name}: {len(found.train):,} train, {len(found.validation):,} validation, {found.classes} classes, "
         f"{height} x {width} x {channels}; written: {out}")  # fmt: skip
