"""Evolution strategies: try antithetic pairs of weights, and move along the noise by how the loss differed.

    g = 1/K sum_i (F(w + eps nu_i) - F(w - eps nu_i)) / (2 eps) nu_i

F is the loss of a member of the population, its z-score or its centred rank; it may be any function of the outputs.
With the loss itself the expectation is the gradient up to a bias of order eps^2; z-scores and ranks change its length,
and ranks its direction.
With rank-1 noise, nu = a b^T in every layer, each example has members of its own: W x +- eps a (b . x), in one pass.
A control variate takes off what F should differ by, as layers responded for the other half of the batch, and adds it
back as it is expected: the same mean for ever smaller eps, with little of the noise where the responses fit
(`gradients/control_variate`).
Sources: Salimans et al., "Evolution strategies as a scalable alternative to reinforcement learning" (2017), section 2;
Sarkar et al., "Evolution strategies at the hyperscale" (2025), for rank-1 noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sidestep.checks import check_multiple, check_positive, check_range
from sidestep.data.share import WHOLE, Share
from sidestep.errors import InputError
from sidestep.gradients.any_module import Losses, check_trainable, losses_at_pairs
from sidestep.gradients.control_variate import Response, expected_gradients, expected_of_pairs, responses, watched
from sidestep.gradients.directions import Directions, directions_along
from sidestep.gradients.layer_passes import spread_of
from sidestep.gradients.learned_feedback import errors_of
from sidestep.gradients.pairs import paired_losses
from sidestep.gradients.rank_one import Members, check_rank_one, check_repeats, rank_one_logits, weighted_rank_one
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import full_precision
from sidestep.nets.resolution import check_noise_size
from sidestep.nets.stages.staged import StagedNet, check_layers
from sidestep.nets.trained import check_unshared, set_training, trained
from sidestep.probes import DenseProbes, Distribution, PerParameter
from sidestep.rules.protocol import Batch, Dense, Division, ImagePath, Noise, Split, Takes, Task, Update
from sidestep.rules.shared.any_module import LOSS, check_unused, dense_probes, of_share
from sidestep.rules.shared.forward_only import (
    Fitness,
    ForwardOnlyRule,
    fitness_of,
    losses_under,
    make_net,
)
from sidestep.rules.takes import set_takes
from sidestep.update import Seeded

__all__ = ["Evolution"]

_ERROR_EPS = 0.01  # of the spread of the outputs: steps by which the loss alone is tried


@dataclass(frozen=True)
class Evolution(ForwardOnlyRule):
    """Train by antithetic pairs of weight noise, from forward passes alone; the loss need not be differentiable.

    It needs more steps than rules with a gradient: the default 20 epochs of the digits are 200 of them, and end between
    86 and 91 %; 60 epochs at 94.
    """

    hidden: tuple[int, ...] = (128, 64)
    """Widths of the MLP's hidden layers."""
    norm: bool = True
    """Layer norm without parameters after every hidden layer: one size of noise then suits all layers."""
    noise_kind: Literal["rank-1", "full-rank", "sparse"] = "rank-1"
    """Noise of a weight matrix: a b^T, an independent value for every weight, or for a sixteenth of the weights."""
    columns: Literal["drawn", "input"] = "drawn"
    """What b is in rank-1 noise: drawn like a, or the example's own input divided by its length, the only direction in
    which its loss changes (node perturbation; per = example)."""
    distribution: PerParameter = "rademacher"
    """Fair signs, or normal values, which cost more to draw."""
    per: Literal["example", "group"] = "example"
    """Who has pairs of its own: every example (rank-1), or every group of examples."""
    group: int = 8
    """Examples in a group, with per = group; the batch must be a multiple of it."""
    control: Literal["none", "responses"] = "none"
    """Control variate: none, or what pairs should differ by as layers responded for the other half of the batch (rank-1
    noise for every example, the rule's own MLP without a norm)."""
    population: int = 16
    """Members of the population of each example or group: an even number, two to a pair."""
    eps: float = 0.01
    """Size of the noise; refused where half of the weights, or more, are too coarse to follow it."""
    fitness: Fitness = "raw"
    """What counts of a member's loss: the loss, its z-score, or its centred rank among all members of the step."""
    objective: str = "cross-entropy"
    """What is made small: cross-entropy, or accuracy (the share of errors), or one that was added in Python."""
    optimizer_kind: str = "adamw"
    """Optimiser: adamw, sgd (with momentum 0.9), plain-sgd, adam, rmsprop, adagrad, adadelta, adafactor, adamax, nadam,
    radam or asgd, as torch.optim has them; or one that was added in Python."""
    learning_rate: float = 3e-3
    """Step size."""
    weight_decay: float = 0.0
    """Weight decay of the optimiser."""

    name: ClassVar[str] = "evolution"
    summary: ClassVar[str] = "Evolution strategies: antithetic weight noise, rank-1 or full-rank; or node perturbation"
    takes: ClassVar[Takes] = Takes("any", targets=("classes", "labels", "values", "own"), log="own loop",
                                   log_with="noise_kind = full-rank or sparse")  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, 1 << 20, group=self.group)
        check_range(2, 1 << 20, population=self.population)
        check_positive(100, eps=self.eps)
        if self.population % 2:
            raise InputError(f"population must be even, since members come in antithetic pairs, got {self.population}")
        if self.per == "example" and self.noise_kind != "rank-1":
            raise InputError(
                f"{self.noise_kind} noise for every example is as large as all weights times the batch; use "
                "per = group, or noise_kind = rank-1"
            )
        if self.columns == "input" and (self.per, self.noise_kind) != ("example", "rank-1"):
            raise InputError("columns = input needs an input for every direction: noise_kind = rank-1, per = example")
        if self.control == "responses" and (self.per, self.norm, self.fitness) != ("example", False, "raw"):
            raise InputError(
                "control = responses needs noise for every example, layers with functions of single values between "
                "them, and losses as they are: per = example, norm = no (--no-norm) and fitness = raw, got "
                f"{self.per}, {'yes' if self.norm else 'no'} and {self.fitness}"
            )
        if self.noise_kind != "rank-1":
            set_takes(self, log="yes")  # one number per pair of members, in place of gradients

    @property
    def batch_multiple(self) -> tuple[str, int]:
        """What the size of a batch must be a multiple of: the size of a group."""
        return "group", 1 if self.per == "example" else self.group

    @property
    def divides(self) -> Mapping[Division, int]:
        """The batch; nothing where a member's loss counts by its place among those of all members."""
        return {"batch": 0} if self.fitness == "raw" else {}

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> StagedNet:
        """Make the MLP; a module of the user's takes the place of its hidden layers."""
        if self.control == "responses" and module is not None:
            raise InputError("control = responses is for the MLP that the rule builds; leave the module or control out")
        net = make_net(task, self.hidden, self.norm, noise, module)
        check_layers(net, pairs=True)
        check_noise_size(net, self.eps, rows=self.noise_kind == "rank-1")
        if self.noise_kind == "rank-1":
            check_rank_one(net, self.columns == "input")
            check_unshared(net, again=self.columns == "drawn", instead="noise_kind = full-rank")
            if module is not None:
                check_repeats(net, task.shape)
        return net

    def estimate(self, net: StagedNet, batch: Batch, noise: Noise) -> Update:
        """Return the estimate as gradients; in float32, since rounding the difference of two losses would drown it."""
        set_training(net)
        check_multiple(len(batch.targets), *self.batch_multiple)
        size = self.batch_multiple[1]
        members = Members(self.population // 2, len(batch.targets) // size, size)
        drawing = noise.stream("module").torch_seeded(batch.inputs.device)  # modules of the user's that draw repeat
        with torch.no_grad(), kept_statistics(net) as changed, drawing:
            if self.noise_kind == "rank-1":
                directions = Directions(noise.stream("directions"), self.distribution)
                gradients, losses = self._rank_one(net, batch, members, directions)
                return Dense(gradients, changed(), {f"net: {self.objective}": losses.mean()})
            probes = dense_probes(net, noise, members.count, self._drawn)
            losses = self._by_group(net, batch, members, directions_along(probes))
            return Seeded(self._coefs(losses), probes, changed(), {f"net: {self.objective}": losses.mean()})

    def check_any(self, net: nn.Module) -> None:
        """Raise InputError for a module that cannot be trained so; every member takes the whole batch."""
        if self.per != "group":
            raise InputError(
                "on a whole model every member of the population takes the whole batch, which needs per = group, got "
                f"{self.per}: Evolution(noise_kind='{self.noise_kind}', per='group')"
            )
        if self.noise_kind != "full-rank" and self.distribution != "rademacher":
            raise InputError(
                f"{self.noise_kind} noise of a whole model is made of fair signs, got distribution = "
                f"{self.distribution}; take rademacher, or noise_kind = full-rank"
            )
        check_unused(self, "objective", "group")
        check_trainable(net)
        check_noise_size(net, self.eps, rows=False)

    def estimate_any(self, net: nn.Module, losses: Losses, noise: Noise, share: Share = WHOLE) -> Update:
        """Return one number per pair of members, from the losses of any module, member by member."""
        probes = self.probes(net, noise)
        directions, masks = directions_along(probes), noise.stream("module")
        both, statistics = losses_at_pairs(net, losses, directions, probes.count, self.eps, masks)
        coefs, _ = of_share(self._coefs(both), range(probes.count), probes.count, share)
        return Seeded(coefs.float(), probes, statistics, {LOSS: both.mean()})

    def probes(self, net: nn.Module, noise: Noise) -> DenseProbes:
        """Return the directions of a step in which every member takes the whole batch."""
        return dense_probes(net, noise, self.population // 2, self._drawn)

    def trials(self) -> list[tuple[int, float]]:
        """Return the number of the direction and the size of the noise, of either sign, of every member."""
        return [(index, step) for index in range(self.population // 2) for step in (self.eps, -self.eps)]

    def from_trials(self, net: nn.Module, losses: Tensor, noise: Noise) -> Update:
        """Return one number per pair of members, from the losses of the `trials`, (population,)."""
        both = losses.view(-1, 2).T
        probes = self.probes(net, noise)
        return Seeded(self._coefs(both).float(), probes, losses={LOSS: both.mean()})

    @property
    def _drawn(self) -> Distribution:
        """What the noise on all weights is drawn from, where a whole batch or group shares it."""
        kinds: dict[str, Distribution] = {"rank-1": "rank-one", "sparse": "sparse", "full-rank": self.distribution}
        return kinds[self.noise_kind]

    def _rank_one(
        self, net: StagedNet, batch: Batch, members: Members, directions: Directions
    ) -> tuple[dict[str, Tensor], Tensor]:
        with full_precision(batch.inputs), watched(net, self.control == "responses") as seen:
            logits, factors = rank_one_logits(
                net, batch.inputs, members, directions, self.eps, self.columns == "input", multiply_late=net.chain
            )
            labels = batch.targets.unflatten(0, (members.groups, members.size))
            labels = labels.expand(2, members.pairs, *labels.shape).flatten(0, 3)
            losses = losses_under(self.objective, logits.flatten(0, 2), labels, batch.objective).view(
                2, members.count, members.size
            )
            losses = losses.mean(dim=2)
            coefs = self._coefs(losses)
            expected: dict[str, Tensor] = {}
            if self.control == "responses":
                told = responses(seen, factors, members, self.eps)
                coefs, expected = self._controlled(told, logits, batch, members, coefs)
        found = weighted_rank_one(factors, coefs)  # under autocast, if there is one: nothing is subtracted here
        return {name: found[name].view(p.shape) + expected.get(name, 0) for name, p in trained(net).items()}, losses

    def _controlled(
        self, found: dict[str, Response], logits: Tensor, batch: Batch, members: Members, coefs: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is left of the coefficients, (K,), and the mean of what was taken off, by parameter name."""
        labels, middle = batch.targets.repeat(members.pairs), logits.mean(dim=0).flatten(0, 1).double()

        def each(moved: Tensor) -> Tensor:
            return losses_under(self.objective, moved, labels, batch.objective)

        errors = errors_of(each, middle, _ERROR_EPS * float(spread_of(middle))).to(coefs.dtype)
        guesses = expected_gradients(found, errors, members)
        gradients = {}
        for name, guess in guesses.items():
            gradients[f"{name}.weight"] = guess.T @ found[name].inputs / members.count
            gradients[f"{name}.bias"] = guess.mean(dim=0)
        return coefs - expected_of_pairs(found, guesses) / members.count, gradients

    def _by_group(self, net: StagedNet, batch: Batch, members: Members, directions: Directions) -> Tensor:
        """Return the losses of all members, (2, pairs x groups), each on its own group, of shifted weights."""
        groups = (members.groups, members.size)
        images, labels = batch.inputs.unflatten(0, groups), batch.targets.unflatten(0, groups)

        def loss(index: int, logits: Tensor) -> Tensor:
            return losses_under(self.objective, logits, labels[index % members.groups], batch.objective).mean()

        with full_precision(batch.inputs):
            each = range(members.count)
            return paired_losses(net, lambda i: images[i % members.groups], directions, each, self.eps, loss)

    def _coefs(self, losses: Tensor) -> Tensor:
        """`(F+ - F-) / (2 eps K)` for every pair, (K,), from the losses (2, K)."""
        plus, minus = fitness_of(losses, self.fitness)
        return (plus - minus) / (2 * self.eps * len(plus))
