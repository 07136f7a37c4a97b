"""The command line's entry, `python -m sidestep` and the script `sidestep`: Ctrl-C ends it from the first import on."""

import gc
import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Import the command line, which takes seconds, and run it; a Ctrl-C before it is there exits with status 130."""
    _fill_closed_streams()
    try:
        from sidestep.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("sidestep: stopped before anything was started\n")
        raise SystemExit(130) from None
    try:
        run()
    finally:
        gc.freeze()  # what is left goes with the process: Python's own end would look for garbage among all of torch
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is done: Python's own end would answer with a traceback


def _fill_closed_streams() -> None:
    """Send nowhere what is printed to a closed stream (`>&-`), whose number the next file would take."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")


if __name__ == "__main__":
    main()
