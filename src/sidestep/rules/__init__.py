"""Learning rules, one file each; `RULES` is the one list of them."""

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from sidestep.errors import CheckpointError
from sidestep.later import later
from sidestep.rules.protocol import Batch, HasTrueGradient, OutputRule, Rule, Task
from sidestep.rules.record import WHOLE
from sidestep.rules.shared.whole_model import OnWholeModel
from sidestep.rules.takes import Takes

if TYPE_CHECKING:
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
    from sidestep.rules.spsa import SPSA
else:  # a rule's file is imported when the rule is asked for
    __getattr__, __dir__ = later(
        __name__,
        {
            "backprop": "Backprop",
            "blockwise": "Blockwise",
            "direct_feedback_alignment": "DirectFeedbackAlignment",
            "evolution": "Evolution",
            "feedback_alignment": "FeedbackAlignment",
            "forward_forward": "ForwardForward",
            "forward_gradient": "ForwardGradient",
            "hebbian": "Hebbian",
            "local_loss": "LocalLoss",
            "neural_ode": "NeuralODE",
            "noise_step": "NoiseStep",
            "noprop_ct": "NoPropCT",
            "noprop_dt": "NoPropDT",
            "noprop_fm": "NoPropFM",
            "spsa": "SPSA",
        },
    )

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


class _Rules(MutableMapping[str, type[Rule]]):
    """The classes by the rules' names, imported when they are looked at."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._found: dict[str, str | type[Rule]] = dict(names)

    def __getitem__(self, name: str) -> type[Rule]:
        found = self._found[name]
        if isinstance(found, str):
            found = self._found[name] = getattr(sys.modules[__name__], found)
        return found

    def __setitem__(self, name: str, rule: type[Rule]) -> None:
        self._found[name] = rule

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __repr__(self) -> str:
        return repr(dict(self))

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


_CLASSES = {
    "noprop-dt": "NoPropDT",
    "noprop-ct": "NoPropCT",
    "noprop-fm": "NoPropFM",
    "blockwise": "Blockwise",
    "noise-step": "NoiseStep",
    "feedback-alignment": "FeedbackAlignment",
    "direct-feedback-alignment": "DirectFeedbackAlignment",
    "local-loss": "LocalLoss",
    "forward-forward": "ForwardForward",
    "hebbian": "Hebbian",
    "evolution": "Evolution",
    "spsa": "SPSA",
    "forward-gradient": "ForwardGradient",
    "backprop": "Backprop",
    "neural-ode": "NeuralODE",
}

RULES: MutableMapping[str, type[Rule]] = _Rules(_CLASSES)


def rule_from_record(record: Mapping[str, Any]) -> Rule:
    """Return the rule of a record; hyper-parameters that the record lacks (None in TOML) have their defaults.

    Raises:
        CheckpointError: for a rule that is not there.
        InputError, TypeError: for hyper-parameters that the rule does not have or does not take.
    """
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    name: Any = values.pop("name")
    whole = values.pop(WHOLE, False)
    if name not in RULES:
        raise CheckpointError(f"the rule {name!r} is not there; there are: {', '.join(RULES)}")
    rule = RULES[name](**values)
    return OnWholeModel(rule) if whole else rule
