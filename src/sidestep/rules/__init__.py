"""Learning rules, one file each; `RULES` is the one list of them."""

from sidestep.rules.backprop import Backprop
from sidestep.rules.noprop_dt import NoPropDT
from sidestep.rules.protocol import Batch, Rule, Task

__all__ = ["RULES", "Backprop", "Batch", "NoPropDT", "Rule", "Task"]

RULES: dict[str, type[Rule]] = {
    "noprop-dt": NoPropDT,
    "backprop": Backprop,
}
