"""What server and clients have in common: a model and a rule that takes the same decided steps everywhere."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sidestep.data.objective import Objective
from sidestep.errors import InputError
from sidestep.federated.messages import Messages
from sidestep.gradients.any_module import check_trainable
from sidestep.noise import Noise
from sidestep.probes import DenseProbes
from sidestep.rules.protocol import Rule
from sidestep.rules.record import rule_record
from sidestep.rules.shared.any_module import AnyModule, OwnSteps, trains_any
from sidestep.steplog.header import Header
from sidestep.training.attached_rule import Whole, as_objective, take_update
from sidestep.update import Seeded

__all__ = ["NO_STEP_SIZE", "FederatedRule", "Party", "check_clip"]

NO_STEP_SIZE = "would find a step size by the losses of each client alone: give it a learning_rate, and no spread"


@runtime_checkable
class FederatedRule(AnyModule, Protocol):
    """A rule for any module whose steps are scalars along directions that everybody can draw."""

    def probes(self, net: nn.Module, noise: Noise) -> DenseProbes:
        """Return the directions of a step."""
        ...


class Party:
    """A model, the rule that steps it, and the number of steps that it has taken."""

    def __init__(self, model: nn.Module, rule: Rule, seed: int, objective: Objective | Callable[..., Any] | str | None):
        if not isinstance(model, nn.Module):
            raise InputError(f"federated training trains an nn.Module, got {type(model).__name__}")
        if isinstance(rule, OwnSteps) or not (isinstance(rule, FederatedRule) and trains_any(rule)):
            raise InputError(
                f"{getattr(rule, 'name', type(rule).__name__)} tells no step of any model by scalars along seeded "
                "directions, which is what clients send: take one that trains any module without a backward pass "
                "(`sidestep rules`)"
            )
        if getattr(rule, "finds_step_size", False):
            raise InputError(f"{rule.name} {NO_STEP_SIZE}")
        check_trainable(model)
        self.model, self.rule, self.steps = model, rule, 0
        self.attached = Whole(model, rule, as_objective(objective), None)
        self.header = Header.attached_to(model, rule_record(rule), seed)
        self.messages = Messages(self.header)
        self._noise = Noise(seed).stream("estimate")

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that steps along the sums."""
        return self.attached.optimizer

    @property
    def noise(self) -> Noise:
        """The noise of the next step."""
        return self._noise.at(self.steps)

    @property
    def count(self) -> int:
        """How many scalars a step has."""
        return self.rule.probes(self.model, self.noise).count

    def along(self, coefs: Tensor) -> Seeded:
        """Return the next step's update with these coefficients, (probes,)."""
        probes = self.rule.probes(self.model, self.noise)
        return Seeded(coefs.to(next(self.model.parameters()).device), probes)

    def take(self, update: Seeded, record: Callable[[Any], None] | None = None) -> None:
        """Decide an update and take the step."""
        take_update(self.attached, update, record)
        self.steps += 1

    def replay(self, update: Seeded) -> None:
        """Take a step that was decided elsewhere."""
        expected = self.rule.probes(self.model, self.noise)
        if update.probes != expected:
            raise InputError(f"step {self.steps} of the server is along other directions than this rule draws")
        self.attached.apply(replace(update, coefs=update.coefs.to(next(self.model.parameters()).device)))
        self.steps += 1


def check_clip(clip: float | None) -> None:
    """Raise InputError unless the bound of a client's scalars is above 0, or there is none."""
    if clip is not None and not 0 < clip < float("inf"):
        raise InputError(
            f"clip bounds a client's directional derivatives, so it must be above 0, got {clip}; leave it "
            "out for no bound"
        )
