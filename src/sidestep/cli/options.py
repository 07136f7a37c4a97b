"""Options that commands have in common: which data, whose module, which rule, which run; and what they stand for."""

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro
from torch import nn

from sidestep.cli.output import default_data_dir, error_console
from sidestep.cli.rescue import is_own
from sidestep.data import DataSet, load
from sidestep.errors import DataError, InputError
from sidestep.rules import RULES, Rule
from sidestep.training import Options, Run, load_run
from sidestep.training.compatibility import difference, picture_form, table_form
from sidestep.training.folder import RunFolder
from sidestep.wording import meant, suggestion

__all__ = [
    "DataOptions",
    "Extra",
    "Given",
    "Repeated",
    "TrainData",
    "all_words",
    "check_order",
    "data_of",
    "last_value",
    "module_from",
    "rule_named",
    "run_in",
    "settings",
]


Repeated = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]  # --rows a b --rows c


@dataclass(frozen=True)
class DataOptions:
    """Which images to train on."""

    data: str = "digits"
    """Name of a data set (`sidestep data` lists them), a .npz file, a table (.csv, .tsv, .parquet), a text (.txt), a
    folder of .npy files, or a folder with one folder of images per class."""
    target: str | None = None
    """Column of a table that is to be predicted from all others."""
    data_dir: Path | None = None
    """Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA."""
    validation: float = 0.1
    """Share of the training split kept aside for validation; the cut is the same for every seed."""
    image_size: int | None = None
    """Height and width of the images: 28, 64 or 128 for bloodmnist; image folders are resized to it."""
    targets: Literal["auto", "classes", "labels", "values"] = "auto"
    """What the targets in a .npz file are: classes (auto), several labels for an example, or real values. Of a table:
    classes or values; auto takes texts, and whole numbers of which few are different, for classes."""


@dataclass(frozen=True)
class TrainData(DataOptions):
    """Which images to train on, and a recipe for them."""

    preset: str | None = None
    """Recipe for data and options; `sidestep presets` lists them. Options given beside it go first."""
    budget: Literal["full", "cpu", "tiny"] | None = None
    """How long a preset trains: full (default), for a GPU; cpu: fewer epochs and a smaller net; tiny: the
    fewest epochs and steps, to see that it runs (on all images, where `sidestep reproduce` takes the first ones)."""


@dataclass(frozen=True)
class Extra:
    """Everything else."""

    module: str | None = None
    """Image path of your own, FILE.py:NAME: a class or function that makes a torch.nn.Module, images to features."""
    json: bool = False
    """Print one JSON object, the last line of standard output."""
    reading: Repeated = ()
    """Evaluate at the end by these of the rule's readings, and by its first; all: by every one. By default by those
    that cost little beside the first. `eval` does others."""
    listen: str | None = None
    """Let other processes join while it trains (`sidestep join`), at HOST:PORT, or at PORT from this machine alone."""
    token_file: Path | None = None
    """File of the token that those who join have to know; a new one is written where there is none."""
    peer_timeout: float = 2.0
    """Seconds without a sign of life after which one who has joined is dropped; others take its parts."""
    check_share: float = 0.02
    """Share of the parts of those who have joined that is estimated here as well: other numbers have them dropped."""


Given = tuple[Rule, Options, TrainData, Extra]


def rule_named(name: str) -> str:
    """Return the name of a rule, or raise InputError for another one."""
    if name not in RULES:
        said = suggestion(name, RULES, f"there are: {', '.join(RULES)}")
        raise InputError(f"unknown rule {name!r}: {said}")
    return name


def last_value(arguments: Sequence[str], option: str) -> str | None:
    """Return the last value that an option is given, before the options are parsed: the defaults depend on it."""
    found = [b for a, b in itertools.pairwise(arguments) if a == option]
    found += [word.partition("=")[2] for word in arguments if word.startswith(f"{option}=")]
    return found[-1] if found else None


def module_from(reference: str) -> Callable[[], nn.Module]:
    """Return what FILE.py:NAME names: a class or a function that makes a module.

    Raises:
        InputError: if the reference has another form, or the file or the name does not exist.
    """
    path, colon, name = reference.rpartition(":")
    file = Path(path)
    if not colon or not name or file.suffix != ".py":
        raise InputError(f"--module must have the form FILE.py:NAME, got {reference!r}")
    if not file.is_file():
        near = meant(file.name, (each.name for each in file.parent.glob("*.py")))
        raise InputError(f"--module names the file {file}, which does not exist; {near}".rstrip(" ;"))
    specification = importlib.util.spec_from_file_location(file.stem, file)
    if specification is None or specification.loader is None:
        raise InputError(f"{file} cannot be loaded as Python code")
    loaded = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:  # it is the user's code: anything may come out of it
        raise InputError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    is_own(loaded)
    made = getattr(loaded, name, None)
    if made is None:
        own = [each for each, value in vars(loaded).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"{file} has no {name}; {meant(name, own)}".rstrip(" ;"))
    if not callable(made):
        raise InputError(
            f"{name} in {file} must be a class or a function that makes a module, got {type(made).__name__}"
        )
    return cast("Callable[[], nn.Module]", made)


def run_in(path: Path, module: str | None, device: str, given: Sequence[str]) -> Run:
    """Return the run in a folder, with the samplers' settings that --set gives."""
    # never from the run's own configuration: looking at somebody's run must not run their code
    made = module_from(module) if module else None
    return load_run(path, module=made, device=device, inference=settings(given))


def check_order(run: Path, others: Sequence[Path], command: str) -> None:
    """Raise InputError where a folder of a run stands after a file, and not in its place before it."""
    swapped = next((each for each in others if RunFolder(each).config_file.exists()), None)
    if swapped is not None and not RunFolder(run).config_file.exists():
        raise InputError(
            f"RUN and FILE look swapped: {run} is no run's folder, and {swapped} is one; the form is "
            f"sidestep {command} {swapped} {run}"
        )


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
            form=table_form(run) or picture_form(run),
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


def all_words(given: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the values of an option in the order in which they were given.

    >>> all_words((("a", "b"), ("c",)))
    ('a', 'b', 'c')
    """
    return tuple(word for words in given for word in words)


def settings(words: Sequence[str]) -> dict[str, int | float | str]:
    """Return name -> value of the NAME=VALUE of --set; a value that reads as a number is one.

    Raises:
        InputError: for a word of another form, or a name that is given twice.

    >>> settings(["steps=20", "start=noise"])
    {'steps': 20, 'start': 'noise'}
    """
    found: dict[str, int | float | str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise InputError(f"--set takes NAME=VALUE, for instance steps=200, got {word!r}")
        if name in found:
            raise InputError(f"--set gives {name} twice, {name}={found[name]} and {word}; give it once")
        found[name] = _number_or_text(value)
    return found


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
