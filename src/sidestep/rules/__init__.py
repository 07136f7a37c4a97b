"""Learning rules, one file each; `RULES` is the one list of them."""

from sidestep.rules.backprop import Backprop
from sidestep.rules.neural_ode import NeuralODE
from sidestep.rules.noise_step import NoiseStep
from sidestep.rules.noprop_ct import NoPropCT
from sidestep.rules.noprop_dt import NoPropDT
from sidestep.rules.noprop_fm import NoPropFM
from sidestep.rules.protocol import Batch, Rule, Task

__all__ = ["RULES", "Backprop", "Batch", "NeuralODE", "NoPropCT", "NoPropDT", "NoPropFM", "NoiseStep", "Rule", "Task"]

RULES: dict[str, type[Rule]] = {
    "noprop-dt": NoPropDT,
    "noprop-ct": NoPropCT,
    "noprop-fm": NoPropFM,
    "noise-step": NoiseStep,
    "backprop": Backprop,
    "neural-ode": NeuralODE,
}
