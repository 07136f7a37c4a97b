"""Learning rules, one file each; `RULES` is the one list of them."""

from collections.abc import Mapping
from typing import Any

from sidestep.errors import CheckpointError
from sidestep.rules.backprop import Backprop
from sidestep.rules.blockwise import Blockwise
from sidestep.rules.direct_feedback_alignment import DirectFeedbackAlignment
from sidestep.rules.evolution import Evolution
from sidestep.rules.feedback_alignment import FeedbackAlignment
from sidestep.rules.forward_forward import ForwardForward
from sidestep.rules.forward_gradient import ForwardGradient
from sidestep.rules.hebbian import Hebbian
from sidestep.rules.local_loss import LocalLoss
from sidestep.rules.neural_ode import NeuralODE
from sidestep.rules.noise_step import NoiseStep
from sidestep.rules.noprop_ct import NoPropCT
from sidestep.rules.noprop_dt import NoPropDT
from sidestep.rules.noprop_fm import NoPropFM
from sidestep.rules.protocol import Batch, HasTrueGradient, OutputRule, Rule, Task
from sidestep.rules.record import WHOLE
from sidestep.rules.shared.whole_model import OnWholeModel
from sidestep.rules.spsa import SPSA
from sidestep.rules.takes import Takes

__all__ = [
    "RULES",
    "SPSA",
    "Backprop",
    "Batch",
    "Blockwise",
    "DirectFeedbackAlignment",
    "Evolution",
    "FeedbackAlignment",
    "ForwardForward",
    "ForwardGradient",
    "HasTrueGradient",
    "Hebbian",
    "LocalLoss",
    "NeuralODE",
    "NoPropCT",
    "NoPropDT",
    "NoPropFM",
    "NoiseStep",
    "OutputRule",
    "Rule",
    "Takes",
    "Task",
    "rule_from_record",
]

RULES: dict[str, type[Rule]] = {
    "noprop-dt": NoPropDT,
    "noprop-ct": NoPropCT,
    "noprop-fm": NoPropFM,
    "blockwise": Blockwise,
    "noise-step": NoiseStep,
    "feedback-alignment": FeedbackAlignment,
    "direct-feedback-alignment": DirectFeedbackAlignment,
    "local-loss": LocalLoss,
    "forward-forward": ForwardForward,
    "hebbian": Hebbian,
    "evolution": Evolution,
    "spsa": SPSA,
    "forward-gradient": ForwardGradient,
    "backprop": Backprop,
    "neural-ode": NeuralODE,
}


def rule_from_record(record: Mapping[str, Any]) -> Rule:
    """Return the rule of a record; hyper-parameters that the record lacks (None in TOML) have their defaults.

    Raises:
        CheckpointError: for a rule that is not there.
        InputError, TypeError: for hyper-parameters that the rule does not have or does not take.
    """
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    name, whole = values.pop("name"), values.pop(WHOLE, False)
    if name not in RULES:
        raise CheckpointError(f"the rule {name!r} is not there; there are: {', '.join(RULES)}")
    rule = RULES[name](**values)
    return OnWholeModel(rule) if whole else rule
