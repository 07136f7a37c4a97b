"""Commands that a launcher such as torchrun has started in several processes at once."""

import os

from sidestep.errors import InputError

__all__ = ["check_one_process"]


def check_one_process() -> None:
    """Refuse to be one of several processes: each would do the whole job, and write to the same folder.

    WORLD_SIZE is set by torchrun, which stops all processes when the first one ends: so each says why.

    Raises:
        InputError: if there are several.
    """
    value = os.environ.get("WORLD_SIZE", "")
    if value.isdecimal() and int(value) > 1:
        raise InputError(
            f"started in {int(value):,} processes at once (WORLD_SIZE is {value}, as torchrun sets it), but Sidestep "
            "trains in one process so far; run the same command without torchrun, or with --nproc-per-node 1"
        )
