"""The processes that train one net together: messages, exact sums, and an error of one that all of them hear of.

`world` and what it stands on: processes that a launcher has started, a fixed number. `host` and `guest`: workers that
come and go, one of which listens.
"""

from typing import TYPE_CHECKING

from sidestep.later import later

if TYPE_CHECKING:
    from sidestep.world.guest import Guest
    from sidestep.world.host import Host
    from sidestep.world.launched import world_here
    from sidestep.world.world import Alone, World
else:
    __getattr__, __dir__ = later(
        __name__,
        {
            "guest": "Guest",
            "host": "Host",
            "launched": "world_here",
            "world": "Alone World",
        },
    )

__all__ = ["Alone", "Guest", "Host", "World", "world_here"]
