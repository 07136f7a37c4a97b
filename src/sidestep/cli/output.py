"""What the command line prints, and where: results to standard output, progress and errors to standard error."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sidestep.data import DataNotice
from sidestep.errors import InputError

__all__ = [
    "check_new",
    "data_notices_shown",
    "default_data_dir",
    "error_console",
    "fail",
    "notice",
    "plain",
    "show",
    "show_json",
    "show_table",
]

error_console = Console(stderr=True, highlight=False)


def show(text: str) -> None:
    """Print text to standard output."""
    print(text.rstrip("\n"))


def plain(text: str) -> str:
    """Return text of unknown origin for a table: no markup, and control characters spelled out.

    >>> plain("a\x1b[2J")
    'a\\\\x1b[2J'
    """
    return escape("".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text))


def show_json(record: Mapping[str, Any]) -> None:
    """Print a record as one line of JSON, the last line of standard output."""
    print(json.dumps(record), flush=True)


def show_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table to standard output."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(table)


def notice(text: str) -> None:
    """Print a sentence to standard error that whoever started the command should know."""
    error_console.print(f"sidestep: {text}", markup=False, soft_wrap=True)


@contextmanager
def data_notices_shown() -> Iterator[None]:
    """Print what loaders have to tell of the data (`DataNotice`) as notices, each sentence once."""
    told: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataNotice)
        others = warnings.showwarning

        def show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not issubclass(category, DataNotice):
                others(message, category, *rest, **more)
            elif str(message) not in told:
                told.add(str(message))
                notice(str(message))

        warnings.showwarning = cast("Any", show_warning)
        yield


def fail(message: str, status: int) -> NoReturn:
    """Print an error and exit."""
    error_console.print(f"sidestep: {message}", style="bold red", markup=False, soft_wrap=True)
    raise SystemExit(status)


def check_new(path: Path, overwrite: bool, suffixes: tuple[str, ...]) -> None:
    """Refuse an output file of another kind, in a folder that is not there, or that would replace one that is."""
    if path.suffix not in suffixes:
        raise InputError(f"--out must end in {' or '.join(suffixes)}, got {path}")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another --out, or replace it with --overwrite")


def default_data_dir() -> Path | None:
    """Return the folder named by the environment variable SIDESTEP_DATA, if there is one."""
    value = os.environ.get("SIDESTEP_DATA")
    return Path(value) if value else None
