"""Which variant of a paper's method a rule's options make: every table says it beside the numbers."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

__all__ = ["PAPER_LABELS", "PAPER_TIMES", "HasVariant", "PaperOptions", "variant_of"]

PaperOptions = Mapping[str, tuple[Any, ...]]  # option -> the values of it that the paper has

# what all variants of NoProp have alike (Li, Teh, Pascanu 2025)
PAPER_LABELS: PaperOptions = {
    "embedding": ("one-hot", "learned", "prototype"), "unit_norm": (False,), "path": ("auto", "figure-6"),
    "readout": ("softmax",), "learning_rate": (1e-3,), "weight_decay": (1e-3,),
}  # fmt: skip
PAPER_TIMES: PaperOptions = {
    "times": ("uniform",), "draws_per_image": (1,), "optimizer_kind": ("adam",), "norm": ("none",),
}  # fmt: skip


@runtime_checkable
class HasVariant(Protocol):
    """What a rule has besides, whose options go beyond the paper that it is named after."""

    readings: ClassVar[tuple[str, ...]]
    paper_options: ClassVar[PaperOptions]  # of the options that matter
    paper_reading: ClassVar[str]


def variant_of(rule: Any) -> str | None:
    """Return how a rule trains and reads in terms of its paper, or None for a rule that says nothing of one.

    >>> from sidestep.rules import NoPropCT
    >>> variant_of(NoPropCT(loss="paper", schedule="learned", times="uniform", optimizer_kind="adam"))
    "trained as in the paper; read by ddim (the paper's reading: ancestral)"
    """
    if not isinstance(rule, HasVariant):
        return None
    given = {name: getattr(rule, name) for name in rule.paper_options}
    other = [f"{name} = {value}" for name, value in given.items() if value not in rule.paper_options[name]]
    trained = f"not the paper's: trained with {', '.join(other)}" if other else "trained as in the paper"
    return f"{trained}; read by {rule.readings[0]} (the paper's reading: {rule.paper_reading})"
