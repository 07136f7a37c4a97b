"""Standard output and standard error as they may be: closed, full, unread, or without most letters."""

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator

from sidestep.cli.output import complain

__all__ = ["all_letters", "delivered", "output_lost", "waiting"]


def all_letters() -> None:
    """Let nobody else print, and every letter be written: one that the encoding lacks is spelled, as in `caf\\xe9`."""
    logging.lastResort = None  # Pillow logs what it finds in a damaged file, past our doors; errors tell enough
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def waiting(words: str) -> Iterator[None]:
    """Show words on a terminal while something is waited for, and take them away again."""
    seen = False
    with contextlib.suppress(OSError, ValueError):  # closed, or full
        seen = sys.stderr.isatty()
        if seen:
            sys.stderr.write(words)
            sys.stderr.flush()
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            if seen:
                sys.stderr.write(f"\r{' ' * len(words)}\r")
                sys.stderr.flush()


def output_lost(error: BaseException) -> bool:
    """Return whether an error comes from printing: it names no file, and standard output takes nothing more."""
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def delivered() -> Iterator[None]:
    """At the end see to it that what was printed has been written; exit with status 1, and say so, if it was not.

    Without a word where the reader of a pipe, such as `head`, has gone.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        _write_no_more()
        if error.errno != errno.EPIPE:
            complain(f"standard output could not be written: {error.strerror}; what was to be printed is lost")
        raise SystemExit(1) from None


def _write_no_more() -> None:
    """Send what is left nowhere: Python would try to write it again at its end, and say so at length."""
    with contextlib.suppress(OSError, ValueError):  # a test's stream has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
