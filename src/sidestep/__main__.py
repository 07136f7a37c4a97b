"""The command line's entry, `python -m sidestep` and the script `sidestep`: Ctrl-C ends it from the first import on."""

import sys

__all__ = ["main"]


def main() -> None:
    """Import the command line, which takes seconds, and run it; a Ctrl-C before it is there exits with status 130."""
    try:
        from sidestep.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("sidestep: stopped before anything was begun\n")
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
