"""Words that messages and pages have in common, and text of unknown origin made harmless for each of them."""

import csv
import difflib
import html
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["counted", "csv_text", "error_text", "html_text", "markdown", "meant", "sentence", "spelled", "suggestion"]

_FORMULA = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"  # a cell that begins so is calculated; the last four are full-width
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, one of it or several.

    >>> counted(1, "seed"), counted(3, "inference run"), counted(1.0, "epoch")
    ('1 seed', '3 inference runs', '1 epoch')
    """
    return (f"{number:,}" if isinstance(number, int) else f"{number:g}") + f" {noun}" + "s" * (number != 1)


def suggestion(given: str, known: Iterable[str], listing: str) -> str:
    """Return a clause that lists what is known, after the nearest of it to a name that is not, if one is near.

    >>> suggestion("mnits", ["mnist", "digits"], "there are: mnist, digits")
    'did you mean mnist? There are: mnist, digits'
    >>> suggestion("x", ["mnist", "digits"], "there are: mnist, digits")
    'there are: mnist, digits'
    >>> suggestion("noprop", ["noprop-dt", "noprop-fm"], "there are: noprop-dt, noprop-fm")
    'did you mean noprop-dt? There are: noprop-dt, noprop-fm'
    """
    names = list(known)
    begun = [name for name in names if name.startswith(f"{given}-")]  # the first one stands for its family
    near = begun or difflib.get_close_matches(given, names, 1)
    return f"did you mean {near[0]}? {listing[:1].upper()}{listing[1:]}" if near else listing


def meant(given: str, known: Iterable[str], quoted: bool = True, cutoff: float = 0.6) -> str:
    """Return the question whether the nearest name was meant, with a space behind it, or nothing where none is near.

    Capitals count as small letters.

    >>> meant("mnits", ["MNIST", "digits"]), meant("x", ["MNIST", "digits"])
    ("did you mean 'MNIST'? ", '')
    """
    lower = {name.lower(): name for name in known}
    near = [lower[name] for name in difflib.get_close_matches(given.lower(), lower, 1, cutoff)]
    return "" if not near else f"did you mean {near[0]!r}? " if quoted else f"did you mean {near[0]}? "


def spelled(text: str) -> str:
    """Return text of unknown origin on one line, with every sign that a terminal obeys or hides spelled out.

    These are control and format characters (escape sequences, changes of the direction of writing, zero widths), ends
    of lines, lone surrogates (names of files that are not UTF-8), and signs that Unicode does not know.

    >>> spelled("a" + chr(27) + "[2J"), spelled(chr(0x202E) + "b"), spelled("é [red]")
    ('a\\\\x1b[2J', '\\\\u202eb', 'é [red]')
    """
    return "".join(sign if _harmless(sign) else sign.encode("unicode_escape").decode() for sign in text)


def _harmless(sign: str) -> bool:
    return sign.isprintable() or unicodedata.category(sign) == "Zs"


def sentence(text: str) -> str:
    """Return `spelled` text whose lines are joined to one: messages of other libraries have several.

    >>> sentence("it does not fit:\\n\\tsize 3")
    'it does not fit: size 3'
    """
    return spelled(re.sub(r"[ \t]*[\r\n]+\s*", " ", text.strip()))


def error_text(error: BaseException) -> str:
    """Return an error of another's code on one line: its kind, and its message, or the last line of a longer one.

    >>> error_text(KeyError("x")), error_text(OSError("Caught in a worker.\\nTraceback: ...\\nOSError: no disk"))
    ("KeyError: 'x'", 'OSError: no disk')
    """
    kind, lines = type(error).__name__, str(error).strip().splitlines() or [""]
    text = lines[-1] if any(line.startswith(("Traceback", "Original Traceback")) for line in lines) else lines[0]
    return spelled(text if text.startswith(f"{kind}: ") else f"{kind}: {text}".removesuffix(": "))[:500]


def html_text(text: str) -> str:
    """Return text of unknown origin for a page of HTML, between tags or in an attribute: no markup.

    >>> html_text("<b> & co")
    '&lt;b&gt; &amp; co'
    """
    return html.escape(spelled(text))


def markdown(text: str) -> str:
    """Return text of unknown origin for a page of Markdown: no markup, no HTML, no end of a table's cell.

    >>> print(markdown("a|b <c> _d_ [e](f)"))
    a\\|b &lt;c&gt; \\_d\\_ \\[e\\](f)
    """
    escaped = re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", spelled(text))
    return html.escape(escaped, quote=False)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as comma-separated values that no spreadsheet calculates.

    A text that begins as a formula does (`=`, `+`, `-`, `@`, tab, end of line) gets an apostrophe in front, as OWASP
    says, unless it is a plain number; what a terminal would obey is `spelled` out.

    >>> csv_text([["class", "share"], ["=1+2", -0.5], ["-3", 1]])
    "class,share\\n'=1+2,-0.5\\n-3,1\\n"
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    guard = "'" if value.startswith(tuple(_FORMULA)) and not _NUMBER.fullmatch(value) else ""
    return guard + spelled(value)
