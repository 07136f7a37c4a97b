"""`sidestep rules`, `sidestep presets` and `sidestep data`: what there is to train with, and on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sidestep.cli.listing import listed
from sidestep.cli.output import check_new, default_data_dir, error_console, show, show_json, show_table
from sidestep.cli.parse import parsed
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


def _presets(*, data: str | None = None, json: bool = False) -> None:
    """List the presets.

    Args:
        data: Only those for this data set.
        json: Print one JSON object, with the values of every preset.
    """
    presets = listed("presets")
    found = {name: entry for name, entry in presets.items() if data in (None, entry["data"])}
    if not found:
        sets = list(dict.fromkeys(entry["data"] for entry in presets.values()))
        said = suggestion(str(data), sets, f"there are some for {', '.join(sets)}")
        raise InputError(f"there is no preset for the data set {data!r}: {said}")
    if json:
        show_json(found)
        return
    rows = [[name, of["data"], of["rule"], _reported(of["paper"]), of["summary"]] for name, of in found.items()]
    show_table("", ["preset", "data", "rule", "the paper's %", "what it is"], rows)
    show("", "`sidestep train --preset NAME` trains by one; options given beside it go first.")


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
    show("", "Also: a .npz file, a folder of .npy files, or a folder with one folder of images per class.")


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
