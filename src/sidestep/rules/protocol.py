"""What a learning rule is: how a net is built, what one batch asks of it, and what it predicts.

`Rule` has a default for everything else, so that a new rule is `build`, `estimate` and `predict`. The types that these
take and return stand here too, so that a rule finds them in one place.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import wraps
from typing import Any, ClassVar, Generic, Protocol, cast, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from sidestep.checks import check_positive, check_range
from sidestep.data import Split
from sidestep.data.objective import answers
from sidestep.data.share import Division
from sidestep.data.task import Batch, Task
from sidestep.gradients.end_to_end import end_to_end
from sidestep.keywords import KnownKeywords
from sidestep.nets.trained import trained
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.fields import RARE, check_choice
from sidestep.rules.shared.built import built
from sidestep.rules.shared.dense import adamw, apply_dense
from sidestep.rules.takes import Takes, check_takes
from sidestep.update import Dense, Update

__all__ = [
    "Batch",
    "Dense",
    "Division",
    "HasBatchMultiple",
    "HasTrueGradient",
    "ImagePath",
    "Net",
    "Noise",
    "OutputRule",
    "Rule",
    "Split",
    "Takes",
    "Task",
    "UnitByUnit",
    "Update",
]

Method = TypeVar("Method", bound=Callable[..., Any])
Net = TypeVar("Net", bound=nn.Module, default=Any)


def _with_door(method: Method) -> Method:
    """Return a rule's method behind its door: a net that another rule has built is refused before it runs."""

    @wraps(method)
    def checked(self: "Rule[Any]", net: nn.Module, *arguments: Any, **named: Any) -> Any:
        return method(self, built(net, self.net_types, self, self.fits), *arguments, **named)

    return cast(Method, checked)


