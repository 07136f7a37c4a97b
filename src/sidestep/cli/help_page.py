"""The help of a command: its options in groups, short by default, whole with --help-all."""

import inspect
import re
import shutil
import textwrap
from typing import Any

from sidestep.cli.described import Described, described, field_texts
from sidestep.cli.help import ALIASES, HELP_ALL, PLACES, RARE, Groups
from sidestep.cli.options import DataOptions
from sidestep.training import Options

__all__ = ["help_page", "options_of"]

_STOP = re.compile(r"(?<!e\.g)[.;:]\s")
_COLUMN = 24  # where the texts begin
_FEW = 16  # options that are explained in full wherever they are all that there is


def help_page(program: str, groups: Groups, about: str, whole: bool) -> list[str]:
    """Return the lines of a command's help.

    Args:
        program: the command, as it is typed.
        groups: what holds its options, by the title of the group that they stand in.
        about: what the command does.
        whole: all options, with all that there is to say of them; else those that most runs need, a sentence each.
    """
    found = [(title, option, option.name in _rare(kind)) for title, kind, option in options_of(groups)]
    everything = whole or len(found) <= _FEW
    shown = [(PLACES.get(option.name, title), title, option) for title, option, rare in found if everything or not rare]
    words = [option.option for _, _, option in shown if option.positional]
    width = max(60, min(100, shutil.get_terminal_size().columns))
    lines = [f"usage: {' '.join([program, *words])} [OPTIONS]", "", *_wrapped(about, width)]
    for group in groups:
        here = [option for place, home, option in shown if (place if place in groups else home) == group]
        here.sort(key=lambda option: option.name in PLACES)  # what is placed here from elsewhere stands last
        lines += ["", f"{group}:"] if here else []
        for option in here:
            lines += _lines(option, everything, width)
    more = "This help." if everything else f"This help; {HELP_ALL}: every option, in full."
    return [*lines, "", *_item("-h, --help", more, width)]


def options_of(groups: Groups) -> list[tuple[str, Any, Described]]:
    """Return the options of all groups, each with the title of its group and what holds it."""
    texts = {**field_texts(Options), **field_texts(DataOptions)}
    return [
        (title, kind, option) for title, (kind, given) in groups.items() for option in described(kind, texts, given)
    ]


def _rare(kind: Any) -> frozenset[str]:
    """Return the options that the short help leaves out: those of its classes, and those that a rule names."""
    named = (RARE.get(base.__name__, frozenset()) for base in getattr(kind, "__mro__", ()))
    return frozenset(getattr(kind, "rare", ())).union(*named)


def _lines(option: Described, whole: bool, width: int) -> list[str]:
    text = option.text if whole else _first_sentence(option.text)
    text = text.rstrip(". ") if not whole or option.default else text
    if option.default:
        default = option.default if whole else _first_sentence(option.default)
        text = f"{text} (default: {default})".strip()
    aliases = [short for short, name in ALIASES.items() if name == option.option and (whole or short == "--lr")]
    names = ", ".join([*aliases, option.option])
    return _item(" ".join(filter(None, [names, option.values])), text, width)


def _item(name: str, text: str, width: int) -> list[str]:
    indent = " " * _COLUMN
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False) or [""]
    if len(name) + 3 < _COLUMN:
        return [f"  {name}".ljust(_COLUMN) + lines[0].strip(), *lines[1:]]
    return [f"  {name}", *lines]


def _wrapped(about: str, width: int) -> list[str]:
    summary = inspect.cleandoc(about).partition("\nArgs:\n")[0].strip()
    parts = [" ".join(part.split()) for part in summary.split("\n\n")]
    return [line for part in parts for line in textwrap.wrap(part, width, break_on_hyphens=False)]


def _first_sentence(text: str) -> str:
    """Return a text up to its first stop that stands in no brackets.

    >>> _first_sentence("Steps (the tables: 1,000), e.g. 50; fewer are faster.")
    'Steps (the tables: 1,000), e.g. 50'
    """
    for stop in _STOP.finditer(text):
        before = text[: stop.start()]
        if before.count("(") == before.count(")"):
            return before
    return text
