"""A client of federated training: it keeps its data, follows the server's steps, and answers with scalars."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sidestep import checkpoint
from sidestep.data.objective import Objective
from sidestep.errors import CheckpointError, InputError, NonFiniteError
from sidestep.federated.messages import Answer, Invitation, within
from sidestep.federated.party import NO_STEP_SIZE, Party, check_clip
from sidestep.rules.protocol import Rule
from sidestep.rules.shared.any_module import STEP_SIZE
from sidestep.update import Seeded

__all__ = ["Client"]

_MOST_EXAMPLES = (1 << 32) - 1


class Client:
    """One party that has data: it replays the steps that it has missed, and estimates the next ones on its own data.

        c_i = d L_k / d nu_i / K          of its own loss L_k along K directions nu_i that all parties draw alike

    Args:
        model: with the weights that every party starts from; it is trained in place.
        rule: from `sidestep.rules`, the same everywhere: `SPSA(learning_rate=...)`, `ForwardGradient(kind="weights")`
            or `Evolution(per="group")`.
        seed: the same everywhere.
        objective: for batches of inputs and targets, as `attach` takes it.
        clip: the largest derivative along a direction, of either sign, that leaves this client.

    Raises:
        InputError: for a rule or a model that cannot be trained so; for a rule that finds its step size by the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        seed: int = 0,
        *,
        objective: Objective | Callable[[Tensor, Tensor], Tensor] | str | None = None,
        clip: float | None = None,
    ) -> None:
        check_clip(clip)
        self._party, self._clip = Party(model, rule, seed, objective), clip

    @property
    def model(self) -> nn.Module:
        """The model, as the server has it after `steps` steps."""
        return self._party.model

    @property
    def steps(self) -> int:
        """How many steps of the server's it has taken."""
        return self._party.steps

    def follow(self, invitation: bytes) -> None:
        """Take the steps of the server's that an invitation brings, and estimate nothing.

        Raises:
            InputError: for what is no invitation of this federation, or one that leaves steps out.
        """
        self._follow(self._party.messages.read_invitation(invitation))

    def answer(
        self, invitation: bytes, batch: Callable[[int], Sequence[Any] | Callable[[], Tensor]], examples: int
    ) -> bytes:
        """Follow an invitation, estimate the steps that it asks for, and return what the server is sent.

        With several steps, each is estimated where the client's own steps before it have led; then the weights are put
        back, since the server's sums take their place.

        Args:
            invitation: from `Server.invitation`.
            batch: called with the number of a step; returns inputs and targets, or one function that gives the loss.
            examples: how many this client has, for its weight in the sum.

        Raises:
            InputError: as `follow`; for a model with running statistics.
            NonFiniteError: if a loss or a derivative is not a finite number.
        """
        if isinstance(examples, bool) or not isinstance(examples, int) or not 1 <= examples <= _MOST_EXAMPLES:
            raise InputError(f"examples is how many this client has, from 1 to {_MOST_EXAMPLES:,}, got {examples!r}")
        asked = self._party.messages.read_invitation(invitation)
        self._follow(asked)
        if not asked.steps:
            raise InputError("the invitation asks for no steps: client.follow takes it")
        begins, kept = self.steps, self._kept() if asked.steps > 1 else None
        coefs, losses = [], []
        for group in self._party.optimizer.param_groups:
            group["lr"] = asked.rate
        try:
            for index in range(asked.steps):
                found = batch(begins + index)
                update = self._estimated((found,) if callable(found) else found)
                coefs.append(update.coefs.detach().cpu())
                losses.append(float(list(update.losses.values())[-1]))
                if index + 1 < asked.steps:
                    self._party.take(update)
        finally:
            if kept is not None:
                self._put_back(*kept, begins)
        return self._party.messages.answer(Answer(begins, examples, losses[0], torch.stack(coefs)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return weights and optimiser memory by name, and plain JSON: what `restore` takes when the client returns.

        A client that keeps nothing starts from the first weights, and the server sends it every step.
        """
        moments, groups = checkpoint.optimizer_tensors(self._party.optimizer)
        tensors = {f"net/{name}": value.detach() for name, value in self.model.named_parameters()}
        tensors |= {f"optimizer/{name}": value for name, value in moments.items()}
        return tensors, {"steps": self.steps, "optimizer": groups}

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on where `state` was called.

        Raises:
            CheckpointError: for the state of another model or optimiser.
        """
        own = dict(self.model.named_parameters())
        weights = {name.removeprefix("net/"): value for name, value in tensors.items() if name.startswith("net/")}
        if {name: value.shape for name, value in weights.items()} != {name: p.shape for name, p in own.items()}:
            raise CheckpointError("the client's state is of another model: start it without one, the server sends all")
        moments = {n.removeprefix("optimizer/"): value for n, value in tensors.items() if n.startswith("optimizer/")}
        steps, groups = record.get("steps"), record.get("optimizer")
        if type(steps) is not int or steps < 0 or not isinstance(groups, dict):
            raise CheckpointError(
                "the client's state has no record of its steps: start it without, the server sends all"
            )
        checkpoint.restore_optimizer(self._party.optimizer, moments, groups)
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)
        self._party.steps = steps

    def _follow(self, asked: Invitation) -> None:
        if asked.first > self.steps:
            raise InputError(
                f"the server's steps from {asked.first} on came to a client that has taken {self.steps}: ask the "
                "server for those between (Server.forget)"
            )
        if asked.first + len(asked.updates) < self.steps:
            raise InputError(
                f"the server is at step {asked.first + len(asked.updates)}, and this client at {self.steps}: it has "
                "followed another server; start it from the first weights"
            )
        for update in asked.updates[self.steps - asked.first :]:
            self._party.replay(update)

    def _estimated(self, batch: Sequence[Any]) -> Seeded:
        party = self._party
        if not isinstance(batch, tuple | list):
            raise InputError(f"batch returns inputs and targets, or a function of the loss, got {type(batch).__name__}")
        update = party.attached.estimate(tuple(batch), party.noise)
        if not isinstance(update, Seeded) or update.coefs.numel() != party.count:
            raise InputError("the rule's estimate is not one scalar per direction, so it cannot be sent as scalars")
        if update.statistics:
            names = ", ".join(list(update.statistics)[:3])
            raise InputError(
                f"the model keeps running statistics of its data ({names}), which scalars do not carry: take layer or "
                "group norm in place of batch norm"
            )
        if STEP_SIZE in update.losses:  # of a rule that does not say so before
            raise InputError(f"{party.rule.name} {NO_STEP_SIZE}")
        loss = float(list(update.losses.values())[-1])
        if not (math.isfinite(loss) and bool(update.coefs.isfinite().all())):
            raise NonFiniteError(
                f"step {self.steps}: the loss of this client is {loss:g}, or a derivative of it is not "
                "finite: try a smaller learning rate"
            )
        return Seeded(within(update.coefs, self._clip), update.probes, losses=update.losses)

    def _kept(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, record = self.state()
        return {name: value.clone() for name, value in tensors.items()}, record

    def _put_back(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any], steps: int) -> None:
        self.restore(tensors, {**record, "steps": steps})
