"""Training by scores from elsewhere: `ask` gives a net to try, `tell` takes its score, and after a round it steps."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sidestep.errors import InputError
from sidestep.gradients.directions import OneDirection, directions_along
from sidestep.gradients.shifted import shifted_weight
from sidestep.keywords import known_keywords
from sidestep.nets.quantized import quantized_weights
from sidestep.nets.trained import trained
from sidestep.notices import tell
from sidestep.rules.protocol import Rule
from sidestep.rules.shared.any_module import Asked
from sidestep.training.attach import attach
from sidestep.training.step import Step
from sidestep.world.launched import launched

__all__ = ["AskTell", "Trial", "ask_tell"]


@dataclass(frozen=True)
class Trial:
    """A net to be tried.

    net: a copy of the model with shifted weights, yours to call, to change or to send to another process.
    step: how many steps the model had taken when it was asked for.
    number: which of the step's trials it is.
    """

    net: nn.Module
    step: int
    number: int


class AskTell:
    """Trains a model by the scores of nets around it; `ask_tell` makes it.

    step: what takes the steps: `step.steps`, `step.save`, `step.load`, `step.optimizer`.
    """

    def __init__(self, step: Step) -> None:
        if not isinstance(step.rule, Asked):
            raise InputError(
                f"{step.rule.name} sees more of a net than its score; take a rule whose step is one number for each "
                "direction in the space of all weights"
            )
        self.step, self._rule = step, step.rule
        self._trials = self._rule.trials()
        self._told_of_no_spread = False
        self._begin()

    def _begin(self) -> None:
        self._asked, self._at = 0, self.step.steps
        self._losses: dict[int, float] = {}
        self._directions = directions_along(self._rule.probes(self.step.model, self.step.noise))

    def ask(self) -> Trial:
        """Return the next net to try.

        Raises InputError if all nets of this step were asked for, and some of them have no score yet.
        """
        if self._at != self.step.steps:  # `step.load` has gone to another step, of other directions
            self._begin()
        if self._asked == len(self._trials):
            missing = [number for number in range(self._asked) if number not in self._losses]
            raise InputError(
                f"all {self._asked} nets of step {self.step.steps} were asked for, and those of numbers "
                f"{', '.join(map(str, missing[:5]))}{', ...' if len(missing) > 5 else ''} have no score yet; tell them"
            )
        number, self._asked = self._asked, self._asked + 1
        index, size = self._trials[number]
        net = copy.deepcopy(self.step.model)
        if size:
            direction = OneDirection(self._directions, index, keep=True)
            with torch.no_grad():
                for name, weight in trained(net).items():
                    weight.copy_(shifted_weight(weight, direction, name, size))
        return Trial(net, self.step.steps, number)

    def tell(self, trial: Trial, score: float) -> None:
        """Take the score of a net, the larger the better; after the last of a step's, the model takes it.

        Raises:
            InputError: for a score that is no finite number, one that was told already, or of a net that was not asked
                for in this step. Nothing has changed then, and the right score can be told.
        """
        if not trial.step == self._at == self.step.steps or not 0 <= trial.number < self._asked:
            raise InputError(
                f"the net is number {trial.number} of step {trial.step}, and step {self.step.steps} has asked for "
                f"{self._asked}; tell the scores of nets that `ask` gave since the last step"
            )
        if trial.number in self._losses:
            raise InputError(
                f"net {trial.number} of step {trial.step} has a score already, {-self._losses[trial.number]:g}; tell "
                "each net's once"
            )
        value = _number(score, trial)
        if not math.isfinite(value):
            raise InputError(
                f"the score of net {trial.number} of step {trial.step} is {value}; tell a finite number, and one below "
                "all others for a net that failed"
            )
        self._losses[trial.number] = -value
        if len(self._losses) == len(self._trials):
            losses = torch.tensor([self._losses[number] for number in range(len(self._trials))], dtype=torch.float64)
            self._tell_of_no_spread(losses)
            self.step.take(self._rule.from_trials(self.step.model, losses, self.step.noise))
            self._begin()

    def _tell_of_no_spread(self, losses: torch.Tensor) -> None:
        """Warn, once, of a step whose nets all have the same score: a plateau, or a score that sees no weight."""
        if self._told_of_no_spread or len(losses) < 2 or bool((losses != losses[0]).any()):
            return
        self._told_of_no_spread = True
        tell(
            f"all {len(losses)} nets of step {self.step.steps} have the same score, {-float(losses[0]):g}, so the step "
            "changes nothing: the score does not depend on the weights, or the noise is too small to change it; take a "
            "larger eps, or a score with more values"
        )

    def __enter__(self) -> "AskTell":
        """Return itself; the log is closed at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the log."""
        self.step.close()


def _number(score: Any, trial: Trial) -> float:
    try:
        return float(score)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the score of net {trial.number} of step {trial.step} is a {type(score).__name__} that is no one number; "
            "tell a finite number"
        ) from error


@known_keywords()
def ask_tell(model: nn.Module, rule: Rule, *, seed: int = 0, log: str | Path | None = None) -> AskTell:
    """Return what trains a model by scores: from a simulator, a game, another process, whatever there is no loss of.

    Args:
        model: trained in place; frozen parameters stay as they are.
        rule: `SPSA(learning_rate=...)` or `Evolution(noise_kind="full-rank", per="group")`, which may have
            `fitness="ranks"`, so that the scale of the score has no part in it.
        seed: of the noise.
        log: a step log to write, which `sidestep.replay` takes again.

    Raises:
        InputError: for a rule that needs more than scores, or a model that it cannot train.

    >>> from sidestep import rules
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.weight.data.fill_(0.0)
    >>> search = ask_tell(model, rules.Evolution(noise_kind="full-rank", per="group", learning_rate=0.1))
    >>> for _ in range(8 * 16):
    ...     trial = search.ask()
    ...     search.tell(trial, -abs(trial.net.weight.item() - 1))  # it is best at 1
    >>> abs(model.weight.item() - 1) < 0.3, search.step.steps
    (True, 8)
    """
    if launched() > 1:
        raise InputError(
            f"ask and tell go through one process, and a launcher has started {launched()} (WORLD_SIZE): start one, "
            "which hands the nets out"
        )
    if quantized_weights(model):
        raise InputError(
            "the nets that are handed out are copies with shifted weights, which whole numbers cannot be; give a model "
            "in floats, or train the quantised one by its loss (sidestep.attach)"
        )
    return AskTell(attach(model, rule, seed=seed, log=log))
