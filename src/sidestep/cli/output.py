"""What the command line prints, and where: results to standard output, progress and errors to standard error.

These are the only doors to the terminal. Text that came from a file (names of classes, files, entries; messages that
hold them) is made harmless here, so that no caller can forget it.
"""

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from sidestep.errors import InputError
from sidestep.notices import DataNotice, RunNotice
from sidestep.wording import sentence, spelled

__all__ = [
    "PlainColumn",
    "bar_of",
    "check_new",
    "complain",
    "data_notices_shown",
    "default_data_dir",
    "error_console",
    "fail",
    "notice",
    "show",
    "show_json",
    "show_line",
    "show_table",
]


class _StandardError(io.TextIOBase):
    """Standard error as it is when something is printed; that nobody reads it stops nothing, least of all training."""

    @property
    def _stream(self) -> TextIO:
        """Where it ends: while a bar is shown, rich has put itself before it, and would write here again."""
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


error_console = Console(file=_StandardError(), highlight=False)  # type: ignore[arg-type]
_WIDTH = 200  # of tables that no terminal shows
_GAP = 2  # between two columns
_NAME = 20  # letters of a word in the first column that stand on one line, however many columns there are


def show(*lines: str) -> None:
    """Print lines to standard output."""
    for line in lines:
        print(spelled(line))


def show_json(record: Mapping[str, Any]) -> None:
    """Print a record as one line of JSON, the last line of standard output: exact, and in ASCII."""
    print(json.dumps(record), flush=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output; on a terminal too narrow for its words, the rest of its columns stand below."""
    if title:  # a line of its own: a table's title wraps at the width of the table
        show(title)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    cells = [[spelled(word) for word in line] for line in (columns, *rows)]
    for number, places in enumerate(_parts_of_columns(cells, console.width)):
        if number:
            console.print()
        console.print(_table([[line[place] for place in places] for line in cells], console.width))


def _table(cells: Sequence[Sequence[str]], width: int) -> Table:
    """Return a table of the lines of cells, the first of which are names, in so many letters."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, letters in zip(cells[0], _column_widths(cells, width), strict=True):
        table.add_column(Text(column), overflow="fold", width=letters)
    for line in cells[1:]:
        table.add_row(*map(Text, line))
    return table


def _column_widths(cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the letters of each column: all of its cells, or less of the widest, but whole words where they fit.

    rich cuts letters off where its own widths come out larger than the terminal.

    >>> _column_widths([["rule", "what it is"], ["spsa", "many words of a kind"]], 20)
    [4, 14]
    >>> _column_widths([["rule", "words"], ["back-propagation", "unbreakable"]], 22)
    [16, 4]
    """
    columns = list(zip(*cells, strict=True))
    whole = [max(1, *map(cell_len, column)) for column in columns]
    words = [max((cell_len(word) for cell in column for word in cell.split()), default=1) for column in columns]
    room = width - _GAP * (len(columns) - 1)
    letter = [max((cell_len(each) for cell in column for each in cell), default=1) or 1 for column in columns]
    name = min(words[0], _NAME, max(letter[0], room - sum(letter[1:])))  # not broken within a word, where that fits
    least = [name, *letter[1:]]
    for low, high in ((words, whole), (least, words)):
        fitting = [
            found
            for most in range(1, max(high) + 1)
            if sum(found := [max(one, min(other, most)) for one, other in zip(low, high, strict=True)]) <= room
        ]
        if fitting:
            return fitting[-1]
    return least


def _parts_of_columns(cells: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Return the columns of each table that the lines need: one, or several below one another with the first repeated.

    A column whose name another has too, as ratios have, stays with the one before it.

    >>> _parts_of_columns([["rule", "accuracy"], ["spsa", "95.1"]], 14)
    [[0, 1]]
    >>> _parts_of_columns([["rule", "accuracy", "seconds", "x", "bytes", "x"]], 18)
    [[0, 1], [0, 2, 3], [0, 4, 5]]
    """
    columns = list(zip(*cells, strict=True))
    words = [max((cell_len(word) for cell in column for word in cell.split()), default=1) for column in columns]
    if sum(words) + _GAP * (len(words) - 1) <= width:  # whole words fit, where cells are broken between them
        return [list(range(len(columns)))]
    whole = [max(map(cell_len, column)) + _GAP for column in columns]
    first = min(whole[0], width // 3)
    names = list(cells[0])
    groups = [[place] for place in range(1, len(columns))]
    for place in range(len(columns) - 1, 1, -1):
        if names.count(names[place]) > 1:
            groups[place - 2] += groups.pop(place - 1)
    parts, used = [[0]], first
    for group in groups:
        needed = sum(whole[place] for place in group)
        if len(parts[-1]) > 1 and used + needed > width:
            parts.append([0])
            used = first
        parts[-1] += group
        used += needed
    return parts


def notice(text: str) -> None:
    """Print a sentence to standard error that whoever started the command should know."""
    _to_standard_error(f"sidestep: {text}")


def complain(text: str) -> None:
    """Print what is wrong to standard error."""
    _to_standard_error(f"sidestep: {text}", style="bold red")


@contextlib.contextmanager
def data_notices_shown() -> Iterator[None]:
    """Print what loaders have to show_line of data (`DataNotice`), and readers of runs (`RunNotice`), once each."""
    told: set[str] = set()
    with warnings.catch_warnings():
        for kind in (DataNotice, RunNotice):
            warnings.simplefilter("always", kind)
        others = warnings.showwarning

        def show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not issubclass(category, (DataNotice, RunNotice)):
                others(message, category, *rest, **more)
            elif str(message) not in told:
                told.add(str(message))
                notice(str(message))

        warnings.showwarning = cast("Any", show_warning)
        yield


def fail(message: str, status: int) -> NoReturn:
    """Print an error and exit."""
    complain(message)
    raise SystemExit(status)


def show_line(line: str, end: str = "\n") -> None:
    """Print a line about what is under way to standard error, if that is a terminal."""
    if error_console.is_terminal:
        _to_standard_error(line, end=end)


def _to_standard_error(text: str, style: str = "", end: str = "\n") -> None:
    error_console.print(Text(sentence(text), style=style), soft_wrap=True, end=end)


def bar_of(*columns: ProgressColumn) -> Progress:
    """Return a bar on standard error, none where that is no terminal.

    What is printed meanwhile comes above it, also on standard output, unless that goes elsewhere: there it stays.
    """
    both = False
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
        both = error_console.is_terminal and sys.stdout.isatty()
    return Progress(*columns, console=error_console, disable=not error_console.is_terminal, redirect_stdout=both)


class PlainColumn(TextColumn):
    """Words beside a progress bar, as they are."""

    def render(self, task: Task) -> Text:
        """Return the words without markup."""
        return Text(spelled(self.text_format.format(task=task)))


def check_new(path: Path, overwrite: bool, suffixes: tuple[str, ...], option: str = "--out") -> None:
    """Refuse an output file of another kind, in a folder that is not there, or that would replace one that is."""
    if path.suffix not in suffixes:
        raise InputError(
            f"{option} must end in {', '.join(suffixes[:-1])}{' or ' * (len(suffixes) > 1)}{suffixes[-1]}, got {path}"
        )
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist")
    if path.is_dir():
        raise InputError(f"{path} is a folder; choose another {option}")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; choose another {option}, or replace it with --overwrite")


def default_data_dir() -> Path | None:
    """Return the folder named by the environment variable SIDESTEP_DATA, if there is one."""
    value = os.environ.get("SIDESTEP_DATA")
    return Path(value) if value else None
