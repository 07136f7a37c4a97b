"""What a preset is: a rule's hyper-parameters, training options and data that belong together, under one name."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sidestep.errors import InputError

__all__ = ["ANY_TEXT", "Changes", "PaperCell", "Preset"]

ANY_TEXT = "text"  # as a preset's data: a text file of the user's, which has to be given


@dataclass(frozen=True)
class PaperCell:
    """What a paper's table reports in one cell."""

    mean: float  # test accuracy in %
    error: float | None = None  # its standard error in %, where the paper gives one


@dataclass(frozen=True)
class Changes:
    """What a budget smaller than the full one changes of a preset."""

    train: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """A named recipe. Its own values are the full ones; `budgets` says what a smaller budget changes.

    A preset holds names and plain values only, so that it can be listed, compared and sent to another process.
    """

    name: str
    data: str  # name of a data set, or ANY_TEXT
    rule: str  # its name in `sidestep.rules.RULES`
    options: Mapping[str, Any]  # of the rule's fields; the others keep their defaults
    train: Mapping[str, Any]  # of the fields of `sidestep.training.Options`
    summary: str
    reading: str  # which of the rule's readings `paper` is compared with
    validation: float = 0.1  # share of the training split kept aside
    image_size: int | None = None  # None: the data set's own
    table: str | None = None  # the command `sidestep reproduce TABLE` that this is a row of
    row: str = ""  # of that table
    paper: PaperCell | None = None
    memory_gb: float | None = None  # GPU memory that the paper gives for training, in GB
    sampled: bool = False  # whether `reading` draws noise, so that it differs from one inference run to the next
    budgets: Mapping[str, Changes] = field(default_factory=dict)

    def for_budget(self, budget: str) -> "Preset":
        """Return the preset with the values of a budget: `full`, or one of those in `budgets`.

        Raises:
            InputError: for another budget.
        """
        if budget == "full":
            return self
        if budget not in self.budgets:
            raise InputError(f"{self.name} has the budgets {', '.join(['full', *self.budgets])}; got {budget!r}")
        changes = self.budgets[budget]
        return replace(self, train={**self.train, **changes.train}, options={**self.options, **changes.options})
