"""The processes that train one net together: messages, exact sums, and an error of one that all of them hear of."""

from sidestep.world.launched import world_here
from sidestep.world.world import Alone, World

__all__ = ["Alone", "World", "world_here"]
