"""The folder of data sets that the environment names: SIDESTEP_DATA, as the command line takes it, in Python too."""

import os
from pathlib import Path

__all__ = ["default_folder"]


def default_folder() -> Path | None:
    """Return the folder that the variable SIDESTEP_DATA names, or None without it."""
    value = os.environ.get("SIDESTEP_DATA")
    return Path(value) if value else None
