"""The last resort: what the command line says of an error that nobody expected."""

import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType

from sidestep.version import __version__
from sidestep.wording import sentence

__all__ = ["explained", "from_own", "is_own"]

_LACKS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "unable to allocate",
    "overflowed",
    "too large",
)
_LONGEST = 500  # signs of another library's message
_OURS = 70  # EX_SOFTWARE of sysexits.h
_own_files: set[str] = set()


def is_own(module: ModuleType) -> None:
    """Note that a module is the user's: an error from inside it is told as one of theirs."""
    _own_files.add(str(module.__file__))


def from_own(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the places in the user's modules that an error passed, the last one last."""
    return [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _own_files]


def explained(error: BaseException) -> tuple[str, int]:
    """Return a sentence about an error that is none of Sidestep's own, and the exit status: 70 for our mistakes."""
    words = sentence(str(error).strip().partition("\n")[0])[:_LONGEST]  # torch adds where it was in its own code
    after = "".join(f"; {sentence(note)}" for note in getattr(error, "__notes__", ()))  # where a run stands
    if isinstance(error, MemoryError) or _is_memory(error):
        return (
            f"there is not enough memory{_size(words)}: take a smaller net, smaller images or a smaller --batch{after}",
            2,
        )
    if isinstance(error, OverflowError) or "Overflow when unpacking" in words:
        return f"a number that was given is too large ({words}); give a smaller one{after}", 2
    own = from_own(error)
    if own:
        where = f"{own[-1].filename}, line {own[-1].lineno}"
        return f"your module failed in {where}: {type(error).__name__}: {words}{after}", 2
    if isinstance(error, OSError) and error.strerror:
        names = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{names or 'a file'} cannot be used: {error.strerror}{after}", 2
    return f"this is a mistake in Sidestep, not yours: {type(error).__name__}: {words}. {_kept(error)}{after}", _OURS


def _is_memory(error: BaseException) -> bool:
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return True
    return isinstance(error, RuntimeError | ValueError) and any(words in str(error).lower() for words in _LACKS)


def _size(words: str) -> str:
    """Return how much was asked for, if the message of torch or NumPy tells."""
    found = re.search(r"allocate (\d+) bytes", words)
    if found:
        return f", {int(found[1]) / 2**30:,.1f} GiB were asked for at once"
    found = re.search(r"[Uu]nable to allocate ([\d.]+ [KMGTPE]?iB)", words) or re.search(
        r"[Tt]ried to allocate ([\d.]+ [KMGTPE]?iB)", words
    )
    return f", {found[1]} were asked for at once" if found else ""


def _kept(error: BaseException) -> str:
    """Write the details into a file of the temporary folder, and say where they are."""
    trace = "".join(traceback.format_exception(error))
    try:
        handle, name = tempfile.mkstemp(prefix="sidestep-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            torch = getattr(sys.modules.get("torch"), "__version__", "not imported")
            file.write(f"sidestep {__version__}, torch {torch}\n{trace}")
    except OSError:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"It was in {Path(where.filename).name}, line {where.lineno}; please report it"
    return f"The details are in {name}; please report them"