def _with_check(build: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rule's `build` behind the check of what the rule takes."""

    @wraps(build)
    def checked(self: "Rule[Any]", task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> Any:
        check_takes(self, task, module)
        return build(self, task, noise, examples, module)

    return checked


_TAKE_A_NET = (
    "units", "optimizer", "estimate", "estimates", "decide", "apply", "predict", "diagnostics", "failure",
    "true_gradients",
)  # fmt: skip
_GUARDS: dict[str, Callable[..., Any]] = {**dict.fromkeys(_TAKE_A_NET, _with_door), "build": _with_check}


class Rule(KnownKeywords, ABC, Generic[Net]):
    """A learning rule: a frozen dataclass, whose fields are its hyper-parameters and the command line's options.

    The loop calls `estimate`, then `decide` on all ranks' updates, then `apply`. `estimate` writes neither weights nor
    buffers; `apply` sees no data and no learning rate that is not in the update, and is deterministic, so that updates
    can be logged and replayed.

    `class LocalLoss(Rule[LayerwiseNet])` says which net `build` makes, a class or several (`A | B`). Every method that
    takes a net gets one of these: others are refused with an InputError that says what to call.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    readings: ClassVar[tuple[str, ...]] = ("forward",)  # names of `predict`'s readings; the first is the default
    at_end: ClassVar[tuple[str, ...]] = ()  # readings that a run ends with where none are asked for; (): all
    for_inference: ClassVar[tuple[str, ...]] = ()  # hyper-parameters that `predict` can take at other values later
    takes: ClassVar[Takes] = Takes()  # what it can train: other data and modules are refused
    rare: ClassVar[frozenset[str]] = RARE  # hyper-parameters that the short help leaves out
    net_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.Module,)  # from the square brackets behind Rule
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def divides(self) -> Mapping[Division, int]:
        """What of a step can be estimated in equal parts (`Batch.share`), the first by default, and how many there are.

        batch: the parts are means over some of the examples; their number is the batch's, and 0 stands for it.
        probes: each part takes some of the probes, on the whole batch.
        units: each rank trains some of the units, and estimates those that all share.
        """
        return {"batch": 0}

    @property
    def common_noise(self) -> bool:
        """Whether all parts of a divided step draw the same noise, as coefficients of the same probes must."""
        return False

    @property
    def takes_signs(self) -> bool:
        """Whether the signs of a gradient's largest entries do: each parameter's is divided by its own size."""
        return False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in vars(cls).get("__orig_bases__", ()):
            kinds = [kind for given in get_args(base) for kind in get_args(given) or (given,)]
            if kinds and all(isinstance(kind, type) for kind in kinds):  # a base of several rules leaves it open
                cls.net_types = tuple(kinds)
        for name in _GUARDS.keys() & vars(cls).keys():
            setattr(cls, name, _GUARDS[name](vars(cls)[name]))

    def __post_init__(self) -> None:
        """Check the hyper-parameters that rules have by these names; a rule with others adds its own checks."""
        check_choice(self)
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if values.get("learning_rate") is not None:  # none: the rule finds its step size itself
            check_positive(100, learning_rate=values["learning_rate"])
        for name, most in (("weight_decay", 1), ("label_smoothing", 0.99)):
            if name in values:
                check_range(0, most, **{name: values[name]})

    def fits(self, net: Net) -> bool:
        """Whether a net of the right class is one that this rule builds with its hyper-parameters."""
        return True

    @abstractmethod
    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> Net:
        """Make the untrained net. `examples` are the training images, absent when weights are about to be loaded."""

    @abstractmethod
    def estimate(self, net: Net, batch: Batch, noise: Noise) -> Update:
        """Estimate the update from one batch; `noise` stands at the current step."""

    @abstractmethod
    def predict(
        self, net: Net, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return class probabilities (batch, classes) for the wanted `readings` (all by default), from images alone.

        `start` is the index of the first image in the whole set, so that samples do not depend on the batching.
        """

    @_with_door
    def units(self, net: Net) -> dict[str, list[str]]:
        """Return unit name -> parameter names: what trains without the others. By default one unit, all parameters."""
        return {"net": list(trained(net))}

    @_with_door
    def optimizer(self, net: Net) -> torch.optim.Optimizer:
        """Make the optimiser that `apply` steps, one parameter group per unit.

        By default AdamW with the rule's `learning_rate` and `weight_decay`, or 1e-3 where it has no such field.
        """
        rates = [getattr(self, name, 1e-3) for name in ("learning_rate", "weight_decay")]
        return adamw(net, self.units(net), *rates)

    @_with_door
    def decide(self, net: Net, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Turn the exchanged estimate of all ranks into what is logged and applied; by default the identity.

        It may advance the optimiser's memory (momentum), but sees no data and writes no weights.
        """
        return update

    @_with_door
    def apply(self, net: Net, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Write the update into the net; deterministic. By default one step of the optimiser along named gradients."""
        apply_dense(net, update, optimizer)

    @_with_door
    def diagnostics(self, net: Net) -> dict[str, float]:
        """Return numbers that show trouble early, logged once an epoch, such as distances between embeddings."""
        return {}


class OutputRule(Rule[Net]):
    """A rule that predicts by what its net returns, so that its default reading and true gradient are known."""

    def predict(
        self, net: Net, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the one reading `forward`: the softmax of the net's output."""
        return {"forward": answers(net, images)}

    def true_gradients(self, net: Net, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the mean loss of the net's output, end to end."""
        return end_to_end(net, batch, net)


@runtime_checkable
class HasTrueGradient(Protocol):
    """What a rule may have besides: the gradient that its estimates can be measured against. It is never trained on.

    A rule without it may say why in a class variable `no_true_gradient`, a sentence that errors show.
    """

    def true_gradients(self, net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the default reading's mean cross-entropy, end to end, by parameter name.

        Parameters that the reading does not depend on, such as heads beside the last, are left out.
        """
        ...


@runtime_checkable
class HasBatchMultiple(Protocol):
    """What a rule has besides, which divides a batch into equal parts or groups: what its size is a multiple of."""

    @property
    def batch_multiple(self) -> tuple[str, int]:
        """The name and the value of the hyper-parameter that the size of a batch must be a multiple of."""
        ...


@runtime_checkable
class HasHealthCheck(Protocol):
    """What a rule has besides, whose nets can get into a state from which they do not learn any more."""

    def failure(self, net: nn.Module) -> str | None:
        """Return what is wrong with a net and what helps, or None; asked after every epoch."""
        ...


@runtime_checkable
class UnitByUnit(Protocol):
    """What a rule has besides, whose units can take their steps one after another: less memory, the same numbers.

    The updates have named gradients: those of other kinds are logged, a whole step at a time.
    """

    def estimates(self, net: nn.Module, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield each unit's name and update; the loop applies it before it asks for the next one.

        Merged they are what `estimate` returns: nothing may be computed from another unit that was applied already. To
        take one unit's memory at a time, released what was yielded before the next is made.
        """
        ...
