"""The options of training on every command that trains: those that it takes, from one place, and why not the others.

`sidestep train` takes all fields of `Options` and `DataOptions`. Another command takes those that mean something there:
`takes` adds them to the dataclass of its own options. What a command leaves out is listed with the reason, which
is what it says to somebody who gives that option.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from sidestep.cli.help import RARE
from sidestep.cli.options import DataOptions
from sidestep.training import Options

__all__ = ["LEFT_OUT", "OF_TRAINING", "takes"]

_UNTRAINED = "it measures a net as it stands and trains nothing"
_RANDOM = "its images are random, and nothing is loaded"
_EVERY_WAY = "it measures every way in which units can take turns"
_RECIPE = "each row has the paper's"
_DIVISION = ("split", "shares", "exchange_share", "exchange_window")
_STEPS_ALIKE = "its steps are measured one by one, and cost the same with it and without it"

OF_TRAINING = frozenset(field.name for kind in (Options, DataOptions) for field in dataclasses.fields(kind))
LEFT_OUT: Mapping[str, Mapping[str, str]] = {  # command -> option -> why the command does not take it
    "align": {
        **dict.fromkeys(("epochs", "steps", "augment", "decay", "warmup", "average", "patience"), _UNTRAINED),
        **dict.fromkeys(("units", "checkpoint_seconds", "resume"), _UNTRAINED),
        "align": "it measures alignment, whatever time that takes",
        **dict.fromkeys(_DIVISION, "it measures the estimate of a whole batch"),
    },
    "bench": {
        "patience": "all runs end by the same budget; give --to to end a run at an accuracy",
        "align": "measuring alignment would take of the time that is compared",
        **dict.fromkeys(_DIVISION, "give it to an entry, as RULE:split=batch"),
        "checkpoint_seconds": "its runs write no checkpoints",
        "resume": "the same command goes on by itself",
        "targets": "its tables count right answers, so the targets are classes",
    },
    "study": {
        "units": "back-propagation, which stands beside NoProp, has one unit",
        **dict.fromkeys(_DIVISION, "its runs are trained whole, by one process"),
        "align": "it compares what is learned, not estimates; sidestep align does that",
        "resume": "the same command goes on by itself",
        "targets": "it takes right answers apart, so the targets are classes",
    },
    "reproduce noprop-table1": {
        **dict.fromkeys(("epochs", "steps"), "each row has the paper's length, or a part of it: give --budget"),
        **dict.fromkeys(("batch", "augment", "decay", "warmup", "average"), _RECIPE),
        **dict.fromkeys(("target", "validation", "image_size", "targets"), _RECIPE),
        "seed": "its seeds are those from 0 on, so that rows of several commands make one table: give --seeds",
        "patience": "the paper trains every row to its end",
        "align": "measuring alignment would take of the time that is compared",
        "units": "back-propagation, which stands in the same table, has one unit",
        **dict.fromkeys(_DIVISION, "its runs are trained whole, by one process"),
        "resume": "the same command goes on by itself",
        "overwrite": "finished runs are not run again: remove the folder of one, or give another --out",
    },
    "reproduce noprop-table2": {
        **dict.fromkeys(("epochs", "patience"), "it takes a few steps: give --steps"),
        "batch": _RECIPE,
        **dict.fromkeys(("seed", "augment", "decay", "warmup", "average", "align"), _STEPS_ALIKE),
        "units": "its rows are trained as in the table of accuracies; sidestep fit-memory measures every way",
        **dict.fromkeys(_DIVISION, "it measures steps that one process takes whole"),
        **dict.fromkeys(("checkpoint_seconds", "resume"), "it keeps no runs"),
        "out": "it keeps no runs; give --report for the folder of the page",
        "overwrite": "a cell that is measured again replaces what the page has, by itself",
        **dict.fromkeys(("data_dir", "validation", "targets", "target"), _RANDOM),
        "image_size": _RECIPE,
    },
    "fit-memory": {
        **dict.fromkeys(("epochs", "patience"), "it takes a few steps: give --steps"),
        **dict.fromkeys(("seed", "augment", "decay", "warmup", "align"), _STEPS_ALIKE),
        "units": _EVERY_WAY,
        **dict.fromkeys(_DIVISION, "it measures steps that one process takes whole"),
        **dict.fromkeys(("checkpoint_seconds", "out", "resume", "overwrite"), "it keeps nothing"),
        **dict.fromkeys(("data_dir", "validation", "targets", "target"), _RANDOM),
    },
}


def takes(command: str, common: type[Any], unset: bool = False) -> Callable[[type[Any]], Any]:
    """Give a dataclass of a command's own options those of training, too, that the command takes.

    Args:
        command: a command, by which `LEFT_OUT` says what it does not take.
        common: whose fields they are: `Options` or `DataOptions`. A field of the command's own goes before one of them.
        unset: whether they are None where they are not given, so that what is given can be told.
    """

    def widened(own: type[Any]) -> Any:
        hints = get_type_hints(common, include_extras=True)
        here = {field.name for field in dataclasses.fields(own)}
        added = [
            (field.name, hints[field.name] | None, dataclasses.field(default=None))
            if unset
            else (field.name, hints[field.name], dataclasses.field(default=field.default))
            for field in dataclasses.fields(common)
            if field.name not in here and field.name not in LEFT_OUT.get(command, {})
        ]
        made: Any = dataclasses.make_dataclass(own.__name__, added, bases=(own,), frozen=True)
        made.__module__, made.__doc__ = own.__module__, own.__doc__
        made.rare = RARE.get(common.__name__, frozenset())
        return made

    return widened
