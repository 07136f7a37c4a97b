"""What a study leaves: study.json, study.md, study.png and study.html, and tables that the command line prints too."""

import io
import json
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sidestep import checkpoint
from sidestep.errors import InputError
from sidestep.version import __version__
from sidestep.wording import counted, markdown, spelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Table", "folder_for_study", "new_figure", "png_of", "rounded_error", "share", "wrapped", "write_study"]

_WIDTH = 118  # of the lines of a page


class Table(NamedTuple):
    """A table of words."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Return it as Markdown."""
        rows = [[markdown(word) for word in line] for line in (self.columns, *self.rows)]
        lines = [rows[0], ["---"] * len(self.columns), *rows[1:]]
        return f"{markdown(self.title)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wrapped(text: str, indent: str = "") -> str:
    """Return a paragraph of a page in lines, those after the first indented."""
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def share(mean: float, error: float | None = None, signed: bool = False, images: int | None = None) -> str:
    """Return a share in percent, with its standard error over seeds in brackets where there is one.

    Of so many test `images` it has a sampling error besides, `sqrt(p (1 - p) / n)`, which stands behind that.

    >>> share(0.9875, 0.0012), share(-0.001, signed=True), share(0.9875, 0.0012, images=10_000)
    ('98.75 (0.12)', '-0.10', '98.75 (0.12; 0.11)')
    >>> share(0.9875, images=10_000), share(0.9875, 0.00001)
    ('98.75 (-; 0.11)', '98.75 (<0.01)')
    """
    text = f"{100 * mean:+.2f}" if signed else f"{100 * mean:.2f}"
    if images:
        of_seeds = "-" if error is None else rounded_error(100 * error, 2)
        return f"{text} ({of_seeds}; {rounded_error(100 * math.sqrt(max(0.0, mean * (1 - mean)) / images), 2)})"
    return text if error is None else f"{text} ({rounded_error(100 * error, 2)})"


def rounded_error(value: float, digits: int) -> str:
    """Return an error with so many digits; one that is there is not rounded to nothing, one that is not is a plain 0.

    >>> rounded_error(0.123, 2), rounded_error(0.0012, 2), rounded_error(0.0, 2), rounded_error(0.04, 1)
    ('0.12', '<0.01', '0', '<0.1')
    """
    if not value:
        return "0"
    return f"<{10**-digits:.{digits}f}" if value < 0.5 * 10**-digits else f"{value:.{digits}f}"


def folder_for_study(out: Path, asked: Mapping[str, Any], overwrite: bool, seeds: int = 1) -> Path:
    """Return the folder, made if it was not there.

    Args:
        out: where.
        asked: the options that the results depend on, as `write_study` keeps them.
        overwrite: whether results of other options, or of more seeds, may be replaced.
        seeds: how many the study is to have.

    Raises:
        InputError: if it cannot be made, is the folder of a run, or holds a study of other options or of more seeds.
    """
    earlier, had = _earlier(out, asked)
    if earlier != asked and not overwrite:
        raise InputError(
            f"{out} holds a study of other options; choose another --out, or replace its results with --overwrite"
        )
    if had > seeds and not overwrite:
        raise InputError(
            f"{out} holds a study of {counted(had, 'seed')}, which {seeds} would replace; give --seeds {had} or more, "
            "choose another --out, or replace its results with --overwrite"
        )
    if (out / "config.toml").exists():
        raise InputError(
            f"{out} is the folder of a run; a study makes runs in a folder of its own: choose another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {out} cannot be made: {error.strerror}; choose another --out") from error
    return out


def _earlier(out: Path, asked: Mapping[str, Any]) -> tuple[Any, int]:
    """Return what the folder's study was asked, and of how many seeds it is; `asked` and 0 where there is none."""
    try:
        record = json.loads((out / "study.json").read_text(encoding="utf-8"))
        return record["asked"], len(record.get("seeds", ()))  # a study of one training has no list of seeds
    except OSError:
        return asked, 0
    except (ValueError, LookupError, TypeError, AttributeError):  # of another form, or damaged
        return None, 0


def write_study(
    out: Path, record: Mapping[str, Any], text: str, tables: Sequence[Table], figure: "Figure", html: str | None = None
) -> None:
    """Write study.json, study.md (the text, the tables and the picture), study.png and, where one is given, study.html.

    Raises:
        CheckpointError: if one of them cannot be written.
    """
    parts = [text, *(table.markdown() for table in tables), "![the study as a picture](study.png)",
             f"sidestep {__version__}, torch {torch.__version__}."]  # fmt: skip
    checkpoint.write_bytes(out / "study.png", png_of(figure))
    checkpoint.write_text(out / "study.md", "\n\n".join(parts) + "\n")
    if html is not None:
        checkpoint.write_text(out / "study.html", html)
    checkpoint.write_text(out / "study.json", json.dumps(record, indent=1) + "\n")


def png_of(figure: "Figure", dpi: int | None = None) -> bytes:
    """Return a figure as a file; names in it are shown as they are, `$` included, and `spelled`."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text("\n".join(map(spelled, text.get_text().split("\n"))))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for such a letter
        figure.savefig(buffer, format="png", dpi=dpi or figure.dpi)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> "Figure":
    """Return a figure that is drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
