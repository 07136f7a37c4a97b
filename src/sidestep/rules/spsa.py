"""SPSA: one antithetic pair of noise on all weights at once, made from the seed and never stored.

    g = (L(w + eps nu) - L(w - eps nu)) / (2 eps) nu                nu: fair signs or normal values, a mean over `pairs`

Its expectation is the gradient up to a bias of order eps^2. Sources: Spall, "Multivariate stochastic approximation
using a simultaneous perturbation gradient approximation" (1992), equation 2.2; Malladi et al., "Fine-tuning language
models with just forward passes" (2023), algorithm 1 (MeZO). MeZO shifts the weights in place and back, which leaves
rounding errors in them; here shifted weights exist beside the net's own, one layer at a time. As there, a step is told
by the seed and one number per pair, and with the learning rate that is what the step log holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sidestep.checks import check_positive, check_range
from sidestep.data.objective import CLASSES
from sidestep.data.share import WHOLE, Share
from sidestep.errors import InputError
from sidestep.gradients.any_module import Losses, ShiftedPasses, check_trainable
from sidestep.gradients.directions import OneDirection, directions_along
from sidestep.gradients.pairs import paired_losses
from sidestep.gradients.step_search import agreed_share, rate_along
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import full_precision
from sidestep.nets.quantized import quantized_weights
from sidestep.nets.resolution import check_noise_size
from sidestep.nets.stages.staged import StagedNet, check_layers
from sidestep.nets.trained import set_training
from sidestep.probes import DenseProbes, Distribution
from sidestep.rules.protocol import Batch, Division, ImagePath, Noise, Split, Takes, Task, Update
from sidestep.rules.shared.any_module import (
    CURVATURE,
    LOSS,
    SLOPE,
    STEP_SIZE,
    check_unused,
    dense_probes,
    of_share,
)
from sidestep.rules.shared.error_feedback import WINDOW, check_rounding
from sidestep.rules.shared.forward_only import ForwardOnlyRule, losses_under, make_net
from sidestep.update import Seeded

__all__ = ["SPSA"]


@dataclass(frozen=True)
class SPSA(ForwardOnlyRule):
    """Train by simultaneous perturbation: forward passes alone, whatever the number of weights."""

    hidden: tuple[int, ...] = (64,)
    """Widths of the MLP's hidden layers."""
    norm: bool = True
    """Layer norm without parameters after every hidden layer."""
    pairs: int = 32
    """Directions per step; with sides = both each is an antithetic pair."""
    sides: Literal["one", "both"] = "one"
    """Try each direction on one side, and compare with the loss of the weights as they are (half of the passes), or on
    both sides, whose bias is smaller."""
    distribution: Distribution = "signs"
    """Noise: signs (fair, one draw for all weights), rademacher (fair signs, a draw for each parameter), gaussian
    (normal values, MeZO's), sparse (signs on a sixteenth of the weights), or rank-one (outer products of signs)."""
    eps: float = 1e-3
    """Size of the noise; refused where half of the weights, or more, are too coarse to follow it."""
    objective: str = "cross-entropy"
    """What is made small: cross-entropy, or accuracy (the share of errors), or one that was added in Python."""
    optimizer_kind: str = "plain-sgd"
    """Optimiser: adamw, sgd (with momentum 0.9), plain-sgd, adam, rmsprop, adagrad, adadelta, adafactor, adamax, nadam,
    radam or asgd, as torch.optim has them; or one that was added in Python, whose runs leave no step log."""
    learning_rate: float | None = None
    """Step size; none for one that every step finds along its estimate, by three or more passes (with plain-sgd)."""
    spread: bool = False
    """Divide the learning rate by the standard deviation of a step's losses (FZOO)."""
    weight_decay: float = 0.0
    """Weight decay of the optimiser."""
    window: int = 16
    """Steps whose errors of rounding are fed back, in a net that `sidestep.nets.quantize` made: they are made again
    from the seeds of so many steps. 1 for stochastic rounding of every step."""

    name: ClassVar[str] = "spsa"
    summary: ClassVar[str] = (
        "Simultaneous perturbation (SPSA, MeZO): noise on all weights at once; the step size finds itself"
    )
    takes: ClassVar[Takes] = Takes("any", targets=("classes", "labels", "values", "own"), log="yes", rounded=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, 1 << 20, pairs=self.pairs, window=self.window)
        check_positive(100, eps=self.eps)
        if self.learning_rate is None and self.optimizer_kind != "plain-sgd":
            raise InputError(
                f"a step size is found along the estimate itself, and {self.optimizer_kind} steps along another "
                "direction; give a learning_rate, or take optimizer_kind = plain-sgd"
            )
        if self.spread and (self.learning_rate is None or self.pairs == 1):
            raise InputError(
                "spread divides a learning rate by the standard deviation of the losses along several directions: give "
                f"a learning_rate and pairs of 2 or more, got {self.learning_rate} and {self.pairs}"
            )

    @property
    def first_rate(self) -> float:
        """What the optimiser starts with: the learning rate, or a factor 1 to the step sizes that are found."""
        return 1.0 if self.learning_rate is None else self.learning_rate

    @property
    def finds_step_size(self) -> bool:
        """Whether a step's size comes of its losses, and not of the learning rate alone."""
        return self.spread or self.learning_rate is None

    @property
    def divides(self) -> Mapping[Division, int]:
        """The pairs, or the batch; the batch alone where a step size is found along the sum of all pairs, or by them.

        Each part then finds one along its own estimate, and the step's is their mean.
        """
        return {"batch": 0} if self.finds_step_size else {"probes": self.pairs, "batch": 0}

    @property
    def common_noise(self) -> bool:
        """The pairs are the same in every part of a step."""
        return True

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> StagedNet:
        """Make the MLP; a module of the user's takes the place of its hidden layers."""
        net = make_net(task, self.hidden, self.norm, noise, module)
        check_layers(net, pairs=True)
        check_rounding(net, self.distribution, self.optimizer_kind, self.weight_decay)
        check_noise_size(net, self.eps, rows=False)
        return net

    def optimizer(self, net: StagedNet) -> torch.optim.Optimizer:
        """Make the optimiser."""
        return self._with_window(net, super().optimizer(net))

    def optimizer_any(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make the optimiser for any module."""
        return self._with_window(net, super().optimizer_any(net))

    def _with_window(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Say in the optimiser's groups how whole numbers step, if the net has any."""
        if quantized_weights(net):
            for group in optimizer.param_groups:
                group[WINDOW] = self.window
        return optimizer

    def estimate(self, net: StagedNet, batch: Batch, noise: Noise) -> Update:
        """Return one number per direction; in float32, since rounding the difference of losses would drown it."""
        set_training(net)

        def losses() -> Tensor:
            return losses_under(self.objective, net(batch.inputs), batch.targets, batch.objective)

        if self.sides == "one" or self.finds_step_size:
            plain = self.objective == "cross-entropy" and batch.objective is CLASSES
            return self._along(net, losses, noise, batch.share, f"net: {self.objective}", plain)
        probes = self.probes(net, noise)
        directions = directions_along(probes)
        share, taken = batch.share, batch.share.probes(self.pairs)

        def loss(_: int, logits: Tensor) -> Tensor:
            return losses_under(self.objective, logits, batch.targets, batch.objective).mean()

        drawing = noise.stream("module").torch_seeded(batch.inputs.device)  # modules of the user's that draw repeat
        with torch.no_grad(), kept_statistics(net) as changed, full_precision(batch.inputs), drawing:
            # both sides of one layer after another, which draws the noise of one layer at a time
            both = paired_losses(net, lambda _: batch.inputs, directions, taken, self.eps, loss)  # (2, pairs)
            coefs = (both[0] - both[1]) / (2 * self.eps * self.pairs)
            coefs, chosen = of_share(coefs, taken, self.pairs, share)
            return Seeded(coefs, probes, changed(), {f"net: {self.objective}": both.mean()}, taken=chosen)

    def check_any(self, net: nn.Module) -> None:
        """Raise InputError for a module that cannot be trained so, such as one whose weights do not feel the noise."""
        check_unused(self, "objective")
        check_trainable(net, rounded=True)
        check_rounding(net, self.distribution, self.optimizer_kind, self.weight_decay)
        check_noise_size(net, self.eps, rows=False)

    def estimate_any(self, net: nn.Module, losses: Losses, noise: Noise, share: Share = WHOLE) -> Update:
        """Return one number per direction, from the losses of any module whose weights are shifted as a whole."""
        return self._along(net, losses, noise, share, LOSS)

    def probes(self, net: nn.Module, noise: Noise) -> DenseProbes:
        """Return the directions of a step."""
        return dense_probes(net, noise, self.pairs, self.distribution)

    def trials(self) -> list[tuple[int, float]]:
        """Return the number of the direction and the size of the noise, of either sign, of every net that is tried."""
        if self.learning_rate is None:
            raise InputError("a step size is not found from scores that are told; give a learning_rate")
        if self.sides == "one":
            return [(0, 0.0), *((index, self.eps) for index in range(self.pairs))]
        return [(index, step) for index in range(self.pairs) for step in (self.eps, -self.eps)]

    def from_trials(self, net: nn.Module, losses: Tensor, noise: Noise) -> Update:
        """Return one number per direction, from the losses of the `trials`."""
        one = self.sides == "one"
        plus, minus = (losses[1:], losses[:1].expand(self.pairs)) if one else losses.view(-1, 2).T
        terms = {LOSS: losses[0] if one else losses.mean()}
        if self.spread:
            terms = {STEP_SIZE: self._by_spread(plus, minus), **terms}
        coefs = (plus - minus) / ((1 if one else 2) * self.eps * self.pairs)
        return Seeded(coefs.float(), self.probes(net, noise), losses=terms)

    def _by_spread(self, plus: Tensor, minus: Tensor) -> Tensor:
        """`eps / std_i(L_i)`, FZOO's: coefficients are differences over eps."""
        tried = plus if self.sides == "one" else torch.cat([plus, minus])
        return self.eps / tried.std().clamp_min(torch.finfo(tried.dtype).tiny)

    def _along(  # long: `plain`, too, says what the losses may do
        self, net: nn.Module, losses: Losses, noise: Noise, share: Share, name: str, plain: bool = False
    ) -> Seeded:
        """Return the differences of the loss along the directions that a part of the step takes, and a step size."""
        probes, taken = self.probes(net, noise), share.probes(self.pairs)
        directions = directions_along(probes)
        run = ShiftedPasses(net, losses, noise.stream("module"), plain)
        here = run() if self.sides == "one" or self.learning_rate is None else None
        sides, each_here, differences = [], run.each, []
        for index in taken:
            direction = OneDirection(directions, index, run.keep)
            masks = index if here is None else 0  # all that is compared meets the same draws
            plus, each = run(direction, self.eps, masks), run.each
            sides.append((plus, here if self.sides == "one" else run(direction, -self.eps, masks)))
            other = each_here if self.sides == "one" else run.each
            if self.learning_rate is None:  # what a step size that finds itself asks of the examples
                differences.append(None if each is None or other is None else each - other)
        plus, minus = (torch.stack(side) for side in zip(*sides, strict=True))  # (directions,) each
        coefs = (plus - minus) / ((1 if self.sides == "one" else 2) * self.eps * len(taken))
        terms = {name: torch.stack([plus, minus]).mean() if here is None else here}
        if self.learning_rate is None:
            found = rate_along(run, directions, coefs, terms[name], self.eps, taken.start)
            numbers = (found.most, found.slope * agreed_share(differences), found.curvature)
            terms = {**dict(zip((STEP_SIZE, SLOPE, CURVATURE), plus.new_tensor(numbers), strict=True)), **terms}
        elif self.spread:
            terms = {STEP_SIZE: self._by_spread(plus, minus), **terms}
        coefs, chosen = of_share(coefs * (len(taken) / self.pairs), taken, self.pairs, share)
        return Seeded(coefs.float(), probes, run.statistics or {}, terms, taken=chosen)

    def apply(self, net: StagedNet, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take one step of the optimiser along the directions, which are made again, at the update's learning rate."""
        if not isinstance(update, Seeded):
            raise InputError(f"this rule applies one number per pair (Seeded), got {type(update).__name__}")
        super().apply(net, update, optimizer)
