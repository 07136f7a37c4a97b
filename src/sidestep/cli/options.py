"""Options that commands have in common: which data, whose module, which rule."""

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from torch import nn

from sidestep.cli.rescue import is_own
from sidestep.errors import InputError
from sidestep.rules import RULES, Rule
from sidestep.training import Options
from sidestep.wording import suggestion

__all__ = ["DataOptions", "Extra", "Given", "last_value", "module_from", "rule_named"]


@dataclass(frozen=True)
class DataOptions:
    """Which images to train on."""

    data: str = "digits"
    """Name of a data set (`sidestep data` lists them), a .npz file, or a folder with one folder of images per class."""
    data_dir: Path | None = None
    """Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA."""
    validation: float = 0.1
    """Share of the training split kept aside for validation; the cut is the same for every seed."""
    image_size: int | None = None
    """Height and width of the images: 28, 64 or 128 for bloodmnist; image folders are resized to it."""
    targets: Literal["classes", "labels", "values"] = "classes"
    """What the targets in a .npz file are: classes, several labels for an example, or real values."""
    preset: str | None = None
    """Named recipe (`sidestep presets` lists them) that gives the data and the defaults of the other options."""
    budget: Literal["full", "cpu", "tiny"] | None = None
    """Of a preset: full (default), for a GPU; cpu: fewer epochs and a smaller net, for a CPU; tiny: the
    fewest epochs and steps, to see that it runs (on all images, where `sidestep reproduce` takes the first ones)."""


@dataclass(frozen=True)
class Extra:
    """Everything else."""

    module: str | None = None
    """Image path of your own, FILE.py:NAME: a class or function that makes a torch.nn.Module, images to features."""
    json: bool = False
    """Print the result as one JSON object on the last line of standard output."""


Given = tuple[Rule, Options, DataOptions, Extra]


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
        raise InputError(f"--module names the file {file}, which does not exist")
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
        raise InputError(f"{file} has no {name}")
    if not callable(made):
        raise InputError(
            f"{name} in {file} must be a class or a function that makes a module, got {type(made).__name__}"
        )
    return cast("Callable[[], nn.Module]", made)
