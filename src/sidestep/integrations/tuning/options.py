"""What a fine-tune is asked to do; the command line makes its options from these fields."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from sidestep.checks import check_positive, check_range
from sidestep.errors import InputError
from sidestep.rules import RULES, Rule, rule_from_record
from sidestep.rules.shared.any_module import trains_any
from sidestep.schedule import Decay

__all__ = ["Part", "TuneOptions", "rule_of_options"]

Part: TypeAlias = Literal["all", "norms", "head"]

# what a rule is given where nothing else is said: rates that suit weights which know something already
_DEFAULTS: dict[str, dict[str, Any]] = {
    "spsa": {},
    "forward-gradient": {"kind": "weights", "learning_rate": 1e-3},
    "backprop": {"learning_rate": 1e-4, "weight_decay": 0.01},
    "evolution": {"noise_kind": "full-rank", "per": "group", "learning_rate": 1e-3},
}


@dataclass(frozen=True)
class TuneOptions:
    """How to fine-tune a pretrained model on texts."""

    data: Path = Path("texts.csv")
    """A table of texts and labels (.csv, .tsv, .parquet), or a text (.txt) whose next tokens are learned."""
    target: str | None = None
    """Column of the labels in a table."""
    text: str | None = None
    """Column of the texts in a table. Default: the only other column, or the one called text or sentence."""
    rule: str = "spsa"
    """spsa and evolution (forward passes alone), forward-gradient, or backprop."""
    train: Part | None = None
    """What is trained: all weights, norms and biases with the new output layer, or that layer alone. Default: norms for
    forward passes alone and forward gradients, all for back-propagation."""
    lora: int = 0
    """Train adapters of this rank (LoRA, by peft) and the new output layer in place of the model's own weights."""
    checkpointed: bool = False
    """Back-propagation keeps only what enters each layer and computes the rest again, for less memory and more time."""
    micro_batches: int = 1
    """Parts of a batch that back-propagation computes one after another, their gradients summed."""
    steps: int = 200
    """Training steps."""
    stop_at: float | None = None
    """Share of the validation texts, up to 1, at which training ends once so many are right; also before the first
    step. Default: all steps."""
    batch: int = 32
    """Texts, or rows of next tokens, in a step."""
    learning_rate: float | None = None
    """Step size. Default: spsa finds it, 1e-4 for back-propagation, 1e-3 for forward-gradient and evolution."""
    decay: Decay = "linear"
    """How the learning rate falls to 0 over the steps: none, cosine or linear."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises first."""
    head: Literal["fitted", "drawn"] = "fitted"
    """A new output layer begins with what ridge regression makes of the model's own features, by one look at the texts
    without derivatives, or with drawn weights."""
    reads: Literal["layers", "last", "own"] = "layers"
    """Hidden states that a new output layer reads: means of those of all layers, of the last one, or what the model's
    own class for labels gives it."""
    length: int | None = None
    """Most tokens of a text, or of a row of next tokens; what is longer is cut. Default: 64, or all that the model has
    positions for."""
    validation: float = 0.1
    """Share of the texts kept aside for validation; the cut is the same for every seed."""
    evaluate_every: int | None = None
    """Steps between two looks at the validation texts, after each of which the run is saved. Default: a tenth."""
    seed: int = 0
    """Seed of everything random: the order of the texts, directions, dropout, drawn weights."""
    out: Path | None = None
    """Folder of the run. Default: runs/RULE-MODEL-SEED."""
    resume: bool = False
    """Go on with the run in --out, to the bits of one that was never stopped."""
    overwrite: bool = False
    """Replace the run in --out."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        check_range(0, 4096, lora=self.lora)
        check_range(1, 1 << 20, micro_batches=self.micro_batches, batch=self.batch)
        check_range(0, 10**9, steps=self.steps)
        if self.length is not None:
            check_range(2, 1 << 20, length=self.length)
        if not 0 < self.validation < 1:
            raise InputError(f"validation is a share of the texts, above 0 and below 1, got {self.validation}")
        if self.stop_at is not None:
            check_positive(1, stop_at=self.stop_at)
        if self.evaluate_every is not None:
            check_range(1, 10**9, evaluate_every=self.evaluate_every)
        if self.train and self.lora:
            raise InputError("lora trains adapters in place of the model's own weights; leave train or lora out")
        if not self.backward and (self.checkpointed or self.micro_batches > 1):
            what = "checkpointed" if self.checkpointed else "micro_batches"
            raise InputError(f"{what} saves activations of a backward pass, and {self.rule} has none; leave it out")
        if self.batch % self.micro_batches:
            raise InputError(
                f"a batch of {self.batch} texts cannot be divided into {self.micro_batches} equal parts; give a batch "
                "that is a multiple of micro_batches"
            )

    @property
    def backward(self) -> bool:
        """Whether the rule goes back through the whole model."""
        return self.rule in RULES and RULES[self.rule].takes.log == "no"

    @property
    def part(self) -> Part:
        """What is trained."""
        return self.train or ("all" if self.backward or self.lora else "norms")

    @property
    def every(self) -> int:
        """Steps between two evaluations."""
        return self.evaluate_every or max(1, self.steps // 10)


def rule_of_options(options: TuneOptions, named: dict[str, Any]) -> Rule:
    """Return the rule, with hyper-parameters by name beside those of the options.

    Raises InputError for one that is not there, or needs more of a model than its loss.
    """
    if options.rule not in _DEFAULTS:
        raise InputError(f"rule must be one of {', '.join(_DEFAULTS)}, which train any model, got {options.rule!r}")
    given = {**_DEFAULTS[options.rule], **named}
    if options.learning_rate is not None:
        given["learning_rate"] = options.learning_rate
    rule = rule_from_record({"name": options.rule, **given})
    if not trains_any(rule):
        raise InputError(f"{options.rule} with {given} needs more of a model than its loss")
    return rule
