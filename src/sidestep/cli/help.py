"""Which options the short help shows: those that most runs need; `--help-all` shows the others, too."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_type_hints

from sidestep import keywords

__all__ = ["ALIASES", "HELP", "HELP_ALL", "PLACES", "RARE", "TRAIN_STEPS", "Groups", "long_names", "named_apart"]

TRAIN_STEPS = "--train-steps"  # how many steps a run takes, for rules of which --steps is an option of their own

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
ALIASES = {f"--{given.replace('_', '-')}": f"--{ours.replace('_', '-')}" for given, ours in keywords.ALIASES.items()}

RARE: dict[str, frozenset[str]] = {  # by the class of the options; a rule names its own rare ones itself
    "Options": frozenset(
        {
            "average",
            "align",
            "units",
            "split",
            "shares",
            "exchange_share",
            "exchange_window",
            "checkpoint_seconds",
            "warmup",
            "precision",
        }
    ),
    "Extra": frozenset({"reading", "listen", "token_file", "peer_timeout", "check_share"}),
    "DataOptions": frozenset({"data_dir", "image_size"}),
    "TrainData": frozenset({"budget"}),
}
# the group that an option stands in, whoever holds it
PLACES = {
    "augment": "data", "module": "data",
    **dict.fromkeys(("json", "reading", "listen", "token_file", "peer_timeout", "check_share"), "run"),
}  # fmt: skip
# the title of a group -> what holds its options, and an instance with other defaults than its own, or None
Groups = Mapping[str, tuple[Callable[..., Any], Any]]


def named_apart(kind: type[Any], rule: type[Any]) -> Any:
    """Return a dataclass of options with `--train-steps` for its `steps`, if the rule has steps of its own."""
    import tyro

    if "steps" not in {field.name for field in dataclasses.fields(rule)}:
        return kind
    given = next(field for field in dataclasses.fields(kind) if field.name == "steps")
    hint = get_type_hints(kind)["steps"]
    renamed = {"steps": Annotated[hint, tyro.conf.arg(name=TRAIN_STEPS.removeprefix("--"))]}
    values = {"__annotations__": renamed, "__module__": kind.__module__, "steps": given.default}
    made = type(kind.__name__, (kind,), values)
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
