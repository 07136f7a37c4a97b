"""Training takes one process: what is refused where several have joined."""

import torch

from sidestep.errors import InputError

__all__ = ["check_alone"]


def check_alone() -> None:
    """Refuse to train in a process that is one of several of a process group: each would do the whole job.

    Raises:
        InputError: if `torch.distributed` has been initialised for more than one process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    count = torch.distributed.get_world_size()
    if count > 1:
        raise InputError(
            f"this process is one of the {count} of an initialised torch.distributed group, but Sidestep trains in one "
            "process so far; train before the group is initialised, or in a program of one process"
        )
