"""Commands that a launcher such as torchrun has started in several processes at once."""

import os

from sidestep.errors import InputError

__all__ = ["check_one_process", "rank_in_words"]


def rank_in_words() -> str:
    """Return what the messages of one of several processes begin with, `rank 1: `; of one alone, nothing."""
    count, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("RANK", "")
    return f"rank {rank}: " if count.isdecimal() and int(count) > 1 and rank.isdecimal() else ""


def check_one_process() -> None:
    """Refuse to be one of several processes: each would do the whole job, and write to the same folder.

    WORLD_SIZE is set by torchrun, which stops all processes when the first one ends: so each says why.

    Raises:
        InputError: if there are several.
    """
    value = os.environ.get("WORLD_SIZE", "")
    if value.isdecimal() and int(value) > 1:
        raise InputError(
            f"started in {int(value):,} processes at once (WORLD_SIZE is {value}, as torchrun sets it), but of the "
            "commands only train is done by several together; run this one without torchrun, or with --nproc-per-node 1"
        )
