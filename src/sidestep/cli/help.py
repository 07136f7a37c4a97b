"""Which options the short help shows: those that most runs need; `--help-all` shows the others, too."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Annotated, Any

__all__ = ["ALIASES", "HELP", "HELP_ALL", "RARE", "TRAIN_STEPS", "long_names", "named_apart", "short"]

TRAIN_STEPS = "--train-steps"  # how many steps a run takes, for rules of which --steps is an option of their own

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
ALIASES = {"--lr": "--learning-rate", "--batch-size": "--batch", "--wd": "--weight-decay"}

RARE: dict[str, frozenset[str]] = {  # of the options that do not belong to a rule
    "Options": frozenset({"average", "align", "units", "checkpoint_seconds", "warmup", "precision"}),
    "Extra": frozenset({"reading"}),
    "DataOptions": frozenset({"data_dir", "image_size", "budget"}),
}


def short(kind: type[Any], rare: Collection[str]) -> Any:
    """Return a dataclass for the help alone, without the fields that few need."""
    import tyro  # here, since `sidestep --help` reads this file and needs none of it

    kept = {field.name: field.type for field in dataclasses.fields(kind) if field.name in rare}
    hidden = {name: Annotated[given, tyro.conf.Suppress] for name, given in kept.items()}
    values = {name: getattr(kind, name) for name in kept}
    made = type(kind.__name__, (kind,), {"__annotations__": hidden, "__module__": kind.__module__, **values})
    return dataclasses.dataclass(frozen=True)(made)


def named_apart(kind: type[Any], rule: type[Any]) -> Any:
    """Return a dataclass of options with `--train-steps` for its `steps`, if the rule has steps of its own."""
    import tyro

    if "steps" not in {field.name for field in dataclasses.fields(rule)}:
        return kind
    renamed = {"steps": Annotated[int | None, tyro.conf.arg(name=TRAIN_STEPS.removeprefix("--"))]}
    made = type(kind.__name__, (kind,), {"__annotations__": renamed, "__module__": kind.__module__, "steps": None})
    return dataclasses.dataclass(frozen=True)(made)


def long_names(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the names that the options have: --lr is --learning-rate.

    >>> long_names(["--lr", "0.1", "--wd=0"])
    ['--learning-rate', '0.1', '--weight-decay=0']
    """
    found = []
    for word in arguments:
        name, equals, value = word.partition("=")
        found.append(ALIASES.get(name, name) + equals + value)
    return found
