"""`python -m sidestep` is the command line."""

from sidestep.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
