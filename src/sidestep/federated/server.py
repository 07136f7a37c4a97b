"""The server of federated training: it has no data, invites clients, and adds up the scalars that they send."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from sidestep.errors import InputError
from sidestep.federated.messages import MOST_STEPS, Answer, Invitation, rounded_sums, within
from sidestep.federated.party import Party, check_clip
from sidestep.rules.protocol import Rule
from sidestep.training.attached_log import AttachedLog, fixed_options
from sidestep.update import Seeded

__all__ = ["Round", "Server"]

Name = TypeVar("Name", int, str)


@dataclass(frozen=True)
class Round:
    """What became of one round.

    index: its number.
    loss: mean of the clients' losses, by their weights; None if too few answered.
    taken: the clients whose scalars are in the sum.
    refused: the others that answered, and why they were left out.
    missing: those that were invited and did not answer.
    down_bytes, up_bytes: of all messages of the round, with their headers.
    """

    index: int
    loss: float | None
    taken: tuple[Any, ...]
    refused: dict[Any, str]
    missing: tuple[Any, ...]
    down_bytes: int
    up_bytes: int


class Server:
    """Keeps the sums of all rounds, which are the model: weights before the first step, a seed, and these scalars.

        c_i = sum_k w_k clip(c_{k,i})         w_k: the clients' weights, whose sum is 1

    Args:
        model: with the weights that every party starts from; it is trained in place, so that it can be evaluated.
        rule: the clients'.
        seed: the clients'.
        local_steps: how many steps clients estimate in a round, each where their own steps before have led.
        weights: what a client counts: `examples`, as many as it says that it has, or `equal`.
        clip: the largest derivative along a direction, of either sign, that counts of one client.
        fewest: with fewer answers a round changes nothing, and the next one asks the same.
        log: file for the step log of the sums; `sidestep.replay(log, model)` makes the trained weights of it.

    Raises:
        InputError: for a rule, a model or a number that cannot be used so.
    """

    def __init__(  # long: what the rounds are like
        self,
        model: nn.Module,
        rule: Rule,
        seed: int = 0,
        *,
        local_steps: int = 1,
        weights: Literal["examples", "equal"] = "examples",
        clip: float | None = None,
        fewest: int = 1,
        log: str | Path | None = None,
    ) -> None:
        check_clip(clip)
        for name, value, most in (("local_steps", local_steps, MOST_STEPS), ("fewest", fewest, 1 << 31)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"{name} must be a whole number from 1 to {most:,}, got {value!r}")
        if weights not in ("examples", "equal"):
            raise InputError(f"weights must be examples or equal, got {weights!r}")
        self._party = Party(model, rule, seed, None)
        self._local_steps, self._weights, self._clip, self._fewest = local_steps, weights, clip, fewest
        self._updates: list[Seeded] = []
        self._known: dict[Any, int] = {}  # client -> steps that it has, as it has said itself
        self._invited: dict[Any, int] = {}  # client -> bytes of this round's invitation
        self.rounds = 0
        fixed = fixed_options(self._party.optimizer)
        self._log = AttachedLog.begin(Path(log), self._party.header, fixed, resumed="") if log is not None else None

    @property
    def model(self) -> nn.Module:
        """The model after `steps` steps."""
        return self._party.model

    @property
    def steps(self) -> int:
        """How many steps have been taken; `local_steps` a round."""
        return self._party.steps

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser, whose learning rate may be set between rounds, by a scheduler of torch's too."""
        return self._party.optimizer

    def sample(self, clients: Sequence[Name], count: int) -> list[Name]:
        """Return `count` of the clients, drawn for this round from the seed."""
        if not 1 <= count <= len(clients):
            raise InputError(f"a round asks from 1 to {len(clients)} of {len(clients)} clients, got {count}")
        order = self._party.noise.stream("clients").at(self.rounds).permutation(len(clients)).tolist()
        return [sorted(clients)[place] for place in order[:count]]

    def invitation(self, client: Name, estimate: bool = True) -> bytes:
        """Return what a client is sent: the sums of all steps that it has not said to have, and what to estimate."""
        first = self._known.get(client, 0)
        steps = self._local_steps if estimate else 0
        rate = float(self.optimizer.param_groups[0]["lr"])
        found = self._party.messages.invitation(Invitation(first, tuple(self._updates[first:]), steps, rate))
        self._invited[client] = len(found)
        return found

    def forget(self, client: Name) -> None:
        """Send a client all steps at its next invitation: it has lost its state."""
        self._known.pop(client, None)

    def close_round(self, answers: Mapping[Name, bytes]) -> Round:
        """Add up the scalars of the clients that have answered, and take the steps; stragglers are left out.

        An answer that is damaged, of another round or of another federation is refused, and the client named; the
        others count.
        """
        good: dict[Any, Answer] = {}
        refused: dict[Any, str] = {}
        for name in sorted(answers):
            try:
                good[name] = self._read(name, answers[name])
            except InputError as error:
                refused[name] = str(error)
        missing = tuple(name for name in sorted(self._invited) if name not in answers)
        traffic = sum(self._invited.values()), sum(map(len, answers.values()))
        self._invited = {}
        self.rounds += 1
        loss = self._step(list(good.values())) if len(good) >= self._fewest else None
        taken = tuple(good) if loss is not None else ()
        return Round(self.rounds - 1, loss, taken, refused, missing, *traffic)

    def close(self) -> None:
        """Write what is left of the log, and close it."""
        if self._log:
            self._log.close()

    def _read(self, name: Any, data: bytes) -> Answer:
        found = self._party.messages.read_answer(data, name)
        wanted = (self._local_steps, self._party.count)
        if found.begins != self.steps or tuple(found.coefs.shape) != wanted:
            raise InputError(
                f"client {name} answers for step {found.begins} with {tuple(found.coefs.shape)} scalars, and this "
                f"round is at step {self.steps} and needs {wanted}: it is late, or was started otherwise"
            )
        self._known[name] = self.steps
        return replace(found, coefs=within(found.coefs, self._clip))

    def _step(self, answers: Sequence[Answer]) -> float:
        counts = [each.examples if self._weights == "examples" else 1 for each in answers]
        shares = [count / sum(counts) for count in counts]
        sums = rounded_sums([each.coefs for each in answers], shares)  # (steps, probes)
        for coefs in sums:
            self._party.take(self._party.along(coefs), self._record)
        return sum(share * each.loss for share, each in zip(shares, answers, strict=True))

    def _record(self, update: Any) -> None:
        if self._log:
            self._log.record(self.steps, update, self.optimizer)
        kept = replace(update, coefs=update.coefs.detach().cpu().clone(), losses={})
        self._updates.append(kept)
