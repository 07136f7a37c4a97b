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
from typing import ClassVar

import torch
from torch import nn

from sidestep.checks import check_positive, check_range
from sidestep.data import Split
from sidestep.data.share import Division
from sidestep.errors import InputError
from sidestep.gradients.any_module import Losses, check_trainable, losses_at_pairs
from sidestep.gradients.directions import Directions, paired_logits
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import full_precision
from sidestep.nets.resolution import check_noise_size
from sidestep.nets.stages.staged import StagedNet, check_layers
from sidestep.nets.trained import trained
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.probes import DenseProbes, Distribution
from sidestep.rules.protocol import Batch, Task
from sidestep.rules.shared.any_module import apply_any, check_unused, decide_any, of_share, seeded
from sidestep.rules.shared.forward_only import LOGGED, ForwardOnlyRule, check_named, losses_under, make_net
from sidestep.rules.takes import Takes
from sidestep.update import Seeded, Update

__all__ = ["SPSA"]


@dataclass(frozen=True)
class SPSA(ForwardOnlyRule):
    """Train by simultaneous perturbation: two forward passes a pair, whatever the number of weights."""

    hidden: tuple[int, ...] = (64,)
    """Widths of the MLP's hidden layers."""
    norm: bool = True
    """Layer norm without parameters after every hidden layer."""
    pairs: int = 1
    """Antithetic pairs per step."""
    distribution: Distribution = "rademacher"
    """Fair signs, or normal values (MeZO's)."""
    eps: float = 1e-3
    """Size of the noise; refused where half of the weights, or more, are too coarse to follow it."""
    objective: str = "cross-entropy"
    """What is made small: cross-entropy, or accuracy (the share of errors), or one that was added in Python."""
    optimizer_kind: str = "sgd"
    """Optimiser: adamw, sgd (with momentum 0.9), plain-sgd, adam, rmsprop, adagrad, adadelta, adafactor, adamax, nadam,
    radam or asgd, as torch.optim has them; or one that was added in Python, whose runs leave no step log."""
    learning_rate: float = 1e-3
    """Step size."""
    weight_decay: float = 0.0
    """Weight decay of the optimiser."""

    name: ClassVar[str] = "spsa"
    summary: ClassVar[str] = (
        "Simultaneous perturbation (SPSA, MeZO): antithetic pairs on all weights at once, one a step"
    )
    takes: ClassVar[Takes] = Takes("any", targets=("classes", "labels", "values", "own"), log="yes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, 1 << 20, pairs=self.pairs)
        check_positive(100, eps=self.eps)
        check_named(self.objective, self.optimizer_kind)

    @property
    def divides(self) -> Mapping[Division, int]:
        """The pairs, or the batch."""
        return {"probes": self.pairs, "batch": 0}

    @property
    def common_noise(self) -> bool:
        """The pairs are the same in every part of a step."""
        return True

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> StagedNet:
        """Make the MLP; a module of the user's takes the place of its hidden layers."""
        net = make_net(task, self.hidden, self.norm, noise, module)
        check_layers(net, pairs=True)
        check_noise_size(net, self.eps, rows=False)
        return net

    def estimate(self, net: StagedNet, batch: Batch, noise: Noise) -> Update:
        """Return one number per pair; in float32, since rounding the difference of two losses would drown it."""
        net.train()
        directions = Directions(noise.stream("directions"), self.distribution)
        losses, share, taken = [], batch.share, batch.share.probes(self.pairs)
        drawing = noise.stream("module").torch_seeded(batch.inputs.device)  # modules of the user's that draw repeat
        with torch.no_grad(), kept_statistics(net) as changed, full_precision(batch.inputs), drawing:
            for index in taken:
                sides = paired_logits(net, batch.inputs, directions, index, self.eps)
                losses.append(
                    torch.stack(
                        [losses_under(self.objective, side, batch.targets, batch.objective).mean() for side in sides]
                    )
                )
            both = torch.stack(losses, dim=1)  # (2, pairs)
            coefs = (both[0] - both[1]) / (2 * self.eps * self.pairs)
            coefs, chosen = of_share(coefs, taken, self.pairs, share)
            shapes = tuple((name, tuple(parameter.shape)) for name, parameter in trained(net).items())
            probes = DenseProbes(noise.stream("directions"), shapes, self.pairs, self.distribution)
            return Seeded(coefs, probes, changed(), {f"net: {self.objective}": both.mean()}, taken=chosen)

    def check_any(self, net: nn.Module) -> None:
        """Raise InputError for a module that cannot be trained so, such as one whose weights do not feel the noise."""
        check_unused(self, "objective")
        check_trainable(net)
        check_noise_size(net, self.eps, rows=False)

    def estimate_any(self, net: nn.Module, losses: Losses, noise: Noise) -> Update:
        """Return one number per pair, from the losses of any module whose weights are shifted as a whole."""
        directions = Directions(noise.stream("directions"), self.distribution)
        both, statistics = losses_at_pairs(net, losses, directions, self.pairs, self.eps, noise.stream("module"))
        coefs = (both[0] - both[1]) / (2 * self.eps * self.pairs)
        return seeded(net, coefs, noise, self.distribution, statistics, both.mean())

    def decide(self, net: StagedNet, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Return the update with the learning rate that it is applied with."""
        return decide_any(update, optimizer) if self.optimizer_kind in LOGGED else update

    def apply(self, net: StagedNet, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Take one step of the optimiser along the directions, which are made again, at the update's learning rate."""
        if not isinstance(update, Seeded):
            raise InputError(f"this rule applies one number per pair (Seeded), got {type(update).__name__}")
        apply_any(net, update, optimizer)
