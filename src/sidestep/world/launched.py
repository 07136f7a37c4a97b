"""The world that this process was started in: by torchrun, by another launcher that sets the same variables, or alone.

The one place below the command line that reads the environment: a launcher has no other way to say who a process is.
"""

import os
from functools import cache
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from sidestep.errors import InputError
from sidestep.world.distributed import Distributed, join
from sidestep.world.world import Alone, World

__all__ = ["launched", "restarts", "world_here"]


def launched() -> int:
    """Return how many processes a launcher has started beside each other, this one included (WORLD_SIZE); 1 if none."""
    value = os.environ.get("WORLD_SIZE", "")
    return int(value) if value.isdecimal() and int(value) > 1 else 1


def restarts() -> int:
    """Return how often torchrun has started its processes again."""
    value = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return int(value) if value.isdecimal() else 0


def world_here() -> World:
    """Return the world of this process: of an initialised process group, or of the launcher's, or its own alone.

    Raises:
        InputError: if a launcher has left out who this process is; RankError: if the others do not come.
    """
    if dist.is_available() and dist.is_initialized() and not _met.cache_info().currsize:
        return _of_group(dist.group.WORLD) if dist.get_world_size() > 1 else _alone()
    return _met() if launched() > 1 else _alone()


def _alone() -> World:
    """Return the world of one process, which a launcher may have started again."""
    found = Alone()
    found.generation = restarts()
    return found


_WORLDS: WeakKeyDictionary[object, World] = WeakKeyDictionary()  # weak, so that groups can be destroyed


def _of_group(group: object) -> World:
    """Return the world of the initialised group, the same each time: it counts its messages."""
    if group not in _WORLDS:
        _WORLDS[group] = Distributed(restarts())
    return _WORLDS[group]


@cache
def _met() -> World:
    """Meet the others, once in a process."""
    size = launched()
    if not dist.is_available():
        raise InputError("this build of torch has no torch.distributed: run one process, without a launcher")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: start the processes by torchrun, or unset it"
        )
    try:
        rank = int(os.environ["RANK"])
    except ValueError as error:
        raise InputError(f"RANK must be a number below {size}, got {os.environ['RANK']!r}") from error
    if not 0 <= rank < size:
        raise InputError(f"RANK must be from 0 to {size - 1}, got {rank}")
    return join(lambda: next(iter(rendezvous("env://")))[0], rank, size, restarts())
