"""The suite in which every rule has the same nets, recipe and search budget: what is trained, as data.

A rule's row has the values of `options`, which are trial 1 of its search; further trials draw each hyper-parameter of
`search` alone, log-uniformly between two numbers or evenly among several values. What all rows have alike, where a rule
has it at all, stands in `COMMON`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["BASELINE", "COMMON", "MATCHED", "NETS", "TRAIN", "Among", "Between", "MatchedRule", "Net"]


@dataclass(frozen=True)
class Between:
    """A number that is searched log-uniformly."""

    low: float
    high: float

    def at_end(self, value: float) -> bool:
        """Whether a value is so near to one of the two, 5 % of their distance in logarithms, that others may be better.

        >>> Between(1e-4, 1e-2).at_end(9e-3), Between(1e-4, 1e-2).at_end(7e-3), Between(1e-4, 1e-2).at_end(2e-2)
        (True, False, True)
        """
        place = math.log(value / self.low) / math.log(self.high / self.low)
        return not 0.05 < place < 0.95


@dataclass(frozen=True)
class Among:
    """One of several values, each as likely."""

    values: tuple[Any, ...]

    def at_end(self, value: Any) -> bool:
        """Whether a value is the smallest or the largest of three numbers or more; 0, which turns a thing off, is not.

        >>> Among((0.8, 0.9, 0.98)).at_end(0.98), Among((0.8, 0.9, 0.98)).at_end(0.9), Among(("a", "b")).at_end("a")
        (True, False, False)
        """
        numbers = {each for each in self.values if isinstance(each, int | float) and not isinstance(each, bool)}
        return len(numbers) > 2 and value != 0 and value in (min(numbers), max(numbers))


@dataclass(frozen=True)
class Net:
    """A net that rules share; `hidden` by data set, where it differs."""

    kind: Literal["mlp", "conv", "blocks"]
    words: str
    hidden: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # data set, or "" for any other -> widths
    blocks: int = 0


NETS: Mapping[str, Net] = {
    "mlp": Net("mlp", "an MLP", {"": (512, 512)}),
    "conv": Net("conv", "a small conv net, 3 x 3, pooled", {"": (16, 32, 64), "mnist": (16, 32), "digits": (16, 32),
                                                           "fashion-mnist": (16, 32)}),
    "conv-wide": Net("conv", "a conv net, 3 x 3, pooled", {"": (64, 128, 256)}),
    "blocks-10": Net("blocks", "ten blocks of the NoProp paper", blocks=10),
    "blocks-3": Net("blocks", "three blocks of the NoProp paper", blocks=3),
    "blocks-1": Net("blocks", "one block of the NoProp paper", blocks=1),
}  # fmt: skip

BASELINE = "backprop"  # the row that the others are compared with
COMMON: Mapping[str, Any] = {"label_smoothing": 0.1, "weight_decay": 1e-3}
TRAIN: Mapping[str, Any] = {"batch": 128, "decay": "cosine", "precision": "float32"}


@dataclass(frozen=True)
class MatchedRule:
    """A row of the suite."""

    name: str
    rule: str  # in `sidestep.rules.RULES`
    words: str  # what it is, for the page
    search: Mapping[str, Between | Among]
    options: Mapping[str, Any] = field(default_factory=dict)
    differs: tuple[str, ...] = ()  # from the others, beyond the way of learning
    own_net: bool = False  # it is trained on the net of its own of that kind, though it takes stages of the user's
    on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # kind of net -> further options there
    nets: tuple[str, ...] = ("mlp", "conv", "blocks")  # kinds that say anything of it
    counted: str = ""  # not trained: what a step takes is counted alone, and this says what it would reach
    reading: str = ""  # by which its images are read; the rule's first unless it says otherwise
    unfit: Mapping[str, str] = field(default_factory=dict)  # kind of net -> why it cannot, beyond what the rule says


_RATE = Between(1e-4, 1e-2)
_LOCAL = ("mlp", "conv")

MATCHED: tuple[MatchedRule, ...] = (
    MatchedRule("linear", "backprop", "a linear classifier of the pixels", {"learning_rate": Between(1e-3, 1e-1)},
                {"net": "linear"}, ("no hidden layer",), nets=_LOCAL),
    MatchedRule("backprop", "backprop", "back-propagation", {"learning_rate": _RATE}),
    MatchedRule("backprop-checkpointed", "backprop", "the same, keeping only what enters a stage for the way back", {},
                {"activation_checkpointing": True}, counted="the updates of backprop"),
    MatchedRule("backprop-accumulated", "backprop", "the same, a quarter of a batch at a time", {}, {"accumulate": 4},
                counted="backprop's, but for batch norm, which sees quarters", nets=_LOCAL),
    MatchedRule("deep-supervision", "backprop", "back-propagation of the sum of a loss for every stage",
                {"learning_rate": _RATE, "deep_supervision": Between(0.03, 1.0)}, {"deep_supervision": 0.3}),
    MatchedRule("adam-ternary", "backprop", "back-propagation, ternary weights with float latents (Adam, "
                "straight-through)", {"learning_rate": _RATE}, {"ternary": True}, ("ternary weights",), own_net=True,
                nets=_LOCAL),
    MatchedRule("local-loss", "local-loss", "a loss for every stage",
                {"learning_rate": _RATE, "similarity": Among((0.0, 0.0, 0.5, 0.9))}),
    MatchedRule("feedback-alignment", "feedback-alignment", "errors through fixed random matrices",
                {"learning_rate": _RATE}),
    MatchedRule("sign-symmetric", "feedback-alignment", "errors through the signs of the weights",
                {"learning_rate": _RATE}, {"feedback": "sign-symmetric"}, nets=_LOCAL),
    MatchedRule("kolen-pollack", "feedback-alignment", "errors through matrices that learn with the weights",
                {"learning_rate": _RATE}, {"feedback": "kolen-pollack"}, nets=_LOCAL),
    MatchedRule("direct-feedback-alignment", "direct-feedback-alignment", "the error straight to every stage",
                {"learning_rate": _RATE}),
    MatchedRule("forward-forward", "forward-forward", "goodness of right and wrong labels in the input",
                {"learning_rate": _RATE, "sharpness": Between(1.0, 16.0)}),
    MatchedRule("channel-competition", "forward-forward", "goodness of groups of units that answer for a class",
                {"learning_rate": _RATE, "threshold": Between(0.3, 3.0)}, {"label": "head", "threshold": 1.0},
                nets=_LOCAL),
    MatchedRule("forward-gradient", "forward-gradient", "directional derivatives of activities, local losses",
                {"learning_rate": _RATE}, {"groups": 8}),
    MatchedRule("hebbian", "hebbian", "soft winner-take-all without labels, and a linear read-out",
                {"learning_rate": _RATE, "temperature": Between(0.03, 1.0)}, differs=("read-out of all stages",)),
    MatchedRule("hebbian-random", "hebbian", "the same with units left random: a linear read-out of random features",
                {"learning_rate": _RATE}, {"stage_steps": 0}, ("read-out of all stages",), nets=_LOCAL),
    MatchedRule("node-perturbation", "evolution", "noise along each layer's input, in pairs",
                {"learning_rate": _RATE}, {"columns": "input"}, nets=_LOCAL,
                unfit={"conv": "its noise lies along what a layer sees of an example, and a convolution sees many "
                       "places"}),
    MatchedRule("evolution", "evolution", "noise on weights in pairs, of rank 1 where there are no convolutions",
                {"learning_rate": _RATE, "eps": Between(1e-3, 3e-2)}, {"per": "group", "group": 4},
                on={"conv": {"noise_kind": "full-rank", "group": 32}}, nets=_LOCAL),
    MatchedRule("spsa", "spsa", "one number for each of eight directions of all weights",
                {"eps": Between(3e-4, 1e-2), "distribution": Among(("signs", "gaussian", "rank-one"))}, {"pairs": 8},
                nets=_LOCAL),
    MatchedRule("noise-step", "noise-step", "ternary weights that flip, by local back-propagation",
                {"flip_share": Between(3e-4, 1e-2), "momentum": Among((0.8, 0.9, 0.95, 0.98))},
                differs=("ternary weights",), own_net=True, nets=_LOCAL),
    MatchedRule("noise-step-forward", "noise-step", "ternary weights that flip, by local forward passes",
                {"flip_share": Between(3e-4, 1e-2), "momentum": Among((0.8, 0.9, 0.95, 0.98))},
                {"estimator": "local-probes"}, ("ternary weights",), own_net=True, nets=_LOCAL),
    MatchedRule("noprop-dt", "noprop-dt", "each block denoises a label by itself, by cross-entropy",
                {"learning_rate": _RATE}, {"loss": "cross-entropy"}),
    MatchedRule("noprop-dt-squared", "noprop-dt", "the same by the paper's squared error",
                {"learning_rate": _RATE, "eta": Between(0.01, 1.0)}, {"label_smoothing": 0.0},
                ("no label smoothing", "squared error"), nets=("blocks",)),
    MatchedRule("noprop-ct", "noprop-ct", "one block denoises a label at any time", {"learning_rate": _RATE},
                {"norm": "batch"}),
    MatchedRule("noprop-ct-plain", "noprop-ct", "the same on the paper's block, which has no batch norm",
                {"learning_rate": _RATE}, nets=("blocks",)),
    MatchedRule("noprop-ct-blind", "noprop-ct", "the same, with next to nothing of a label in z: a plain classifier",
                {"learning_rate": _RATE}, {"norm": "batch", "smallest_alpha_bar": 1e-6, "largest_alpha_bar": 2e-6},
                ("never sees a label",), nets=("blocks",), reading="first step"),
    MatchedRule("noprop-fm", "noprop-fm", "one block carries noise to a label", {"learning_rate": _RATE},
                {"norm": "batch"}),
    MatchedRule("noprop-fm-plain", "noprop-fm", "the same on the paper's block, which has no batch norm",
                {"learning_rate": _RATE}, nets=("blocks",)),
    MatchedRule("neural-ode", "neural-ode", "one block, trained through the solver", {"learning_rate": _RATE},
                {"norm": "batch"}),
)  # fmt: skip
