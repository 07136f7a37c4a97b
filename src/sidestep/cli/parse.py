"""The options of a command, read by tyro; what it says of wrong ones repeats them, so it goes through our doors."""

import contextlib
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from sidestep.cli.help import HELP_ALL, long_names
from sidestep.cli.output import complain_in_lines

__all__ = ["parsed"]


def parsed(what: Callable[..., Any], program: str, arguments: Sequence[str], description: str | None = None) -> Any:
    """Call a function, or make a dataclass, with the options in `arguments`; exit with status 2 if they are wrong."""

    @functools.wraps(what, updated=())
    def keep(*values: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(what, *values, **named)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # not while the command itself runs
            found = tyro.cli(
                what if isinstance(what, type) else keep,
                prog=program,
                description=description,
                args=["--help" if word == HELP_ALL else word for word in long_names(arguments)],
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit:
        complain_in_lines(said.getvalue())
        raise
    return found if isinstance(what, type) else found()
