"""Forward gradients: how the loss changes along random directions, by forward-mode differentiation.

    weights:     g = (grad L . v) v                           v: a direction of all weights
    activities:  g_W = 1/B sum_b alpha_b u_b x_b^T            u_b: on every layer's outputs; alpha_b: d loss_b along u_b
    local:       the same, with losses of its own for every layer, or group of a layer's units: u_b is as short as they

All are unbiased, `local` for its own losses and not for the net's; the mean over K tangents has 1/K of the variance.
Sources: Baydin et al., "Gradients without backpropagation" (2022), algorithm 1; Ren et al., "Scaling forward gradient
with local losses" (2022), sections 3 and 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import nn

from sidestep.checks import check_range
from sidestep.data.share import WHOLE, Share
from sidestep.errors import InputError
from sidestep.gradients.activities import check_activities
from sidestep.gradients.along import gradients_along
from sidestep.gradients.any_module import Losses, check_trainable, derivatives_along
from sidestep.gradients.directions import Directions
from sidestep.nets.stages.staged import StagedNet
from sidestep.probes import DenseProbes, PerParameter
from sidestep.rules.protocol import Batch, Dense, Division, ImagePath, Noise, Split, Takes, Task, Update
from sidestep.rules.shared.any_module import dense_probes, of_share, one_unit, seeded
from sidestep.rules.shared.dense import local_units
from sidestep.rules.shared.forward_only import ForwardOnlyRule, make_net

__all__ = ["ForwardGradient"]


@dataclass(frozen=True)
class ForwardGradient(ForwardOnlyRule):
    """Train by directional derivatives along random directions of weights or activities."""

    kind: Literal["local", "activities", "weights"] = "local"
    """What is perturbed: every layer's outputs under losses of its own, all layers' outputs, or all weights."""
    tangents: int = 4
    """Directions per step, K."""
    groups: int = 16
    """With kind = local: groups of units per layer, each with a head and a loss of its own; a divisor of the widths."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the MLP's hidden layers."""
    norm: bool = True
    """Norm without parameters after every hidden layer: over the layer, or with kind = local over each group."""
    distribution: PerParameter = "rademacher"
    """Fair signs, or normal values."""
    optimizer_kind: str = "adamw"
    """Optimiser: adamw, sgd (with momentum 0.9), plain-sgd, adam, rmsprop, adagrad, adadelta, adafactor, adamax, nadam,
    radam or asgd, as torch.optim has them; or one that was added in Python."""
    learning_rate: float = 2e-3
    """Step size."""
    weight_decay: float = 0.0
    """Weight decay of the optimiser."""

    name: ClassVar[str] = "forward-gradient"
    summary: ClassVar[str] = "Forward gradients: along random weights, activities, or activities under local losses"
    takes: ClassVar[Takes] = Takes("any", targets=("classes", "labels", "values", "own"), log="own loop")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, 100_000, tangents=self.tangents, groups=self.groups)

    @property
    def divides(self) -> Mapping[Division, int]:
        """The batch, or the directions."""
        return {"batch": 0, "probes": self.tangents}

    @property
    def common_noise(self) -> bool:
        """Along weights, all parts of a step have the same directions; examples have directions of their own."""
        return self.kind == "weights"

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> StagedNet:
        """Make the MLP; a module of the user's takes the place of its hidden layers, with one head per stage."""
        net = make_net(task, self.hidden, self.norm, noise, module, self.groups if self.kind == "local" else 0)
        if self.kind != "weights":
            check_activities(net.stages, local=self.kind == "local")
        return net

    def fits(self, net: StagedNet) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return self.kind != "local" or len(net.heads) == len(net.stages)

    def units(self, net: StagedNet) -> dict[str, list[str]]:
        """Return every stage with its head, and the read-out, for local losses; otherwise the one unit."""
        return local_units(net) if self.kind == "local" else one_unit(net)

    def estimate(self, net: StagedNet, batch: Batch, noise: Noise) -> Update:
        """Return the mean estimate of the tangents, as gradients."""
        directions = Directions(noise.stream("directions"), self.distribution)
        taken = batch.share.probes(self.tangents)
        return Dense(*gradients_along(self.kind, net, batch, directions, taken, noise.stream("module")))

    def check_any(self, net: nn.Module) -> None:
        """Raise InputError for a module that cannot be trained so: of any module only the weights are known."""
        if self.kind != "weights":
            raise InputError(
                f"on a whole model only weights can be given directions, got kind = {self.kind}: "
                "ForwardGradient(kind='weights')"
            )
        check_trainable(net)

    def estimate_any(self, net: nn.Module, losses: Losses, noise: Noise, share: Share = WHOLE) -> Update:
        """Return one number per direction of all weights: the loss's derivative along it."""
        directions = Directions(noise.stream("directions"), self.distribution)
        taken = share.probes(self.tangents)
        found, loss, statistics = derivatives_along(net, losses, directions, taken, noise.stream("module"))
        coefs, chosen = of_share(found / self.tangents, taken, self.tangents, share)
        return replace(seeded(net, coefs, noise, self.distribution, statistics, loss), taken=chosen)

    def probes(self, net: nn.Module, noise: Noise) -> DenseProbes:
        """Return the directions of a step along weights."""
        return dense_probes(net, noise, self.tangents, self.distribution)
